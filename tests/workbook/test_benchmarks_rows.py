"""Rows from official files; faults are listed together before anything runs."""

import gzip
import json
import shutil
from pathlib import Path

import numpy as np
import pandas
import pytest
from benchmark_files import DATA, MMVP, MMVP_HEADER, PHOTO, edit_lines, needs_data, picture, write_csv, write_official
from PIL import Image

from viral_core.templates import IMAGE_MARKER, TEMPLATES, prompt
from workbook.benchmarks import BENCHMARKS, load_rows, open_image, registry, score
from workbook.benchmarks.multiple_choice import mmstar_options

LETTER = "Answer with the option's letter from the given choices directly."


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    return write_official(tmp_path_factory.mktemp("benchmarks"))


@pytest.fixture
def root(original, tmp_path):
    return shutil.copytree(original, tmp_path / "benchmarks")


GOLDEN = {
    "cv_bench": "How many wine glasss are in the image? Select from the following choices.\n"
    f"(A) 0\n(B) 3\n(C) 2\n(D) 1\n{LETTER}",
    "mmvp": f"Are the wings open or closed?\n(a) Open (b) Closed\n{LETTER}",
    "whats_up_one": "Where is the cat in the photo? Answer with left, right, top or bottom.",
    "whats_up_two": "Where is the cat in relation to the bed? Answer with left, right, above or below.",
    "pope_random": "Is there a snowboard in the image?\nAnswer the question using a single word or phrase.",
    "pope_adversarial": "Is there a snowboard in the image?\nAnswer the question using a single word or phrase.",
    "pope_popular": "Is there a snowboard in the image?\nAnswer the question using a single word or phrase.",
    "mmstar": f"Which option is right?\nOptions: A: It is red, or so, B: two: yes, C: three, D: four\n{LETTER}",
    "mme": "Is there a train in this image? Please answer yes or no.",
}  # fmt: skip
ANSWERS = {
    "cv_bench": ["D", "B"],
    "mmvp": ["(a)", "(b)", "(a)", "(b)"],
    "whats_up_one": ["left", "right"],
    "whats_up_two": ["left", "right"],
    "pope_random": ["yes", "no"],
    "pope_popular": ["yes", "no"],
    "pope_adversarial": ["yes", "no"],
    "mmstar": ["B", "B"],
    "mme": ["yes", "no", "yes", "no"],
}
FIRST = {  # id, group and category of the first row
    "cv_bench": ("787", "/coco/val2017/000000412362.jpg", "Count"),
    "mmvp": ("1", "pair 1", ""),
    "whats_up_one": ("0", "397133", "one"),
    "whats_up_two": ("0", "397133", "two"),
    "pope_random": ("1", Path(PHOTO).name, "random"),
    "pope_popular": ("1", Path(PHOTO).name, "popular"),
    "pope_adversarial": ("1", Path(PHOTO).name, "adversarial"),
    "mmstar": ("0", "0", "math"),
    "mme": ("existence/0001.jpg#1", "existence/0001.jpg", "existence"),
}


@pytest.mark.parametrize("benchmark", BENCHMARKS)
def test_rows_and_golden_prompts(original, benchmark):
    rows = load_rows(benchmark, original)
    assert rows[0]["prompt"] == GOLDEN[benchmark]
    assert [row["answer"] for row in rows] == ANSWERS[benchmark]
    assert (rows[0]["id"], rows[0]["group"], rows[0]["category"]) == FIRST[benchmark]
    assert open_image(rows[0]["image"]).size == (8, 6)
    assert score(benchmark, [row | {"response": row["answer"]} for row in rows])["strict"] in (1, 400)


def test_golden_prompt_of_every_template():
    question = f"{IMAGE_MARKER}\n{GOLDEN['cv_bench']}"
    trained = (
        "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, "
        f"detailed, and polite answers to the user's questions. USER: <image>\n{GOLDEN['cv_bench']} ASSISTANT:"
    )
    texts = {name: prompt(template, question) for name, template in TEMPLATES.items()}
    assert texts == {"vicuna_v1": trained, "qwen": trained, "plain": "<image>"}


