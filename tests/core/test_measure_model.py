"""Measurements that run a model, on a tiny random LLaVA of transformers."""

import numpy as np
import pytest

import viral_core  # noqa: F401  (before torch and transformers)

# isort: split
import torch
from peft import LoraConfig, get_peft_model
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

from viral_core.aligned import AlignedModel
from viral_core.llava import add_lora, assemble
from viral_core.measure.attention import (
    entropy_per_head,
    generate_with_attention,
    question_entropies,
    spatial_entropies,
)
from viral_core.measure.cknna import cknna, clamp_outliers
from viral_core.measure.permutation import PatchPermutation, patch_order
from viral_core.measure.probes import layer_probes, probe
from viral_core.measure.states import layerwise_cknna
from viral_core.specs import Residual
from viral_core.tap import VisualTap
from viral_core.templates import TEMPLATES, stop_token_id

LAYERS, HEADS, N = 3, 4, 16
WORDS = [
    "<pad>",
    "<unk>",
    "</s>",
    "<image>",
    "USER:",
    "ASSISTANT:",
    *(f"w{i}" for i in range(32)),
    *"abcdefghijklmnopqrstuvwxyz",
]
PROMPTS = [
    "USER: <image> w1 w2 ASSISTANT:",
    "w9 USER: <image> w3 w4 w5 w6 w7 ASSISTANT:",
    "USER: <image> ASSISTANT:",
    "USER: <image> w8 ASSISTANT:",
    "w1 w2 USER: <image> w3 ASSISTANT:",
    "USER: <image> w20 w30 ASSISTANT:",
]


def build(seed=0):
    torch.manual_seed(seed)
    vision = CLIPVisionConfig(
        hidden_size=24, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=96, patch_size=24
    )
    text = LlamaConfig(
        vocab_size=len(WORDS), hidden_size=32, intermediate_size=48, num_hidden_layers=LAYERS, pad_token_id=0,
        num_attention_heads=HEADS, num_key_value_heads=2, eos_token_id=None, bos_token_id=None, initializer_range=0.4,
    )  # fmt: skip
    return LlavaForConditionalGeneration(LlavaConfig(vision_config=vision, text_config=text, image_token_id=3)).eval()


@pytest.fixture(scope="module")
def model():
    return build()


@pytest.fixture(scope="module")
def lora():
    config = LoraConfig(r=4, target_modules=r".*language_model.*\.(q_proj|k_proj|v_proj)", init_lora_weights=False)
    torch.manual_seed(1)
    return get_peft_model(build(), config).eval()


@pytest.fixture(scope="module")
def processor():
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        unk_token="<unk>",
        eos_token="</s>",
        extra_special_tokens=["<image>"],
    )
    side = {"height": 96, "width": 96}
    pixels = CLIPImageProcessorPil(size=side, do_center_crop=False, crop_size=side)
    return LlavaProcessor(
        pixels, fast, patch_size=24, vision_feature_select_strategy="default", num_additional_image_tokens=1
    )


@pytest.fixture(scope="module")
def images():
    rng = np.random.default_rng(0)
    return [Image.fromarray(rng.integers(0, 256, (96, 96, 3), dtype=np.uint8)) for _ in PROMPTS]


def encode(processor, images, prompts):
    return processor(images=images, text=prompts, padding=True, padding_side="left", return_tensors="pt")


