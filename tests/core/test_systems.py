"""What makes each system of the registry different: trained by the pipeline's own stages on a tiny model, and compared
with computations that use none of the code under test."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import reference_losses
import torch
import yaml
from safetensors.torch import load_file
from trainings import inputs
from transformers import BitImageProcessorPil, Dinov2Config, Dinov2Model
from transformers.image_utils import OPENAI_CLIP_MEAN

from viral_core.aligned import AlignedModel
from viral_core.cache import FeatureCache
from viral_core.conversations import load_conversations, shuffle_targets
from viral_core.data import Collator, ConversationDataset, GroupedSampler
from viral_core.head import AlignmentHead
from viral_core.llava import add_lora, assemble, save_projector
from viral_core.run_folder import load_run
from viral_core.templates import TEMPLATES
from workbook import config as profiles
from workbook import pipeline, stages

BLOCKS, LAYER, BATCH = 4, 2, 4
RUNS = (
    "baseline", "viral", "residual-post", "residual-pre", "align-encoder", "align-projector", "layers-15-17",
    "relation", "as-released", "shuffled-teacher", "lambda-0_1", "lambda-1", "layer-32", "shared", "online",
)  # fmt: skip


@pytest.fixture(scope="module")
def tiny_profile(tiny, conversations, tmp_path_factory):
    """A profile `tiny` of the registry's own runs, its models and data; `train(run)` runs its stages once."""
    folder = tmp_path_factory.mktemp("systems")
    dino = Dinov2Config(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, image_size=28, patch_size=14)
    torch.manual_seed(0)
    Dinov2Model(dino).save_pretrained(folder / "dinov2")
    BitImageProcessorPil(image_mean=[0.485, 0.456, 0.406], image_std=[0.229, 0.224, 0.225]).save_pretrained(
        folder / "dinov2"
    )
    (folder / "profiles").mkdir()
    entries = yaml.safe_load((profiles.PROFILES / "runs.yaml").read_text())
    entries["shared"] = {"extends": "layers-15-17", "align": {"shared_head": True}}
    entries["online"] = {"extends": "shuffled-teacher", "align": {"teacher": "online"}}
    (folder / "profiles/runs.yaml").write_text(yaml.safe_dump(entries))
    captions, images = map(str, conversations)
    profile = {
        "label": "tiny",
        "data": {"captions": captions, "caption_images": images, "conversations": captions,
                 "conversation_images": images, "benchmarks": str(folder)},
        "languages": {"vicuna-7b": {"path": str(tiny / "llama"), "template": "vicuna_v1", "blocks": BLOCKS}},
        "visions": {"clip": {"path": str(tiny / "clip")}},
        "teachers": {"dinov2": {"kind": "dinov2", "path": str(folder / "dinov2")},
                     "online": {"kind": "dinov2", "path": str(folder / "dinov2"), "cache": None}},
        "stage1": {"batch_size": BATCH, "lr": 1.0e-3},
        "stage2": {"batch_size": BATCH, "lr": 1e-2, "steps": 2, "max_length": 512},
        "lora": {"r": 4, "alpha": 8, "dropout": 0.0},
        "align": {"hidden": 16, "init_std": 0.2},
        "evaluation": {"benchmarks": []},
        "cknna": {"runs": [], "benchmark": "none", "images": 1},
        "runs": {run: [0] for run in RUNS} | {"as-released": [0, 1]},
        "learning_curve": {"runs": ["viral"], "fractions": [0.5], "benchmarks": []},
    }  # fmt: skip
    (folder / "profiles/tiny.yaml").write_text(yaml.safe_dump({k: v for k, v in profile.items() if v is not None}))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(profiles, "PROFILES", folder / "profiles")
        patch.chdir(folder)
        settings = profiles.load("tiny")
        made = pipeline.stages(settings)
        stage1 = folder / made["stage1"]["tiny-vicuna-7b-clip"]["out"]
        stage1.mkdir(parents=True)
        torch.manual_seed(7)
        save_projector(assemble(tiny / "clip", tiny / "llama")[0], stage1 / "projector.safetensors")
        for entry in made["cache"].values():
            stages.cache(settings, entry)
        done = {}

        def train(run: str, seed: int = 0) -> dict:
            entry = made["stage2"][f"tiny-{run}-s{seed}"]
            if (run, seed) not in done:
                stages.stage2(settings, entry)
                done[run, seed] = entry
            return entry

        yield SimpleNamespace(train=train, made=made, folder=folder, settings=settings, data=(captions, images))


def log(entry: dict) -> dict:
    """Losses of the first step."""
    return json.loads((Path(entry["out"]) / "log.jsonl").read_text().splitlines()[0])


