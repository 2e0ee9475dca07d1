"""What is measured on a run: permuted answers counted one by one; shares of several processes in order."""

from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from viral_core.llava import assemble
from viral_core.measure.permutation import PatchPermutation
from viral_core.templates import TEMPLATES
from workbook import measurements
from workbook.evaluate import generate


@pytest.fixture(scope="module")
def run(tiny):
    torch.manual_seed(0)
    model, processor = assemble(tiny / "clip", tiny / "llama")
    for parameter in model.parameters():
        parameter.data += 0.2 * torch.randn_like(parameter) * (parameter.ndim > 1)
    return SimpleNamespace(model=model.eval(), processor=processor, template=TEMPLATES["vicuna_v1"])


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    folder, rng, rows = tmp_path_factory.mktemp("images"), np.random.default_rng(0), []
    for i in range(6):
        file = folder / f"{i}.png"
        Image.fromarray(rng.integers(0, 256, (28, 28, 3), dtype=np.uint8)).save(file)
        category = "Count" if i < 3 else "Relation"
        rows.append({"id": f"q{i}", "image": str(file), "prompt": f"How many, {i}?", "group": str(i), "source": "s",
                     "options": ["x"], "category": category, "question": "?", "answer": "-"})  # fmt: skip
    return rows


def test_permuted_answers_are_those_of_single_questions(run, rows, tmp_path, monkeypatch):
    """Right answers are what the model says to every second question unpermuted."""
    prompts = [run.template.question(f"<image>\n{row['prompt']}", first=True) for row in rows]
    letters = {}
    for variant, number in (("original", None), ("permuted-0", 0), ("permuted-1", 1)):
        letters[variant] = []
        for row, prompt in zip(rows, prompts, strict=True):
            with nullcontext() if number is None else PatchPermutation(run.model, number) as permuted:
                if permuted:
                    permuted.set_samples([row["id"]])
                image = [Image.open(row["image"])]
                (text,) = generate(run.model, run.processor, run.template, image, [prompt], max_new_tokens=3)
            letters[variant].append(text[:1].upper())
    keyed = [row | {"answer": letters["original"][i] if i % 2 else "-"} for i, row in enumerate(rows)]
    monkeypatch.setattr(measurements, "load_rows", lambda benchmark, folder: keyed)
    settings = SimpleNamespace(benchmark="cv_bench", permutations=2)
    table = measurements.permutation(run, "rows", settings, tmp_path, "tiny", batch_size=4, max_new_tokens=3)
    for variant, texts in letters.items():
        right = [letter == row["answer"] for letter, row in zip(texts, keyed, strict=True)]
        part = table[table["variant"] == variant].set_index("id")
        assert part["right"].to_dict() == dict(zip((row["id"] for row in rows), right, strict=True))
    assert table.groupby("variant")["right"].sum()["original"] == 3
    assert table["right"].sum() < 9  # shuffled features change answers


def test_measurements_name_what_is_missing(run, rows, monkeypatch):
    monkeypatch.setattr(measurements, "load_rows", lambda benchmark, folder: rows)
    with pytest.raises(ValueError, match="mmvp has 6 images, CKNNA is to measure 7"):
        measurements.cknna(run, "rows", SimpleNamespace(benchmark="mmvp", images=7, k=2))
    settings = SimpleNamespace(benchmark="cv_bench", category="Relation", questions=4, maps=1)
    with pytest.raises(ValueError, match="3 questions of category Relation"):
        measurements.attention(run, "rows", settings, 4, 2)


def test_cknna_and_attention_have_a_row_for_every_item(run, rows, monkeypatch):
    monkeypatch.setattr(measurements, "load_rows", lambda benchmark, folder: rows)
    table = measurements.cknna(run, "rows", SimpleNamespace(benchmark="mmvp", images=5, k=2))
    assert sorted(table["image"].unique()) == list("01234")
    blocks = run.model.config.text_config.num_hidden_layers
    assert len(table) == 5 * 2 * (blocks + 1)
    settings = SimpleNamespace(benchmark="cv_bench", category="Relation", questions=3, maps=2)
    questions, heads, maps = measurements.attention(run, "rows", settings, 2, 3)
    assert len(questions) == 2 * 3 * blocks
    assert len(heads) == 2 * blocks * run.model.config.text_config.num_attention_heads
    assert list(maps) == ["q3", "q4"]
    assert maps["q3"].shape[0] == blocks