@pytest.mark.parametrize("kind", ["model", "lora"])
def test_collected_attention_is_that_of_the_whole_forward(kind, request, processor, images):
    model = request.getfixturevalue(kind)
    llava = model.get_base_model() if kind == "lora" else model
    answers = generate_with_attention(model, encode(processor, images[:3], PROMPTS[:3]), max_new_tokens=4)
    assert llava.config.text_config._attn_implementation == "sdpa"
    llava.set_attn_implementation("eager")
    for image, prompt, answer in zip(images, PROMPTS, answers, strict=False):
        inputs = encode(processor, [image], [prompt])
        asked = inputs["input_ids"].shape[1]
        inputs["input_ids"] = torch.cat([inputs["input_ids"], torch.tensor([answer.tokens])], dim=1)
        inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
        with torch.no_grad():
            whole = model(**inputs, output_attentions=True)
        assert whole.logits[0, asked - 1 : -1].argmax(1).tolist() == answer.tokens  # greedy
        rows = torch.stack([layer[0, :, asked - 1 : -1] for layer in whole.attentions])  # (L, heads, T, S)
        expected = rows[..., inputs["input_ids"][0] == 3].permute(2, 0, 1, 3)
        assert answer.attention.shape == (4, LAYERS, HEADS, N)
        torch.testing.assert_close(answer.attention, expected, rtol=1e-4, atol=1e-6)
    llava.set_attn_implementation("sdpa")


def test_the_stop_token_ends_an_answer_and_is_left_out(model, processor, images):
    inputs = encode(processor, images[:3], PROMPTS[:3])
    free = generate_with_attention(model, inputs, max_new_tokens=5)
    stop = free[0].tokens[0]
    stopped = generate_with_attention(model, inputs, max_new_tokens=5, stop=stop)
    assert stopped[0].tokens == []
    assert stopped[0].attention.shape == (0, LAYERS, HEADS, N)
    for before, after in zip(free, stopped, strict=True):
        kept = before.tokens.index(stop) if stop in before.tokens else 5
        assert after.tokens == before.tokens[:kept]
        torch.testing.assert_close(after.attention, before.attention[:kept], rtol=1e-4, atol=1e-6)


def test_prompts_that_cannot_be_measured_are_refused(model, processor, images):
    right = processor(images=images[:2], text=PROMPTS[:2], padding=True, padding_side="right", return_tensors="pt")
    with pytest.raises(ValueError, match="padded on the right"):
        generate_with_attention(model, right)
    with pytest.raises(ValueError, match="no image tokens"):
        generate_with_attention(model, processor(text=["w1 w2"], return_tensors="pt"))


def test_entropies_per_head_average_tokens_then_questions(model, processor, images):
    table = entropy_per_head(question_entropies(model, processor, images, PROMPTS, max_new_tokens=3, batch_size=4))
    assert len(table) == 2 * LAYERS * HEADS
    single = [
        generate_with_attention(model, encode(processor, [i], [p]), 3)[0] for i, p in zip(images, PROMPTS, strict=True)
    ]
    for reading, options in {"renormalised": (0.0, True), "raw": (1e-3, False)}.items():
        row = table.set_index(["reading", "layer", "head"]).loc[reading, 2, 1]
        means = [np.mean(spatial_entropies(answer.attention[:, 1, 1].reshape(-1, 4, 4), *options)) for answer in single]
        assert row["entropy"] == pytest.approx(np.mean(means), abs=1e-4)
        assert row["std"] == pytest.approx(np.std(means, ddof=1), abs=1e-4)
        assert (row["questions"], row["tokens"], row["undefined"]) == (6, 18, 0)


def test_questions_without_an_answer_are_left_out_of_the_mean(model, processor, images):
    first = generate_with_attention(model, encode(processor, images[:1], PROMPTS[:1]), 1)[0].tokens[0]
    questions = question_entropies(model, processor, images[:1], PROMPTS[:1], max_new_tokens=3, stop=first)
    table = entropy_per_head(questions)
    assert (table["questions"] == 0).all()
    assert table["entropy"].isna().all()


def test_permutation_moves_the_features_of_each_sample_by_its_own_order(model, processor, images):
    inputs = encode(processor, images[:3], PROMPTS[:3])
    with torch.no_grad(), VisualTap(model, []) as tap:
        plain = model(**inputs).logits
        features = tap.features
        with PatchPermutation(model, seed=5) as permuted:
            permuted.set_samples(["a", "b", 7])
            shuffled = model(**inputs).logits
            moved = tap.features
            permuted.set_samples(["b", "a", 7])
            assert not torch.equal(model(**inputs).logits, shuffled)
        assert torch.equal(model(**inputs).logits, plain)  # the context has closed
    for row, sample in enumerate(["a", "b", 7]):
        assert torch.equal(moved[row], features[row][patch_order(5, sample, N)])
    assert not torch.allclose(shuffled, plain, atol=1e-3)
    assert sorted(patch_order(5, "a", N)) == list(range(N))
    assert not np.array_equal(patch_order(5, "a", N), patch_order(6, "a", N))


