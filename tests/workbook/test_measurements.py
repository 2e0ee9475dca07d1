"""What is measured on a run: permuted answers counted one by one; shares of several processes in order."""

from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from viral_core.aligned import AlignedModel
from viral_core.llava import add_lora, assemble, save_projector
from viral_core.measure.permutation import PatchPermutation
from viral_core.run_folder import save_run
from viral_core.templates import TEMPLATES
from workbook import evaluate as evaluation
from workbook import measurements
from workbook.benchmarks.answers import read_answers
from workbook.evaluate import generate
from workbook.paths import Paths
from workbook.sections import System


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
                     "options": ["x"], "category": category, "question": "?", "answer": "A"})  # fmt: skip
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
                (text,) = generate(run, image, [prompt], max_new_tokens=3)
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


@pytest.fixture(scope="module")
def trained(tiny, tmp_path_factory):
    """(settings, root, run folder): a baseline with LoRA, its projector before stage 2, and a world with labels."""
    root = tmp_path_factory.mktemp("root")
    llava, _ = assemble(tiny / "clip", tiny / "llama")
    paths = Paths("tiny")
    folder, stage1 = root / paths.run("baseline", 0), root / paths.stage1("l", "v")
    stage1.mkdir(parents=True)
    save_projector(llava, stage1 / "projector.safetensors")
    aligned = AlignedModel(add_lora(llava, 2, 4))
    save_run(folder, aligned, TEMPLATES["vicuna_v1"], seed=0)
    (folder / "log.jsonl").write_text('{"step": 1, "loss": 1.0}\n')
    save_run(folder / "checkpoint-5", aligned, TEMPLATES["vicuna_v1"], seed=0)
    (root / paths.evaluation("baseline", 0) / "checkpoint-3").mkdir(parents=True)  # of an earlier training
    rng, side = np.random.default_rng(0), llava.config.vision_config.image_size // llava.config.vision_config.patch_size
    for split, count in (("train", 8), ("val", 3)):
        images = root / paths.data / "probes" / split / "images"
        images.mkdir(parents=True)
        names = [f"{i}.png" for i in range(count)]
        for name in names:
            Image.fromarray(rng.integers(0, 256, (28, 28, 3), dtype=np.uint8)).save(images / name)
        labels = {name: rng.integers(0, 3, (count, side * side), dtype=np.uint8) for name in measurements.PROBES}
        np.savez(images.parent / "labels.npz", names=names, categories=["a", "b"], **labels)
    settings = SimpleNamespace(
        name="tiny",
        seed=0,
        systems={"baseline": System(language="l", vision="v")},
        languages={"l": SimpleNamespace(path=str(tiny / "llama"), revision=None, template="vicuna_v1")},
        visions={"v": SimpleNamespace(path=str(tiny / "clip"), revision=None, feature_layer=-2)},
        data=SimpleNamespace(benchmarks="rows"),
        compute=SimpleNamespace(dtype="float32", attention="sdpa"),
        evaluation=SimpleNamespace(benchmarks=["cv_bench"], batch_size=4, max_new_tokens=2, sampled={}),
        measurements=lambda run: {
            "cknna": SimpleNamespace(benchmark="mmvp", images=3, k=2),
            "attention": SimpleNamespace(benchmark="cv_bench", category="Count", questions=2, maps=1),
            "probes": SimpleNamespace(scenes=6),
        },
        learning_curve=SimpleNamespace(runs=["baseline"], benchmarks=["cv_bench"]),
    )
    return settings, root, folder


def test_a_run_is_measured_before_and_after_stage_2(trained, rows, tmp_path, monkeypatch):
    settings, root, folder = trained
    monkeypatch.setattr(measurements, "load_rows", lambda benchmark, folder: rows)
    monkeypatch.chdir(root)
    (tmp_path / "permutation").mkdir()  # of a profile that asked for it
    measurements.measure_run(settings, "baseline", folder, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "attention", "cknna.csv", "cknna_start.csv", "probes.csv",
    ]  # fmt: skip
    after, before = (pd.read_csv(tmp_path / f"{name}.csv") for name in ("cknna", "cknna_start"))
    assert len(after) == len(before)
    table = pd.read_csv(tmp_path / "probes.csv")
    layers = after["layer"].nunique()
    assert table.groupby(["source", "layer"], dropna=False).ngroups == 1 + 2 * layers
    assert set(table["probe"]) == set(measurements.PROBES)
    assert table.query("probe == 'category'").groupby("image")["tokens"].nunique().eq(1).all()
    # LoRA begins at zero, so the run is still what it was before stage 2
    layered = table[table["source"] != "encoder"]
    wide = layered.pivot(index=["probe", "layer", "image"], columns="source", values="right")
    assert (wide["model"] == wide["before"]).all()


def test_a_curve_begins_before_stage_2_and_outdated_checkpoints_go(trained, rows, monkeypatch):
    settings, root, folder = trained
    monkeypatch.setattr(evaluation, "load_rows", lambda benchmark, folder: rows)
    monkeypatch.chdir(root)
    out = Paths("tiny").evaluation("baseline", 0)
    evaluation.evaluate_run(settings, "baseline", folder, out)
    assert sorted(path.name for path in out.iterdir()) == [
        "checkpoint-0", "checkpoint-5", "cv_bench.jsonl", "log.csv", "run.json", "scores.json",
    ]  # fmt: skip
    header, _ = read_answers(out / "checkpoint-0" / "cv_bench.jsonl")
    assert header["model"].startswith("stage1-l-v@")
    responses = [
        [row["response"] for row in read_answers(file)[1][0]]
        for file in (out / "cv_bench.jsonl", out / "checkpoint-0" / "cv_bench.jsonl")
    ]
    assert responses[0] == responses[1]


def test_probes_need_labels(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"labels\.npz is missing: probes need a world"):
        measurements.probe_images(tmp_path, 4)
