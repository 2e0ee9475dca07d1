"""Assembled models, the objective, what trains, and runs that are loaded again."""

import json
import shutil
from dataclasses import asdict, replace

import pytest
import reference_losses
import torch
import trainings
from trainings import MIXED, TEMPLATE, inputs, perturb
from transformers import AutoModelForCausalLM, CLIPVisionModel, SiglipVisionModel

from viral_core.aligned import AlignedModel
from viral_core.checkpoints import fingerprint
from viral_core.llava import assemble, load_processor, load_projector, save_projector
from viral_core.run_folder import load_run, save_run
from viral_core.specs import Align, Residual
from viral_core.tap import base_llava


def build(tiny, align=None, residuals=(), vision="clip", language="llama"):
    parts = {"vision": vision, "language": language, "dropout": 0.0}
    return perturb(trainings.build(tiny, align, residuals, **parts)[0])


@pytest.mark.parametrize(("vision", "tower_class"), [("clip", CLIPVisionModel), ("siglip", SiglipVisionModel)])
@pytest.mark.parametrize("language", ["llama", "qwen"])
def test_assembled_parts_are_the_checkpoints(tiny, vision, tower_class, language):
    llava, processor = assemble(tiny / vision, tiny / language)
    tower = tower_class.from_pretrained(tiny / vision)
    lm = AutoModelForCausalLM.from_pretrained(tiny / language)
    for part, loaded in ((llava.model.vision_tower, tower), (llava.model.language_model, lm.model)):
        saved = loaded.state_dict()
        assert part.state_dict().keys() == saved.keys()
        for name, value in part.state_dict().items():
            assert torch.equal(value[: len(saved[name])] if value.dim() else value, saved[name]), name
    assert {name for name, p in llava.named_parameters() if p.requires_grad} == {
        f"model.multi_modal_projector.linear_{i}.{kind}" for i in (1, 2) for kind in ("weight", "bias")
    }
    ids = torch.tensor([processor.tokenizer("Two dogs")["input_ids"]])
    size = lm.config.vocab_size
    torch.testing.assert_close(llava(input_ids=ids).logits[..., :size], lm(input_ids=ids).logits)
    assert llava.config.image_token_id == size  # the tokenizer lacked it: one more row, the mean one
    rows = llava.get_input_embeddings().weight
    torch.testing.assert_close(rows[size], rows[:size].mean(0))


@pytest.mark.parametrize("load", [assemble, load_processor])
def test_other_vision_models_are_refused(load, tiny):
    with pytest.raises(ValueError, match="'llama' model; LLaVA takes a fixed-size vision tower"):
        load(tiny / "llama", tiny / "llama")


def test_projector_round_trip(tiny, tmp_path):
    one, two = (assemble(tiny / "clip", tiny / "llama")[0] for _ in range(2))
    save_projector(one, tmp_path / "projector.safetensors")
    load_projector(two, tmp_path / "projector.safetensors")
    for name, p in one.named_parameters():
        assert torch.equal(p, two.get_parameter(name))
    three, _ = assemble(tiny / "clip", tiny / "llama")
    three.base = replace(three.base, language_sha256="another")
    with pytest.raises(ValueError, match=r"projector.safetensors was trained on .*but the models here"):
        load_projector(three, tmp_path / "projector.safetensors")
    two.model.multi_modal_projector.linear_1 = torch.nn.Linear(3, 32)
    with pytest.raises(ValueError, match="does not fit"):
        load_projector(two, tmp_path / "projector.safetensors")


def test_lora_is_on_the_language_model_only(tiny):
    model = build(tiny)
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    lora = {name for name in trained if "lora" in name}
    assert all(".language_model.layers." in name for name in lora)
    assert len(lora) == 4 * 7 * 2  # blocks, matrices, A and B
    assert all("multi_modal_projector" in name for name in trained - lora)