def test_permutation_holds_in_generation_and_needs_its_ids(model, processor, images):
    inputs = encode(processor, images[:2], PROMPTS[:2])
    plain = model.generate(**inputs, max_new_tokens=8, do_sample=False)
    with PatchPermutation(model, seed=1) as permuted:
        with pytest.raises(ValueError, match="2 images reach the projector and 0 sample ids"):
            model.generate(**inputs, max_new_tokens=8, do_sample=False)
        permuted.set_samples(["x", "y"])
        assert not torch.equal(model.generate(**inputs, max_new_tokens=8, do_sample=False), plain)


def hidden_states(model, processor, image, prompt):
    """States (L + 1, N, D) before the final norm and encoder features (N, Dz), as transformers gives them."""
    inputs = encode(processor, [image], [prompt])
    last = []
    handle = model.model.language_model.layers[-1].register_forward_hook(
        lambda module, args, output: last.append(output)
    )
    with torch.no_grad():
        states = model(**inputs, output_hidden_states=True).hidden_states
        vision = model.model.vision_tower(inputs["pixel_values"], output_hidden_states=True)
    handle.remove()
    visual = inputs["input_ids"][0] == 3
    return torch.stack([state[0, visual] for state in (*states[:-1], last[0])]), vision.hidden_states[-2][0, 1:]


def test_layerwise_cknna_equals_the_states_of_transformers(model, processor, images):
    ids = list("abcdef")
    table = layerwise_cknna(model, processor, images, PROMPTS, ids=ids, k=4, batch_size=4)
    assert len(table) == len(images) * (LAYERS + 1) * 2
    for name, image, prompt in zip(ids, images, PROMPTS, strict=True):
        states, features = hidden_states(model, processor, image, prompt)
        for clamp in (1.0, 0.95):
            rows = table.query("image == @name and clamp == @clamp").set_index("layer")
            target = clamp_outliers(features, clamp)
            for layer, state in enumerate(states):
                expected = float(cknna(clamp_outliers(state, clamp), target, 4))
                assert rows["cknna"][layer] == pytest.approx(expected, abs=1e-4, nan_ok=True)
                other = target[patch_order(0, f"chance:{name}", N)]
                expected = float(cknna(clamp_outliers(state, clamp), other, 4))
                assert rows["chance"][layer] == pytest.approx(expected, abs=1e-4, nan_ok=True)


def test_layerwise_cknna_refuses_bad_input_before_it_runs(model, processor, images, tmp_path):
    def measure(images=images, prompts=PROMPTS, **options):
        return layerwise_cknna(model, processor, images, prompts, **{"ids": "012345", "k": 4} | options)

    with pytest.raises(FileNotFoundError, match=r"1 of 6 images are missing, the first: .*gone\.png"):
        measure([*images[:5], tmp_path / "gone.png"])
    with pytest.raises(ValueError, match="6 images and 2 prompts"):
        measure(prompts=PROMPTS[:2])
    with pytest.raises(ValueError, match="needs its own"):
        measure(ids=["a"] * 6)
    with pytest.raises(ValueError, match="image 0: k = 20"):
        measure(k=20)
    model.train()
    with pytest.raises(ValueError, match="training mode"):
        measure()
    model.eval()


