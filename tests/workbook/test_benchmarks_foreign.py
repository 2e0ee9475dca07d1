"""Answer files of LLaVA's scripts, lmms-eval and VLMEvalKit, joined to official rows and scored."""

import shutil
from pathlib import Path

import pandas
import pytest
from benchmark_files import DATA, edit_lines, needs_data, write_lines, write_official
from typer.testing import CliRunner

from workbook.__main__ import app
from workbook.benchmarks import load_rows
from workbook.benchmarks.answers import append, continue_file
from workbook.benchmarks.foreign import score_files

POPE = ("adversarial", "popular", "random")  # the order of LLaVA's file


@pytest.fixture(scope="module")
def official(tmp_path_factory):
    root = write_official(tmp_path_factory.mktemp("official"))
    for folder in ("MMVP Images", "val2014", "val2017"):  # photos are not needed
        for path in root.rglob(folder):
            shutil.rmtree(path)
    return root


@pytest.fixture
def rows(official, tmp_path):
    return shutil.copytree(official, tmp_path / "rows")


def official_score(benchmark, file, rows):
    return score_files(benchmark, [file], rows)["official"].iloc[0]


def llava_pope(rows, right=POPE):
    """Answers with ids that are global over the three files, and the question file."""
    questions, answers = [], []
    for subset in POPE:
        for row in load_rows(f"pope_{subset}", rows, photos=False):
            number = len(questions) + 1
            question = {"question_id": number, "image": row["group"], "text": row["prompt"], "category": subset}
            questions.append(question)
            text = "Yes" if (row["answer"] == "yes") == (subset in right) else "No"
            answers.append({"question_id": number, "prompt": row["prompt"], "text": text, "model_id": "m"})
    write_lines(rows / "pope" / "llava_pope_test.jsonl", questions)
    write_lines(rows.parent / "answers.jsonl", answers)
    return rows.parent / "answers.jsonl"


def test_global_ids_of_llava_do_not_give_the_score_of_another_file(rows):
    file = llava_pope(rows, right=("random",))
    assert [official_score(f"pope_{s}", file, rows) for s in ("random", "popular", "adversarial")] == [1, 0, 0]
    assert official_score("pope", file, rows) == 0.5
    edit_lines(file, lambda answers: answers[::-1])
    assert official_score("pope_random", file, rows) == 1


def test_without_images_the_order_of_the_questions_decides(rows):
    file = llava_pope(rows)
    (rows / "pope" / "llava_pope_test.jsonl").unlink()
    with pytest.raises(ValueError, match="does not name the images"):  # the questions of three files are alike here
        official_score("pope_random", file, rows)
    edit_lines(
        rows / "pope" / "coco_pope_random.json",
        lambda lines: [line | {"text": line["text"].replace("image", "photo")} for line in lines],
    )
    edit_lines(file, lambda x: x[:4] + [a | {"prompt": a["prompt"].replace("image", "photo")} for a in x[4:]])
    assert official_score("pope_random", file, rows) == 1


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda x: x[:-1], "no answer to 1 of 2 questions, first to row 2, 'Is there a dining table"),
        (lambda x: [*x, x[4]], r"several answers to 1 of 2 questions, first to row 1 \(entry 5, entry 7\)"),
        (lambda x: [a | {"prompt": "What?"} for a in x], "does not name the images"),
        (lambda x: [{"id": 1}], "not every entry is an answer"),
        (lambda x: x[:1], "no answer to 2 of 2 questions"),  # it is of another of the three files
    ],
)
def test_partial_repeated_and_other_answers_are_refused(rows, change, said):
    file = llava_pope(rows)
    edit_lines(file, change)
    with pytest.raises(ValueError, match=said) as error:
        official_score("pope_random", file, rows)
    assert str(file) in str(error.value)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.jsonl", b"", "not every entry is an answer"),
        ("a.jsonl", b"[1, 2]", "not every entry is an answer"),
        ("a.jsonl", b"\x1f\x8b", "compressed with gzip"),
        ("a.xlsx", b"x", "cannot be read as xlsx"),
        ("a.tsv", b"", "cannot be read as tsv"),
        ("a.tsv", b"\xff\xfeq", "cannot be read as tsv"),
    ],
)
def test_files_of_another_kind_are_named(rows, tmp_path, name, content, said):
    file = tmp_path / name
    file.write_bytes(content)
    with pytest.raises(ValueError, match=said) as error:
        official_score("pope_random", file, rows)
    assert str(file) in str(error.value)


def test_an_answer_that_is_no_text_is_refused(rows):
    file = llava_pope(rows)
    edit_lines(file, lambda answers: [answer | {"text": None} for answer in answers])
    with pytest.raises(ValueError, match="entry 5 and 1 more hold no text"):
        official_score("pope_random", file, rows)


def docs(benchmark, rows):
    """Official rows as lmms-eval's docs name their columns."""
    names = {
        "pope_random": lambda r: {"question_id": r["id"], "image_source": Path(r["group"]).stem, "category": "random"},
        "mme": lambda r: {"question_id": r["group"], "category": r["category"]},
        "mmstar": lambda r: {"index": int(r["id"]), "category": r["category"]},
        "cv_bench": lambda r: {"idx": r["id"], "task": r["category"], "prompt": r["prompt"]},
        "mmvp": lambda r: {"Index": int(r["id"])},
    }
    for row in load_rows(benchmark, rows, photos=False):
        yield row, names[benchmark](row) | {"question": row["question"], "answer": row["answer"]}


BENCHMARKS = {"pope_random": 1, "mme": 400, "mmstar": 1, "cv_bench": 1, "mmvp": 1}


