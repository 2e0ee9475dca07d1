"""A profile of a few runs, and answer files of which it is known what is right, without a model."""

from types import SimpleNamespace

import numpy as np

from viral_core.specs import Align, Residual
from workbook import paper
from workbook.benchmarks.answers import append, continue_file, settings
from workbook.paths import Paths
from workbook.sections import System

QUESTIONS = 60


def profile(**seeds):
    """A profile with the benchmarks CV-Bench, MMVP and POPE, and seeds of a few runs, which have the paper's names."""
    align = Align(teacher="dinov2")
    systems = {
        "baseline": System(),
        "viral": System(align=align),
        "residual-post": System(residual=Residual()),
        "qwen-baseline": System(language="qwen-7b"),
        "qwen-viral": System(language="qwen-7b", align=align),
        "siglip2-viral": System(vision="siglip2", align=align),
        "siglip2-baseline": System(vision="siglip2", align=align),
        "baseline-500": System(images=500),
        "viral-500": System(images=500, align=align),
    }
    systems |= {run: System(align=align) for run in paper.tables()["run"] if run not in systems}
    evaluation = SimpleNamespace(benchmarks=["cv_bench", "mmvp", "pope_random", "pope_popular", "whats_up_one"])
    asked = {"evaluation": evaluation, "learning_curve": SimpleNamespace(benchmarks=["cv_bench"])}
    return SimpleNamespace(name="tiny", runs=seeds, systems=systems, **asked, blocks=lambda run: 4)


def rows(benchmark, count=QUESTIONS):
    """Questions of a benchmark in the form that its module scores; POPE's files share their images."""
    rows = []
    for i in range(count):
        row = {"id": str(i), "question": f"question {i}", "group": f"group {i}", "options": ["yes", "no"],
               "category": benchmark.removeprefix("pope_"), "answer": "yes" if i % 3 else "no"}  # fmt: skip
        if benchmark == "cv_bench":
            row |= {"options": ["left", "right"], "answer": "AB"[i % 2], "category": ("Count", "Relation")[i % 2]}
            row |= {"source": ("ADE20K", "COCO")[i // 2 % 2]}
        if benchmark == "mmvp":
            row |= {"category": ""}
            row |= {"options": ["left", "right"], "answer": "(a)", "corrected_answer": "(a)", "group": f"pair {i // 2}"}
        rows.append(row)
    return rows


def write(root, run, benchmark, *right, seed=0, folder=""):
    """Answers of which those of `right` (booleans) are right, of one run, or of several sampled ones."""
    questions = rows(benchmark, len(right[0]))
    protocol = {"runs": len(right)} if len(right) > 1 else None
    header = settings(
        benchmark, questions, ["?"] * len(questions), model="m", template="t", max_new_tokens=4, protocol=protocol,
    )  # fmt: skip
    file = root / Paths("tiny").evaluation(run, seed) / folder / f"{benchmark}.jsonl"
    continue_file(file, header)
    (root / Paths("tiny").evaluation(run, seed) / "scores.json").touch()
    for number, sample in enumerate(right):
        wrong = {"yes": "no", "no": "yes"}
        texts = [
            row["answer"] if ok else wrong.get(row["answer"], "none") for row, ok in zip(questions, sample, strict=True)
        ]
        append(file, [row | {"run": number, "response": text} for row, text in zip(questions, texts, strict=True)])
    return file


def share(right, count=QUESTIONS, shift=0):
    """Booleans of which the first `right`, counted from `shift` on, are true."""
    return (np.arange(count) - shift) % count < right