def test_a_probe_reads_what_is_linear_and_asks_only_labelled_tokens():
    rng = np.random.default_rng(0)
    features, labels = rng.normal(size=(30, 9, 6)), rng.integers(0, 4, (30, 9))
    features[..., 0] += 9 * (labels == 1)
    features[..., 1] += 9 * (labels == 2)
    features[..., 2] += 9 * (labels == 3)
    table = probe(features[:20], labels[:20], features[20:], labels[20:])
    assert table["tokens"].sum() == (labels[20:] > 0).sum()
    assert table["right"].sum() > 0.95 * table["tokens"].sum()
    values, counts = np.unique(labels[:20][labels[:20] > 0], return_counts=True)
    assert table["constant"].sum() == (labels[20:] == values[counts.argmax()]).sum()
    noise = probe(rng.normal(size=(20, 9, 6)), labels[:20], rng.normal(size=(10, 9, 6)), labels[20:])
    assert noise["right"].sum() < 0.6 * noise["tokens"].sum()
    with pytest.raises(ValueError, match="1 labels to learn"):
        probe(features[:20], np.ones((20, 9), int), features[20:], labels[20:])
    with pytest.raises(ValueError, match=r"labels \(20, 4\)"):
        probe(features[:20], labels[:20, :4], features[20:], labels[20:])


def test_layer_probes_read_the_encoder_and_every_layer(model, processor, images):
    """A label that is where the image's first channel is bright is read from what the encoder gives."""
    bright = []
    for image in images:
        channel = np.asarray(image)[..., 0].reshape(4, 24, 4, 24).mean((1, 3)).ravel()
        bright.append(1 + (channel > np.median(channel)))
    labels = {"bright": np.array(bright), "some": np.array(bright) * (np.arange(N) % 2)}
    train, test = ({name: label[part] for name, label in labels.items()} for part in (slice(4), slice(4, 6)))
    table = layer_probes(model, processor, images[:4], train, images[4:], test, PROMPTS[2])
    assert table.groupby(["source", "layer"], dropna=False).ngroups == 1 + LAYERS + 1
    assert table.query("probe == 'bright'")["tokens"].eq(N).all()
    assert table.query("probe == 'some'")["tokens"].eq(N // 2).all()
    states, features = hidden_states(model, processor, images[4], PROMPTS[2])
    known = [hidden_states(model, processor, image, PROMPTS[2]) for image in images[:4]]
    for source, layer, chosen in (("encoder", None, features), ("model", 2, states[2])):
        side = [pair[1] if layer is None else pair[0][layer] for pair in known]
        expected = probe(torch.stack(side).numpy(), train["bright"], chosen[None].numpy(), test["bright"][:1])
        rows = table[(table["source"] == source) & (table["probe"] == "bright") & (table["image"] == 0)]
        rows = rows if layer is None else rows[rows["layer"] == layer]
        assert rows["right"].item() == pytest.approx(expected["right"].item(), abs=1)


@pytest.mark.parametrize(("vision", "language", "name"), [("clip", "llama", "vicuna_v1"), ("siglip", "qwen", "qwen")])
def test_a_run_with_lora_and_a_residual_in_bfloat16_can_be_measured(tiny, images, vision, language, name):
    torch.manual_seed(0)
    llava, processor = assemble(tiny / vision, tiny / language, dtype=torch.bfloat16)
    aligned = AlignedModel(add_lora(llava, 4, 8), residuals=(Residual("encoder", layer=2),)).to(torch.bfloat16).eval()
    model, template = aligned.llava, TEMPLATES[name]
    asked = template.question("<image>\nWhat is in the photo?", first=True)

    assert len(layerwise_cknna(model, processor, images, asked, "012345", k=2)) == len(images) * 5 * 2
    stop = stop_token_id(processor.tokenizer, template)
    table = entropy_per_head(question_entropies(model, processor, images, asked, max_new_tokens=2, stop=stop))
    assert len(table) == 2 * 4 * 4

    inputs = processor(images=images[:2], text=[asked] * 2, return_tensors="pt").to("cpu", torch.bfloat16)
    with torch.no_grad():
        plain = model(**inputs).logits
        with PatchPermutation(model, 0) as permuted:
            permuted.set_samples([0, 1])
            assert not torch.equal(model(**inputs).logits, plain)