@pytest.mark.parametrize(("benchmark", "full"), BENCHMARKS.items())
@pytest.mark.parametrize("with_doc", [True, False])
def test_samples_of_lmms_eval(rows, tmp_path, benchmark, full, with_doc):
    samples = []
    for number, (row, doc) in enumerate(docs(benchmark, rows)):
        metric = {"acc": {"question_id": doc.get("question_id", number), "score": 1.0}}
        kept = {"doc": doc} if with_doc else {"input": f"{row['prompt']}\nAnswer briefly."}
        samples.append({"doc_id": number, "target": row["answer"], "resps": [[row["answer"]]]} | metric | kept)
    file = tmp_path / "samples_x.jsonl"
    write_lines(file, samples[::-1] if benchmark != "mme" or with_doc else samples)
    assert official_score(benchmark, file, rows) == full
    write_lines(file, [{k: v for k, v in s.items() if k != "resps"} | {"filtered_resps": ["?"]} for s in samples])
    assert score_files(benchmark, [file], rows)["strict"].iloc[0] == 0
    write_lines(file, samples[:-1])
    with pytest.raises(ValueError, match="no answer to 1|answers to"):
        official_score(benchmark, file, rows)


@pytest.mark.parametrize(
    ("benchmark", "suffix"), [*((name, "tsv") for name in BENCHMARKS), ("pope_random", "xlsx"), ("mmvp", "xlsx")]
)
def test_predictions_of_vlmevalkit(rows, tmp_path, benchmark, suffix):
    table = []
    for number, (row, doc) in enumerate(docs(benchmark, rows)):
        image = {"pope_random": doc.get("image_source"), "mme": row["group"]}.get(benchmark)
        question = row["question"].split("\nOptions:")[0].split("\nChoices:")[0]
        category = "adversarial,popular,random" if benchmark == "pope_random" else row["category"]
        cells = {"index": number, "question": question, "answer": "x", "category": category}
        table.append(cells | {"prediction": row["answer"]} | ({"image_path": image} if image else {}))
    file = tmp_path / f"predictions.{suffix}"

    def write(frame):
        if suffix == "xlsx":
            frame.to_excel(file, index=False)
        else:
            frame.to_csv(file, sep="\t", index=False)

    frame = pandas.DataFrame(table)
    write(frame)
    assert official_score(benchmark, file, rows) == BENCHMARKS[benchmark]
    write(frame.assign(prediction="N/A"))
    assert score_files(benchmark, [file], rows)["strict"].iloc[0] == 0
    write(pandas.concat([frame, frame[:1]]))
    with pytest.raises(ValueError, match="several answers|answered twice"):
        official_score(benchmark, file, rows)
    write(frame.drop(columns="prediction"))
    with pytest.raises(ValueError, match="not every entry is an answer"):
        official_score(benchmark, file, rows)


def own_answers(benchmark, rows, file, response=None, runs=1):
    questions = load_rows(benchmark, rows, photos=False)
    continue_file(file, {"benchmark": benchmark, "rows": len(questions), "runs": runs})
    answers = [r | {"run": run, "response": response or r["answer"]} for run in range(runs) for r in questions]
    append(file, answers[::-1])  # the workbook's answers stand in the order in which they were given
    return file


@pytest.mark.parametrize(("benchmark", "full"), (BENCHMARKS | {"whats_up_one": 1}).items())
def test_the_workbooks_own_answers(rows, tmp_path, benchmark, full):
    file = own_answers(benchmark, rows, tmp_path / "a.jsonl")
    assert official_score(benchmark, file, rows) == full
    file.write_text("".join(file.read_text(encoding="utf-8").splitlines(keepends=True)[:-1]), encoding="utf-8")
    with pytest.raises(ValueError, match="no answer to 1|answers to"):
        official_score(benchmark, file, rows)


def test_the_difference_of_two_files_is_paired(rows, tmp_path):
    good, bad = own_answers("mmvp", rows, tmp_path / "a.jsonl"), own_answers("mmvp", rows, tmp_path / "b.jsonl", "(a)")
    table = score_files("mmvp", [good, bad], rows)
    assert table.loc["pair", "official"] == 1
    assert table.loc["single", ["official", "strict"]].tolist() == [0.5, 0.5]
    with pytest.raises(ValueError, match="2 sampled runs: compare greedy answers"):
        score_files("mmvp", [own_answers("mmvp", rows, tmp_path / "c.jsonl", runs=2)], rows)
    with pytest.raises(FileNotFoundError, match="no answers at"):
        score_files("mmvp", [tmp_path / "none.jsonl"], rows)


def test_the_command(rows, tmp_path):
    file = own_answers("mmvp", rows, tmp_path / "a.jsonl", "(a)")
    result = CliRunner().invoke(app, ["score", "mmvp", str(file), "--rows", str(rows)])
    assert result.exit_code == 0
    assert f"4 questions of {rows}; 0.00% of the answers" in result.output
    assert "0.5" in result.output
    assert CliRunner().invoke(app, ["score", "vqa", str(file), "--rows", str(rows)]).exit_code == 1


@needs_data
@pytest.mark.parametrize("with_questions", [True, False])
def test_llava_13b_on_the_real_files(tmp_path, with_questions):
    folder = shutil.copytree(DATA / "pope", tmp_path / "pope", copy_function=shutil.copyfile)
    if not with_questions:
        (folder / "llava_pope_test.jsonl").unlink()
    for subset, expected in (("random", "0.8800687285223368"), ("popular", "0.8743333333333333")):
        arguments = ["score", f"pope_{subset}", str(folder / "answers_llava-v1.5-13b.jsonl"), "--rows", str(folder)]
        result = CliRunner().invoke(app, arguments)
        assert expected in result.output.splitlines()[1]