@pytest.mark.parametrize(
    ("target", "shared"), [("teacher", False), ("teacher", True), ("encoder", False), ("projector", False)]
)
def test_alignment_loss_against_a_plain_loop(tiny, batch_of, target, shared):
    dim = 6 if target == "teacher" else None
    model = build(tiny, Align(target, layers=(1, 3), weight=0.25, shared_head=shared, hidden=16, dim=dim)).eval()
    batch = batch_of(MIXED)
    teacher = torch.randn(4, 4, 6)
    with torch.no_grad():
        out = model(**batch, teacher_features=teacher if target == "teacher" else None)
        reference = model.llava(**inputs(batch), labels=batch["labels"], output_hidden_states=True)
        mask = (batch["input_ids"] == model.config.image_token_id).flatten()
        hidden = [state.flatten(0, 1)[mask] for state in reference.hidden_states]
        core = base_llava(model.llava).model
        z = core.vision_tower(batch["pixel_values"], output_hidden_states=True).hidden_states[-2][:, 1:].flatten(0, 1)
        wanted = {"teacher": teacher.flatten(0, 1), "encoder": z, "projector": core.multi_modal_projector(z)}[target]
        heads = [model.heads["shared" if shared else str(layer)] for layer in (1, 3)]
        losses = [
            reference_losses.cosine(head(hidden[layer]), wanted, batch["image_tokens"])
            for head, layer in zip(heads, (1, 3), strict=True)
        ]
    assert len(model.heads) == (1 if shared else 2)
    assert float(out["vra_loss"]) == pytest.approx(sum(losses) / 2, abs=1e-6)
    torch.testing.assert_close(out["lm_loss"], reference.loss)
    torch.testing.assert_close(out["loss"], out["lm_loss"] + 0.25 * out["vra_loss"])


def test_a_projector_target_is_detached(tiny, batch_of):
    model = build(tiny, Align("projector", layers=(1,), hidden=16))
    loss = model(**batch_of(MIXED))["vra_loss"]
    pred = model.heads["1"](model.tap.states[1])
    detached = -torch.nn.functional.cosine_similarity(pred, model.tap.states[0].detach(), dim=-1).mean()
    projector = list(base_llava(model.llava).model.multi_modal_projector.parameters())
    expected = torch.autograd.grad(detached, projector, retain_graph=True)
    for grad, wanted in zip(torch.autograd.grad(loss, projector), expected, strict=True):
        torch.testing.assert_close(grad, wanted)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_batch_without_images_is_zero_and_in_the_graph(tiny, batch_of, checkpointing):
    align = Align(layers=(2, 4), hidden=16, dim=6)
    model = build(tiny, align, (Residual(layer=1), Residual("encoder", layer=3))).train()
    if checkpointing:
        model.gradient_checkpointing_enable()
    out = model(**batch_of((7, 9)))
    assert out["vra_loss"].item() == 0
    assert out["loss"].item() == out["lm_loss"].item()
    out["loss"].backward()
    for name, p in model.named_parameters():
        assert (p.grad is not None) == p.requires_grad, name
        if p.requires_grad and "lora" not in name:
            assert not p.grad.any(), name
    assert any(p.grad.any() for name, p in model.named_parameters() if "lora" in name)


def test_parts_of_a_global_batch_add_up(tiny, batch_of):
    model = build(tiny, Align("encoder", layers=(2,), hidden=16)).eval()
    whole = model(**batch_of((4, 7, 0, 1, 2)))
    parts = [batch_of(indices) for indices in ((4, 7), (0,), (1, 2))]
    totals = torch.tensor([sum((part["labels"][:, 1:] != -100).sum() for part in parts), 5])
    assert totals[1] == sum(len(part["image_tokens"]) for part in parts)
    summed = [model(**part, totals=totals) for part in parts]
    for key in ("loss", "lm_loss", "vra_loss"):
        torch.testing.assert_close(sum(out[key] for out in summed), whole[key])


def test_alignment_errors(tiny, batch_of):
    model = build(tiny, Align(layers=(2,), hidden=16, dim=6))
    with pytest.raises(ValueError, match="needs teacher features"):
        model(**batch_of(MIXED))
    with pytest.raises(ValueError, match="does not match"):
        model(**batch_of(MIXED), teacher_features=torch.randn(4, 9, 6))
    for bad in ({"objective": "l2"}, {"target": "pixels"}, {"dim": None}, {"layers": ()}):
        with pytest.raises(ValueError, match="alignment|teacher"):
            Align(**{"layers": (2,), "dim": 6, **bad})
    with pytest.raises(ValueError, match="layers .9. do not exist"):
        build(tiny, Align(layers=(9,), hidden=16, dim=6))
    with pytest.raises(ValueError, match="residual source"):
        Residual("pixels", layer=2)


def test_gradient_checkpointing_gives_the_same_gradients(tiny, batch_of):
    def gradients(checkpointing):
        residuals = (Residual(layer=2), Residual("encoder", layer=3))
        model = build(tiny, Align("encoder", layers=(1, 4), hidden=16), residuals).train()
        if checkpointing:
            model.gradient_checkpointing_enable()
        model(**batch_of(MIXED))["loss"].backward()
        return {name: p.grad for name, p in model.named_parameters() if p.requires_grad}

    plain, again = gradients(False), gradients(True)
    for name in plain:
        torch.testing.assert_close(plain[name], again[name])