@pytest.mark.parametrize("header", ["lndex", "\ufeffIndex", "\ufefflndex"])
def test_mmvp_header_variants(root, header):
    write_csv(root / "mmvp" / "Questions.csv", MMVP, [header, *MMVP_HEADER[1:]])
    assert [row["id"] for row in load_rows("mmvp", root)] == ["1", "2", "3", "4"]


def test_mmvp_corrected_key_is_of_the_official_file_only(root):
    assert [r["corrected_answer"] for r in load_rows("mmvp", root)] == ANSWERS["mmvp"]
    (root / "manifest.json").write_text('{"mmvp": {"rows": 4, "swapped_keys": [3, 4]}}')
    swapped = load_rows("mmvp", root)
    assert [r["corrected_answer"] for r in swapped] == ["(a)", "(b)", "(b)", "(a)"]
    assert registry.EXPECTED["mmvp"] == {"rows": 300, "swapped_keys": [99, 100, 279, 280]}


def test_mmstar_options_in_both_styles(original):
    rows = load_rows("mmstar", original)
    assert rows[0]["options"] == ["It is red, or so", "two: yes", "three", "four"]
    assert rows[1]["options"] == ["one", "two", "three", "four"]
    assert mmstar_options("What is it? Choices: (A) yes (B) no") == ["yes", "no", "", ""]
    assert mmstar_options("What is it?") == ["", "", "", ""]


@pytest.mark.parametrize(
    "question",
    [
        "What is it?\n(A) one\n(B) two (C) three\n(D) four",
        "What is it? A: one, B: two, C: three, D: four",
        "What is it?\nA. one\nB. two\nC. three\nD. four",
        "What is it?\nA) one\nB) two\nC) three\nD) four",
    ],
)
def test_mmstar_options_without_a_heading(question):
    assert mmstar_options(question) == ["one", "two", "three", "four"]


def test_official_totals_are_the_default(root):
    (root / "manifest.json").unlink()
    for benchmark in BENCHMARKS:
        with pytest.raises(ValueError, match="rows instead of"):
            load_rows(benchmark, root)
    totals = {name: expected["rows"] for name, expected in registry.EXPECTED.items()}
    assert totals == {
        "cv_bench": 1438, "mmvp": 300, "whats_up_one": 2247, "whats_up_two": 440, "pope_random": (3000, 2910),
        "pope_popular": 3000, "pope_adversarial": 3000, "mmstar": 1500, "mme": 2374,
    }  # fmt: skip
    assert sum(registry.EXPECTED["mme"]["categories"].values()) == 2374


@needs_data
@pytest.mark.parametrize(("benchmark", "n"), [("pope_random", 2910), ("pope_popular", 3000)])
def test_the_real_pope_files(tmp_path, benchmark, n):
    """The earlier file of random questions is for answers that were given to it; nothing new is asked of it."""
    shutil.copytree(DATA / "pope", tmp_path / "pope", copy_function=shutil.copyfile)
    file = tmp_path / "pope" / f"coco_{benchmark}.json"
    for line in file.read_text(encoding="utf-8").splitlines():
        path = tmp_path / "pope" / "val2014" / json.loads(line)["image"]
        if not path.exists():
            picture(path)
    rows = load_rows(benchmark, tmp_path, photos=False)
    assert (len(rows), len({row["group"] for row in rows})) == (n, 500)
    if n == 3000:
        assert len(load_rows(benchmark, tmp_path)) == n
    else:
        with pytest.raises(ValueError, match="2910 rows instead of 3000"):
            load_rows(benchmark, tmp_path)


def break_csv(root, rows):
    write_csv(root / "mmvp" / "Questions.csv", rows, MMVP_HEADER)


def edit_parquet(path, change):
    change(pandas.read_parquet(path)).to_parquet(path)


