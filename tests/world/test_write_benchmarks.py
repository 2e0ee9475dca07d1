"""The embedded world's benchmarks load through the loaders of the official files, and an oracle scores everything."""

from collections import Counter

import numpy as np
import pytest

from workbook.benchmarks import load_rows, open_image, registry, score
from workbook.world import render as drawing
from workbook.world import write
from workbook.world.write_benchmarks import write_benchmarks

COUNTS = {
    "cv_bench": 23, "mmvp": 12, "whats_up_one": 9, "whats_up_two": 7, "pope_random": 26, "pope_popular": 20,
    "mmstar": 19, "mme": 22,
}  # fmt: skip


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """(folder, questions, the scenes that were drawn)."""
    drawn = []
    render = drawing.render
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(drawing, "render", lambda scene: (drawn.append(scene), render(scene))[1])
        folder = tmp_path_factory.mktemp("world") / "benchmarks"
        asked = write_benchmarks(folder, COUNTS, seed=1)
    return folder, asked, drawn


@pytest.mark.parametrize("benchmark", COUNTS)
def test_rows_load_with_the_prompts_that_were_taught_and_an_oracle_is_always_right(world, benchmark):
    folder, asked, _ = world
    rows = load_rows(benchmark, folder)
    assert len(rows) == COUNTS[benchmark]
    assert [row["prompt"] for row in rows] == [qa.text for qa in asked[benchmark]]
    assert open_image(rows[0]["image"]).size == (96, 96)
    result = score(benchmark, [row | {"response": qa.answer} for row, qa in zip(rows, asked[benchmark], strict=True)])
    full = 800 if benchmark == "mme" else 1
    assert (result["official"], result["strict"], result["unparsed"]) == (full, full, 0)
    spelled = [(registry.read(benchmark, [row | {"response": qa.answer}], "strict")[0], row["answer"])
               for row, qa in zip(rows, asked[benchmark], strict=True)]  # fmt: skip
    assert all(said == key for said, key in spelled)


def test_only_test_scenes_are_drawn(world):
    _, _, drawn = world
    assert len(drawn) > 50
    assert all(write.is_test(scene) for scene in drawn)


def test_mmvp_pairs_differ_in_one_cell_only(world):
    rows = load_rows("mmvp", world[0])
    for first, second in zip(rows[::2], rows[1::2], strict=True):
        assert first["prompt"] == second["prompt"]
        assert {first["answer"], second["answer"]} == {"(a)", "(b)"}
        a, b = (np.asarray(open_image(row["image"]), int) for row in (first, second))
        changed = np.abs(a - b).max(2).reshape(4, 24, 4, 24).mean((1, 3))
        assert (changed > 0.2 * changed.max()).sum() == 1  # JPEG blurs a little over the border


def test_proportions_of_the_originals(world):
    folder, _, _ = world
    assert Counter(r["category"] for r in load_rows("cv_bench", folder)) == {"Count": 13, "Relation": 10}
    for name in ("pope_random", "pope_popular"):
        rows = load_rows(name, folder)
        assert Counter(r["answer"] for r in rows) == {"yes": len(rows) / 2, "no": len(rows) / 2}
    shared = {r["group"] for r in load_rows("pope_popular", folder)} <= {
        r["group"] for r in load_rows("pope_random", folder)
    }
    assert shared
    assert sorted(Counter(r["category"] for r in load_rows("mmstar", folder)).values()) == [3, 3, 3, 3, 3, 4]
    mme = Counter(r["category"] for r in load_rows("mme", folder))
    assert mme == {"existence": 6, "count": 6, "position": 6, "commonsense_reasoning": 4}
    with pytest.raises(ValueError, match="rows instead of 1438"):
        load_rows("cv_bench", folder, expected=registry.EXPECTED["cv_bench"])


def test_the_same_seed_writes_the_same_files(world, tmp_path):
    folder, asked, _ = world
    again = write_benchmarks(tmp_path / "again", COUNTS, seed=1)
    assert again == asked
    for path in (p for p in folder.rglob("*") if p.is_file()):
        assert path.read_bytes() == (tmp_path / "again" / path.relative_to(folder)).read_bytes(), path
    other = write_benchmarks(tmp_path / "other", {"mmvp": 12}, seed=2)
    assert other["mmvp"] != asked["mmvp"]


@pytest.mark.parametrize(
    ("counts", "said"),
    [({"vqa": 4}, "unknown benchmark 'vqa'"), ({"mme": 7}, "even number"), ({"mmstar": 0}, "at least")],
)
def test_counts_that_cannot_be_written(tmp_path, counts, said):
    with pytest.raises(ValueError, match=said):
        write_benchmarks(tmp_path, counts, seed=0)
