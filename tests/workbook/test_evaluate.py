"""The runner on tiny random models: batches, order, continuation, settings, sampling, hooks."""

from pathlib import Path
from types import SimpleNamespace

import pytest

import viral_core  # noqa: F401  (before torch and transformers)

# isort: split
import torch
from PIL import Image

from viral_core.llava import add_lora, assemble
from viral_core.measure.inputs import batches
from viral_core.measure.permutation import PatchPermutation
from viral_core.templates import TEMPLATES, prompt
from workbook.benchmarks.answers import read_answers
from workbook.evaluate import evaluate, generate, sampled

MODELS = [("clip", "llama", "vicuna_v1", "eager"), ("siglip", "qwen", "qwen", "sdpa")]
one_model = pytest.mark.parametrize("model", MODELS[:1], indirect=True)  # for what does not depend on the model


@pytest.fixture(scope="module", params=MODELS)
def model(request, tiny):
    """(LLaVA with wide random weights, processor, template): its answers differ from prompt to prompt."""
    vision, language, template, attention = request.param
    torch.manual_seed(0)
    llava, processor = assemble(tiny / vision, tiny / language, attn_implementation=attention)
    for part in (llava.model.vision_tower, llava.model.language_model):
        assert part.config._attn_implementation == attention
    for parameter in llava.parameters():
        parameter.data += 0.2 * torch.randn_like(parameter) * (parameter.ndim > 1)
    return llava, processor, TEMPLATES[template]


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    """POPE rows of very different lengths, two to an image, of images that are no squares."""
    folder = tmp_path_factory.mktemp("images")
    rows = []
    for i in range(10):
        path = folder / f"{i // 2}.png"
        Image.effect_noise((20 + 4 * (i // 2), 28), 90).convert("RGB").save(path)
        question = "Is there " + "a very " * ((7 * i) % 10) + "red car?"
        rows.append(
            {"id": str(i), "image": str(path), "question": question, "prompt": question, "options": ["yes", "no"],
             "answer": ("yes", "no")[i % 2], "group": str(i // 2), "category": "random"}
        )  # fmt: skip
    return rows


OPTIONS = {"benchmark": "pope_random", "model_id": "tiny", "max_new_tokens": 6}


def run(model):
    """A run as far as answering goes."""
    return SimpleNamespace(model=model[0], processor=model[1], template=model[2])


def ask(model, rows, out, **options):
    return evaluate(run(model), rows, out, **(OPTIONS | options))


def texts(runs):
    return [[row["response"] for row in run] for run in runs]


def test_a_batch_answers_as_one_by_one_in_the_rows_order(model, rows, tmp_path):
    one = ask(model, rows, tmp_path / "one.jsonl", batch_size=1)
    for size in (3, 10):
        assert texts(ask(model, rows, tmp_path / f"{size}.jsonl", batch_size=size)) == texts(one)
    assert [row["id"] for row in one[0]] == [row["id"] for row in rows]
    assert len(set(texts(one)[0])) > 3
    prompts = [prompt(model[2], "<image>\n" + row["prompt"]) for row in rows]
    by_hand = [
        generate(run(model), [Image.open(row["image"])], [text], 6)[0] for row, text in zip(rows, prompts, strict=True)
    ]
    assert texts(one) == [by_hand]


def test_logits_do_not_depend_on_the_padding(model, rows):
    llava, processor, template = model
    prompts = [prompt(template, "<image>\n" + row["prompt"]) for row in rows]
    images = [row["image"] for row in rows]

    @torch.inference_mode()
    def logits(size):
        return torch.cat([
            llava(**inputs).logits[:, -1] for _, inputs in batches(llava, processor, images, prompts, size, "")
        ])  # fmt: skip

    torch.testing.assert_close(logits(len(rows)), logits(1), rtol=1e-4, atol=1e-4)


def test_longest_first_and_squared_images(model, rows, tmp_path, monkeypatch):
    llava, processor, _ = model
    asked, sizes = [], []
    pixels = type(processor.image_processor).__call__

    def counting(own, images, **options):
        sizes.extend(image.size for image in images)
        return pixels(own, images, **options)

    monkeypatch.setattr(type(processor.image_processor), "__call__", counting)
    ask(model, rows, tmp_path / "a.jsonl", batch_size=2, on_batch=asked.extend)
    lengths = {row["id"]: len(processor.tokenizer(row["prompt"])["input_ids"]) for row in rows}
    assert sorted(asked) == sorted(lengths)
    assert [lengths[i] for i in asked] == sorted(lengths.values(), reverse=True)
    assert len(sizes) == 10
    assert all(width == height for width, height in sizes)
    assert not llava.training


def test_an_interrupted_evaluation_continues_and_a_finished_one_is_not_repeated(model, rows, tmp_path):
    whole, broken = tmp_path / "whole.jsonl", tmp_path / "broken.jsonl"
    expected, begun = ask(model, rows, whole, batch_size=4), []

    def stop(ids):
        if len(begun) == 2:
            raise KeyboardInterrupt
        begun.append(ids)

    with pytest.raises(KeyboardInterrupt):
        ask(model, rows, broken, batch_size=4, on_batch=stop)
    assert len(broken.read_text().splitlines()) == 1 + 8
    with broken.open("a") as file:
        file.write('{"id": "3", "resp')  # the process died while it wrote
    asked = []
    assert texts(ask(model, rows, broken, batch_size=3, on_batch=asked.append)) == texts(expected)
    assert sum(map(len, asked)) == 2
    before = broken.read_bytes()
    assert texts(ask((None, *model[1:]), rows, broken)) == texts(expected)
    assert broken.read_bytes() == before


@one_model
def test_answers_of_other_settings_are_set_aside_and_all_asked_for_again(model, rows, tmp_path):
    out = tmp_path / "a.jsonl"
    reworded = [row | {"prompt": row["prompt"] + " Please."} for row in rows]
    for asked, change, name in (
        (rows, {"model_id": "other"}, "model"), (rows, {"max_new_tokens": 7}, "max_new_tokens"),
        (rows, {"variant": "permuted 0"}, "variant"), (rows, {"protocol": sampled(2)}, "protocol"),
        (rows, {"benchmark": "pope_popular"}, "benchmark"), (reworded, {}, "questions"),
    ):  # fmt: skip
        out.unlink(missing_ok=True)
        ask(model, rows, out)
        with pytest.warns(UserWarning, match=f"other settings .*{name}: .*asking again"):
            ask(model, asked, out, **change)
        settings, found = read_answers(out)
        assert [len(run) for run in found] == [len(rows)] * settings["runs"]
    ask(model, reworded, out)  # the settings of the last change are those of the file now
    assert len(list(tmp_path.glob("a.jsonl.*other-settings*"))) == 6  # nothing that cost time is deleted


def test_sampled_runs_are_seeded_and_continue_exactly(model, rows, tmp_path):
    protocol = sampled(runs=3, temperature=2.0)
    first = ask(model, rows, tmp_path / "a.jsonl", protocol=protocol, batch_size=4)
    assert len(first) == 3
    assert texts(first)[0] != texts(first)[1]
    assert texts(ask(model, rows, tmp_path / "b.jsonl", protocol=protocol, batch_size=4)) == texts(first)
    other = ask(model, rows, tmp_path / "c.jsonl", protocol=protocol | {"seed": 7}, batch_size=4)
    assert texts(other) != texts(first)
    lines = (tmp_path / "a.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "d.jsonl").write_text("".join(lines[:17]))
    assert texts(ask(model, rows, tmp_path / "d.jsonl", protocol=protocol, batch_size=4)) == texts(first)
    assert read_answers(tmp_path / "a.jsonl")[0]["protocol"]["temperature"] == 2.0


def test_hooks_are_active_during_an_evaluation(model, rows, tmp_path):
    plain = ask(model, rows, tmp_path / "plain.jsonl", batch_size=4)
    with PatchPermutation(model[0], seed=3) as permuted:
        found = [
            ask(model, rows, tmp_path / f"{n}.jsonl", batch_size=n, variant="permuted 3", on_batch=permuted.set_samples)
            for n in (1, 4)
        ]
    assert texts(found[0]) == texts(found[1]) != texts(plain)


def test_a_peft_model_answers_and_one_in_training_mode_does_not(tiny, rows, tmp_path):
    llava, processor = assemble(tiny / "clip", tiny / "llama")
    model = add_lora(llava, r=2, alpha=4, dropout=0.5).eval()
    found = [ask((model, processor, TEMPLATES["vicuna_v1"]), rows, tmp_path / f"{n}.jsonl") for n in range(2)]
    assert texts(found[0]) == texts(found[1])
    with pytest.raises(ValueError, match="training mode"):
        ask((model.train(), processor, TEMPLATES["vicuna_v1"]), rows, tmp_path / "training.jsonl")


@one_model
def test_images_as_bytes_are_not_written_to_the_answers(model, rows, tmp_path):
    inside = [row | {"image": Path(row["image"]).read_bytes()} for row in rows]
    expected = ask(model, rows, tmp_path / "paths.jsonl")
    assert texts(ask(model, inside, tmp_path / "bytes.jsonl")) == texts(expected)
    assert "image" not in read_answers(tmp_path / "bytes.jsonl")[1][0][0]