def cut_short(path):
    Image.effect_noise((256, 256), 50).convert("RGB").save(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def rewrite(path, encode):
    path.write_bytes(encode(path.read_text(encoding="utf-8")))


def as_list(text):
    return json.dumps([json.loads(line) for line in text.splitlines()]).encode()


def drop(text, column):
    lines = [json.loads(line) for line in text.splitlines()]
    del lines[1][column]
    return "".join(json.dumps(line) + "\n" for line in lines).encode()


POPE = "pope/coco_pope_random.json"
CSV = "mmvp/Questions.csv"
CV_BENCH, MMSTAR = "cv_bench/test_2d.parquet", "mmstar/mmstar.parquet"
MME = "mme/data/test-00000-of-00002-ab.parquet"
QUESTIONS = "whats_up/prompts/COCO_QA_one_obj_with_answer_four_options.jsonl"


@pytest.mark.parametrize(
    ("benchmark", "spoil", "said"),
    [
        ("pope_random", lambda r: (r / PHOTO).unlink(), r"row 1: image .*310196.jpg is missing; restore the image"),
        ("pope_random", lambda r: cut_short(r / PHOTO), r"row 2: image .* cannot be read \(.*truncated"),
        ("pope_random", lambda r: (r / PHOTO).write_text("x"), r"row 1: image .* cannot be read"),
        ("pope_random", lambda r: edit_lines(r / POPE, lambda x: [x[0], x[0]]),
         "(?s)row 1 occurs 2 times.*row 2 is missing; download"),
        ("pope_random", lambda r: edit_lines(r / POPE, lambda x: x[:1]), "coco_pope_random.json: 1 rows instead of 2"),
        ("pope_random", lambda r: edit_lines(r / POPE, lambda x: [x[0], x[1] | {"label": "nein"}]),
         "row 2: the answer is none of the options"),
        ("whats_up_one", lambda r: edit_lines(r / QUESTIONS, lambda x: x[:1]), "2 entries for 1 questions"),
        ("whats_up_one", lambda r: edit_lines(r / QUESTIONS, lambda x: [x[0], x[1] | {"id": 7}]), "row 1 is missing"),
        ("mmvp", lambda r: break_csv(r, [MMVP[0], MMVP[2], MMVP[1], MMVP[3]]), "not in the order of their numbers"),
        ("mmvp", lambda r: break_csv(r, [["", *MMVP[0][1:]], *MMVP[1:]]), "row 1: Index: Input should be"),
        ("mmvp", lambda r: break_csv(r, [[1, "Q", "Open, Closed", "(a)"], *MMVP[1:]]),
         "row 1: Options: .*'Open, Closed' are not"),
        ("cv_bench", lambda r: edit_parquet(r / CV_BENCH, lambda d: d.assign(answer="(E)")),
         "row 787: the answer is none"),
        ("cv_bench", lambda r: edit_parquet(r / CV_BENCH, lambda d: d.assign(task="Count")),
         "0 rows of category 'Relation' instead of 1"),
        ("mmstar", lambda r: edit_parquet(r / MMSTAR, lambda d: d.assign(image=None)), "no image"),
        ("cv_bench", lambda r: edit_parquet(r / CV_BENCH, lambda d: d.drop(columns="task")),
         "row 1 and 1 more: task: Field required; download"),
        ("cv_bench", lambda r: edit_parquet(r / CV_BENCH, lambda d: d.assign(choices=None)), "choices: Input should"),
        ("cv_bench", lambda r: (r / CV_BENCH).write_bytes(b"PAR1"), "test_2d.parquet is no readable parquet file"),
        ("mmstar", lambda r: edit_parquet(r / MMSTAR, lambda d: d.assign(question=[None, "x"])),
         "row 1: question: Input should be a valid string; download"),
        ("mmstar", lambda r: edit_parquet(r / MMSTAR, lambda d: d.assign(category="maths")),
         "row 0: unknown category 'maths'"),
        ("mmstar", lambda r: edit_parquet(r / MMSTAR, lambda d: d.assign(index=[0, 5])), "row 1 is missing"),
        ("mme", lambda r: edit_parquet(r / MME, lambda d: d[:1]),
         "existence/0001.jpg has 1 questions answered yes, not one Yes and one No"),
        ("mme", lambda r: edit_parquet(r / MME, lambda d: d.assign(answer="Yes")), "2 questions answered yes, yes"),
        ("mme", lambda r: edit_parquet(r / MME, lambda d: d.assign(category="x")), "unknown category 'x'"),
    ],
)  # fmt: skip
def test_faults_name_file_row_and_remedy(root, benchmark, spoil, said):
    spoil(root)
    with pytest.raises(ValueError, match=said) as error:
        load_rows(benchmark, root)
    assert str(root) in str(error.value)


@pytest.mark.parametrize(
    ("benchmark", "file", "encode"),
    [
        ("pope_random", POPE, lambda t: t.encode("utf-8-sig")),
        ("pope_random", POPE, lambda t: t.encode("utf-16")),
        ("pope_random", POPE, lambda t: t.replace("\n", "\r\n").encode()),
        ("pope_random", POPE, as_list),
        ("whats_up_one", QUESTIONS, as_list),
        ("whats_up_one", "whats_up/data/coco_qa_one_obj.json", lambda t: t.encode("utf-16")),
        ("mmvp", CSV, lambda t: t.encode("utf-8-sig")),
        ("mmvp", CSV, lambda t: t.encode("utf-16")),
        ("mmvp", CSV, lambda t: t.replace(",", ";").encode()),
    ],
)
def test_files_are_read_where_their_form_is_clear(root, original, benchmark, file, encode):
    rewrite(root / file, encode)
    rows, expected = load_rows(benchmark, root), load_rows(benchmark, original)
    assert [r["prompt"] for r in rows] == [r["prompt"] for r in expected]
    assert [r["answer"] for r in rows] == [r["answer"] for r in expected]


@pytest.mark.parametrize("separator", ["\u2028", "\u2029", "\u0085"])
def test_unicode_line_separators_do_not_break_lines(root, separator):
    rewrite(root / POPE, lambda text: text.replace("in the", f"in{separator}the").encode())
    assert load_rows("pope_random", root)[0]["question"] == f"Is there a snowboard in{separator}the image?"


def test_mmvp_as_a_spreadsheet_saves_it(root):
    rewrite(root / CSV, lambda text: text.replace("wings", "caf\u00e9\u2019s wings").encode("cp1252"))
    assert load_rows("mmvp", root)[0]["question"] == "Are the caf\u00e9\u2019s wings open or closed?"


@pytest.mark.parametrize(
    ("benchmark", "file", "encode", "said"),
    [
        ("pope_random", POPE, lambda t: gzip.compress(t.encode()), "compressed with gzip: unpack it"),
        ("pope_random", POPE, lambda t: t.encode("utf-16-le"), "UTF-16 without a byte order mark: save it as UTF-8"),
        ("pope_random", POPE, lambda t: t.replace("snow", "caf\u00e9").encode("cp1252"), "not UTF-8 .byte 0xe9"),
        ("pope_random", POPE, lambda t: json.dumps({"questions": t}, indent=1).encode(), "line 1: not json.*json list"),
        ("pope_random", POPE, lambda t: b"[" + t.encode(), "not valid json"),
        ("pope_random", POPE, lambda t: b"<!doctype html>", "a web page"),
        ("pope_random", POPE, lambda t: b"version https://git-lfs.github.com/spec/v1", "Git LFS pointer"),
        ("pope_random", POPE, lambda t: b'["x", null]', "row 1 and 1 more: the row: Input should be a valid dict"),
        ("pope_random", POPE, lambda t: drop(t, "label"), "row 2: label: Field required; download the file again"),
        ("pope_random", POPE, lambda t: t.replace("table", "\\ud83d").encode(), "row 2: text: .*unicode"),
        ("pope_random", POPE, lambda t: t.replace('"yes"', "null").encode(), "row 1: label: Input should"),
        ("whats_up_one", QUESTIONS, lambda t: drop(t, "answer"), "row 2: question.answer: Field required"),
        ("whats_up_one", "whats_up/data/coco_qa_one_obj.json", lambda t: b"[[1], 2]", "row 1: captions.1: Field req"),
        ("mmvp", CSV, lambda t: t.replace("Options,", "").encode(), "row 1 and 3 more: Options: Field required"),
        ("mmvp", CSV, lambda t: t.replace(",(b)\n3", "\n3").encode(), "row 2: Correct Answer: Input should"),
        ("mmvp", CSV, lambda t: t.replace("2,Are the", "2,Are, the").encode(), "row 2: more: Input should be None"),
        ("mmvp", CSV, lambda t: t.replace("2,Are the", '2,"Are" the').encode(), "line 3: broken quoting .*put"),
        ("mmvp", CSV, lambda t: t.replace("4,Are the", '4,"Are the').encode(), "line 5: broken quoting"),
    ],
)  # fmt: skip
def test_what_a_file_is_or_which_row_is_wrong(root, benchmark, file, encode, said):
    rewrite(root / file, encode)
    with pytest.raises(ValueError, match=said) as error:
        load_rows(benchmark, root)
    assert str(root / file) in str(error.value)


def test_broken_quoting_hides_no_further_row(root):
    rewrite(root / CSV, lambda t: t.replace("2,Are the", '2,"Are" the').replace("4,Are the", '4,"Are" the').encode())
    with pytest.raises(ValueError, match=r"(?s)line 3: broken quoting.*line 5: broken quoting"):
        load_rows("mmvp", root)


def test_photos_of_another_ending_and_of_16_bits(root):
    ramp = Image.fromarray(np.full((6, 8), 130 * 257, np.uint16))
    (root / PHOTO).unlink()
    ramp.save((root / PHOTO).with_suffix(".PNG"), "PNG")
    (row, _) = load_rows("pope_random", root)
    assert row["image"].endswith(".PNG")
    assert open_image(row["image"]).getpixel((4, 3)) == (130, 130, 130)
    Image.fromarray(np.full((6, 8), 0.5, np.float32)).save((root / PHOTO).with_suffix(".PNG"), "TIFF")
    with pytest.raises(ValueError, match="row 1: image .*cannot be read .pixels of mode F"):
        load_rows("pope_random", root)


def test_rows_without_photos(root):
    (root / PHOTO).unlink()
    edit_parquet(root / MMSTAR, lambda d: d.drop(columns="image"))
    assert len(load_rows("pope_random", root, photos=False)) == 2
    assert len(load_rows("mmstar", root, photos=False)) == 2


def test_all_faults_are_listed_together(root):
    break_csv(root, MMVP[:3])
    (root / "mmvp" / "MMVP Images" / "1.jpg").unlink()
    faults = ["3 rows instead of 4", "row 4 is missing; download the file again", "row 1: image .*1.jpg is missing"]
    with pytest.raises(ValueError, match=f"(?s)benchmark mmvp: 3 faults.*{'.*'.join(faults)}"):
        load_rows("mmvp", root)


@pytest.mark.parametrize("benchmark", BENCHMARKS)
def test_missing_files(tmp_path, benchmark):
    with pytest.raises(FileNotFoundError, match=f"{registry.family(benchmark)}.*(download|put)"):
        load_rows(benchmark, tmp_path)


def test_names_that_cannot_be_loaded(root):
    with pytest.raises(ValueError, match="load whats_up_one and whats_up_two"):
        load_rows("whats_up", root)
    with pytest.raises(ValueError, match="unknown benchmark"):
        load_rows("vqa", root)