def test_vision_tower_never_trains(tiny):
    model = build(tiny).train()
    assert not any(module.training for module in base_llava(model.llava).model.vision_tower.modules())
    assert base_llava(model.llava).model.language_model.training


def test_state_dict_holds_what_trains(tiny):
    model = build(tiny, Align(layers=(2,), hidden=16, dim=6))
    state = model.state_dict()
    assert set(state) == {name for name, p in model.named_parameters() if p.requires_grad}
    other = build(tiny, Align(layers=(2,), hidden=16, dim=6))
    other.load_state_dict({name: value + 1 for name, value in state.items()})
    for name, value in state.items():
        assert torch.equal(other.get_parameter(name), value + 1)
    with pytest.raises(RuntimeError, match="Missing"):
        other.load_state_dict({name: value for name, value in state.items() if "heads" not in name})


@pytest.mark.parametrize(
    ("vision", "language", "residuals"),
    [
        ("clip", "llama", ()),
        ("clip", "llama", (Residual(layer=2),)),
        ("clip", "llama", (Residual("encoder", layer=2),)),
        ("siglip", "qwen", ()),
    ],
)
def test_a_loaded_run_is_identical(tiny, batch_of, tmp_path, vision, language, residuals):
    align = Align(layers=(1, 3), hidden=16, dim=6, objective="relation")
    model = build(tiny, align, residuals, vision, language).eval()
    save_run(tmp_path / "run", model, TEMPLATE, seed=7, training={"step": 3})
    torch.manual_seed(99)
    run = load_run(tmp_path / "run")
    batch = inputs(batch_of(MIXED))
    with torch.no_grad():
        assert torch.equal(run.model(**batch).logits, model.llava(**batch).logits)
    one = {"input_ids": batch["input_ids"][:1], "pixel_values": batch["pixel_values"][:2], "max_new_tokens": 4}
    assert torch.equal(run.model.generate(**one), model.llava.generate(**one))
    assert (run.template, run.seed, run.training) == (TEMPLATE, 7, {"step": 3})
    assert (run.aligned.align, run.aligned.residuals) == (align, residuals)
    assert not run.aligned.training
    saved, loaded = model.state_dict(), run.aligned.state_dict()
    assert saved.keys() == loaded.keys()
    assert all(torch.equal(saved[name], loaded[name]) for name in saved)
    if residuals:
        model.remove()
        with torch.no_grad():
            assert not torch.allclose(run.model(**batch).logits, model.llava(**batch).logits)


def test_a_run_without_lora_or_alignment(tiny, batch_of, tmp_path):
    model = AlignedModel(assemble(tiny / "clip", tiny / "llama")[0]).eval()
    save_run(tmp_path, model, TEMPLATE, seed=0)
    assert {path.name for path in tmp_path.iterdir()} == {"projector.safetensors", "run.json"}
    batch = inputs(batch_of(MIXED))
    assert torch.equal(load_run(tmp_path).model(**batch).logits, model.llava(**batch).logits)


def test_a_run_knows_its_base(tiny, tmp_path):
    for name in ("clip", "llama"):
        shutil.copytree(tiny / name, tmp_path / name)
    model = build(tmp_path)
    save_run(tmp_path / "run", model, TEMPLATE, seed=0)
    base = json.loads((tmp_path / "run" / "run.json").read_text())["base"]
    assert base == asdict(base_llava(model.llava).base)
    (tmp_path / "clip").rename(tmp_path / "moved")
    load_run(tmp_path / "run", vision=tmp_path / "moved")

    (tmp_path / "moved").rename(tmp_path / "clip")
    deeper, _ = assemble(tmp_path / "clip", tmp_path / "llama", vision_feature_layer=-1)
    with pytest.raises(ValueError, match="train it again"):
        load_projector(deeper, tmp_path / "run" / "projector.safetensors")
    other = AutoModelForCausalLM.from_pretrained(tmp_path / "llama")
    other.model.norm.weight.data += 1
    other.save_pretrained(tmp_path / "llama")
    assert fingerprint(tmp_path / "llama") != base["language_sha256"]
    with pytest.raises(ValueError, match="train it again"):
        load_run(tmp_path / "run")
    with pytest.raises(FileNotFoundError, match=r"no run\.json"):
        load_run(tmp_path / "clip")