@pytest.fixture(autouse=True)
def from_the_folder(tiny_profile, monkeypatch):
    monkeypatch.chdir(tiny_profile.folder)


def start(tiny_profile, entry: dict):
    """LLaVA before the first step (LoRA adds nothing yet), and the first batch with the names of its images."""
    torch.manual_seed(entry["seed"])
    projector = f"{entry['projector']}/projector.safetensors"
    llava, processor = assemble(entry["vision_files"], entry["language_files"], projector=projector)
    add_lora(llava, r=4, alpha=8)
    samples = load_conversations(*tiny_profile.data)
    data = ConversationDataset(samples, processor, TEMPLATES["vicuna_v1"], 512)
    order = list(GroupedSampler(data.encodings, BATCH, 2, entry["seed"]))[:BATCH]
    batch = Collator(processor)([data[i] for i in order])
    names = [name for i in order for name in samples[i].images]
    assert names  # so that there is something to align
    return llava, batch, names


def heads(entry: dict, count: int, dim: int) -> list[AlignmentHead]:
    """Heads as the run draws them: after LoRA, from the run's seed (call it right after `start`)."""
    return [AlignmentHead(32, dim, 16, 0.2) for _ in range(count)]


@torch.no_grad()
def hidden(llava, batch, layer: int) -> torch.Tensor:
    """Visual positions (n, 4, 32) of a layer, before the final norm, read without any of our hooks."""
    kept = {}
    block = llava.model.language_model.layers[layer - 1]
    handle = block.register_forward_hook(lambda _m, _a, out: kept.update(out=out[0] if isinstance(out, tuple) else out))
    llava(**inputs(batch))
    handle.remove()
    return kept["out"][batch["input_ids"] == llava.config.image_token_id].view(-1, 4, 32)


@torch.no_grad()
def encoded(llava, batch) -> torch.Tensor:
    """Encoder features z (n, 4, 24): the penultimate layer without the class token."""
    return llava.model.vision_tower(batch["pixel_values"], output_hidden_states=True).hidden_states[-2][:, 1:]


def cosine(pred: torch.Tensor, target: torch.Tensor) -> float:
    """Eq. 6 of images (n, 4, d)."""
    return reference_losses.cosine(pred.flatten(0, 1), target.flatten(0, 1), [4] * len(pred))


def relation(pred: torch.Tensor, target: torch.Tensor) -> float:
    """Table 5, of images (n, 4, d)."""
    return reference_losses.relation(pred.flatten(0, 1), target.flatten(0, 1), [4] * len(pred))


def cached(tiny_profile, name: str) -> FeatureCache:
    return FeatureCache(tiny_profile.made["cache"][f"tiny-{name}"]["out"])


@torch.no_grad()
def expected(tiny_profile, entry: dict, target: str, layers=(LAYER,), shared=False, objective=cosine) -> float:
    """The alignment loss of a run's first step."""
    llava, batch, names = start(tiny_profile, entry)
    dim = {"encoder": 24, "projector": 32}.get(target, 16)
    drawn = heads(entry, 1 if shared else len(layers), dim)
    if target == "encoder":
        wanted = encoded(llava, batch)
    elif target == "projector":
        wanted = llava.model.multi_modal_projector(encoded(llava, batch))
    else:
        wanted = cached(tiny_profile, target)(names)
    losses = [
        objective(drawn[0 if shared else i](hidden(llava, batch, layer)), wanted) for i, layer in enumerate(layers)
    ]
    return sum(losses) / len(losses)


@pytest.mark.parametrize(
    ("run", "target", "options"),
    [
        ("viral", "dinov2-clip", {}),
        ("align-encoder", "encoder", {}),
        ("align-projector", "projector", {}),
        ("layer-32", "dinov2-clip", {"layers": (4,)}),
        ("layers-15-17", "dinov2-clip", {"layers": (1, 2, 3)}),
        ("shared", "dinov2-clip", {"layers": (1, 2, 3), "shared": True}),
        ("relation", "dinov2-clip", {"objective": relation}),
        ("as-released", "dinov2-clip-as_released", {}),
    ],
)
def test_alignment_loss_of_the_first_step(tiny_profile, run, target, options):
    entry = tiny_profile.train(run)
    found = log(entry)
    assert found["vra_loss"] == pytest.approx(expected(tiny_profile, entry, target, **options), abs=2e-4)
    assert found["loss"] == pytest.approx(found["lm_loss"] + 0.5 * found["vra_loss"], abs=1e-5)


def test_heads_are_one_per_layer_or_shared(tiny_profile):
    def saved(run):
        return {name.split(".")[1] for name in load_file(f"{tiny_profile.train(run)['out']}/heads.safetensors")}

    assert saved("viral") == {"2"}
    assert saved("layers-15-17") == {"1", "2", "3"}
    assert saved("shared") == {"shared"}


def test_lambda_scales_the_alignment_loss_and_nothing_else(tiny_profile):
    runs = {0.1: "lambda-0_1", 0.5: "viral", 1.0: "lambda-1"}
    first = {weight: log(tiny_profile.train(run)) for weight, run in runs.items()}
    for weight, found in first.items():
        assert found["lm_loss"] == first[0.5]["lm_loss"]
        assert found["vra_loss"] == first[0.5]["vra_loss"]
        assert found["loss"] == pytest.approx(found["lm_loss"] + weight * found["vra_loss"], abs=1e-6)


def test_lambda_scales_gradients(tiny_profile):
    entry = tiny_profile.train("viral")
    llava, batch, names = start(tiny_profile, entry)
    batch["teacher_features"] = cached(tiny_profile, "dinov2-clip")(names)
    weight = llava.model.multi_modal_projector.linear_2.weight
    align = tiny_profile.settings.systems["viral"].align
    for value in (0.1, 1.0):
        model = AlignedModel(llava, replace(align, weight=value, dim=16))
        losses = model(**batch)
        whole, *parts = (
            torch.autograd.grad(losses[name], weight, retain_graph=True)[0] for name in ("loss", "lm_loss", "vra_loss")
        )
        model.remove()
        assert all(part.any() for part in parts)
        torch.testing.assert_close(whole, parts[0] + value * parts[1])


@pytest.mark.parametrize("run", ["residual-post", "residual-pre"])
def test_a_residual_adds_to_the_visual_positions_after_its_block_and_nowhere_else(tiny_profile, run):
    entry = tiny_profile.train(run)
    found = load_run(entry["out"])
    found.aligned.requires_grad_(False)
    _, batch, _ = start(tiny_profile, entry)
    llava = found.model.get_base_model()
    blocks, seen = llava.model.language_model.layers, {}
    for index in range(BLOCKS):
        blocks[index].register_forward_pre_hook(
            lambda _m, args, kwargs, index=index: seen.update({index: (args, kwargs)}), with_kwargs=True
        )
    found.model(**inputs(batch), use_cache=False)
    visual = batch["input_ids"] == llava.config.image_token_id
    z = encoded(llava, batch)
    if run == "residual-post":
        added = llava.model.multi_modal_projector(z)
    else:
        state = load_file(f"{entry['out']}/heads.safetensors")
        added = z @ state[f"adapters.{LAYER}.weight"].T + state[f"adapters.{LAYER}.bias"]
    for index in range(BLOCKS - 1):
        args, kwargs = seen[index]
        raw = type(blocks[index]).forward(blocks[index], *args, **kwargs)  # the block alone, without its hooks
        raw = raw[0] if isinstance(raw, tuple) else raw
        after = seen[index + 1][0][0]
        change = (after - raw)[visual]
        assert torch.equal(after[~visual], raw[~visual])
        if index == LAYER - 1:
            torch.testing.assert_close(change.view(-1, 4, 32), added, rtol=1e-4, atol=1e-5)
            assert change.abs().max() > 1e-3
        else:
            assert not change.any()


def test_a_residual_trains_by_language_alone_and_its_adapter_with_it(tiny_profile):
    for run in ("residual-post", "residual-pre"):
        found = log(tiny_profile.train(run))
        assert found["vra_loss"] is None
        assert found["loss"] == found["lm_loss"] != log(tiny_profile.train("baseline"))["lm_loss"]
    entry = tiny_profile.train("residual-pre")
    start(tiny_profile, entry)
    torch.nn.Linear(24, 32)  # a linear layer draws its own start first
    drawn = torch.nn.init.normal_(torch.empty(32, 24), std=0.02)
    state = load_file(f"{entry['out']}/heads.safetensors")
    assert set(state) == {f"adapters.{LAYER}.weight", f"adapters.{LAYER}.bias"}
    moved = (state[f"adapters.{LAYER}.weight"] - drawn).abs()
    assert 0 < moved.max() <= 2.1e-2  # two steps of Adam at a rate of 1e-2


def test_as_released_leaves_the_head_at_its_random_start(tiny_profile):
    entry = tiny_profile.train("as-released")
    start(tiny_profile, entry)
    drawn = heads(entry, 1, 16)[0].state_dict()
    state = load_file(f"{entry['out']}/heads.safetensors")
    assert all(torch.equal(state[f"heads.{LAYER}.{name}"], value) for name, value in drawn.items())
    viral = load_file(f"{tiny_profile.train('viral')['out']}/heads.safetensors")
    assert not any(torch.equal(viral[f"heads.{LAYER}.{name}"], value) for name, value in drawn.items())
    found = load_run(entry["out"]).aligned
    _, batch, names = start(tiny_profile, entry)
    batch["teacher_features"] = cached(tiny_profile, "dinov2-clip-as_released")(names)
    found(**batch)["vra_loss"].backward()
    assert all(p.grad is None for p in found.heads.parameters())
    lora = [p.grad for name, p in found.named_parameters() if ".layers.0." in name and "lora_B" in name]
    assert lora
    assert all(grad.abs().max() > 0 for grad in lora)  # the loss still reaches the language model


def test_the_control_has_a_cache_of_its_own_and_its_seeds_share_it(tiny_profile):
    intact, released = cached(tiny_profile, "dinov2-clip"), cached(tiny_profile, "dinov2-clip-as_released")
    clip = [round(mean, 6) for mean in OPENAI_CLIP_MEAN]
    assert (intact.teacher["randomised"], released.teacher["randomised"]) == (None, 0)  # one draw, whatever the seed
    assert released.teacher["mean"] == clip != intact.teacher["mean"]
    assert not torch.allclose(intact["0.png"], released["0.png"], atol=1e-2)
    entries = [tiny_profile.made["stage2"][f"tiny-as-released-s{seed}"] for seed in (0, 1)]
    assert {entry["targets"] for entry in entries} == {str(released.folder)}
    assert tiny_profile.made["stage2"]["tiny-viral-s0"]["targets"] == str(intact.folder)


def test_shuffled_targets_are_a_fixed_exchange_without_fixed_points(conversations):
    samples = load_conversations(*conversations)
    shuffled = shuffle_targets(samples, seed=0)
    other = {}
    for sample in shuffled:
        for name, target in zip(sample.images, sample.targets, strict=True):
            assert other.setdefault(name, target) == target != name
    assert set(other) == set(other.values()) == {name for sample in samples for name in sample.images}
    assert shuffle_targets(samples, seed=0) == shuffled
    assert shuffle_targets(samples, seed=1) != shuffled
    assert [(s.id, s.turns, s.images) for s in shuffled] == [(s.id, s.turns, s.images) for s in samples]
    with pytest.raises(ValueError, match="1 images cannot be exchanged"):
        shuffle_targets(samples[:1], seed=0)


def test_the_shuffled_teacher_gives_features_of_other_images(tiny_profile):
    entry = tiny_profile.train("shuffled-teacher")
    llava, batch, names = start(tiny_profile, entry)
    head = heads(entry, 1, 16)[0]
    samples = load_conversations(*tiny_profile.data)
    pairs = [zip(s.images, s.targets, strict=True) for s in shuffle_targets(samples, entry["seed"])]
    other = dict(pair for sample in pairs for pair in sample)
    wanted = cached(tiny_profile, "dinov2-clip")([other[name] for name in names])
    with torch.no_grad():
        pred = head(hidden(llava, batch, LAYER))
    found = log(entry)
    assert found["vra_loss"] == pytest.approx(cosine(pred, wanted), abs=2e-4)
    viral = log(tiny_profile.train("viral"))
    assert abs(found["vra_loss"] - viral["vra_loss"]) > 1e-4
    assert found["lm_loss"] == viral["lm_loss"]  # the student sees the right images


def test_an_online_teacher_is_shown_the_other_images_too(tiny_profile):
    online, from_cache = (log(tiny_profile.train(run)) for run in ("online", "shuffled-teacher"))
    assert online["vra_loss"] == pytest.approx(from_cache["vra_loss"], abs=2e-4)


def test_a_runs_folder_tells_how_it_was_made(tiny_profile):
    entry = tiny_profile.train("viral")
    folder = tiny_profile.folder / entry["out"]
    assert json.loads((folder / "run.json").read_text())["training"]["stage"] == entry
    started = json.loads((folder / "environment.json").read_text())
    assert [environment["from_step"] for environment in started] == [0]
    step = load_run(folder / "checkpoint-1")
    assert step.training["step"] == 1  # half of the training


@pytest.mark.parametrize(("stated", "asked_in"), [({}, "qwen"), ({"template": "plain"}, "plain")])
def test_stage_1_asks_in_its_own_template_or_in_the_language_models(tiny_profile, monkeypatch, stated, asked_in):
    """A stop token that the language model does not know would spoil the projector."""
    seen = []
    monkeypatch.setattr(stages, "train_stage1", lambda *_, template, **__: seen.append(template.name))
    model = tiny_profile.settings.languages["vicuna-7b"].model_copy(update={"template": "qwen"})
    settings = tiny_profile.settings.model_copy(update={"languages": {"vicuna-7b": model}, **stated})
    stages.stage1(settings, tiny_profile.made["stage1"]["tiny-vicuna-7b-clip"])
    assert seen == [asked_in]
