"""Spatial entropy against connected components found one map at a time, and its properties."""

import math

import numpy as np
import pytest
import torch
from skimage.measure import label

from viral_core.measure.attention import spatial_entropies


def reference(attention, threshold, renormalise):
    """The definition, with scikit-image's components."""
    if renormalise:
        attention = attention / attention.sum()
    peaks = np.maximum(attention - attention.mean(), 0)
    components = label(peaks > threshold, connectivity=2)
    shares = [peaks[components == c].sum() / peaks.sum() for c in range(1, components.max() + 1)]
    return -sum(share * math.log(share) for share in shares)


@pytest.mark.parametrize(("threshold", "renormalise"), [(0.0, True), (1e-3, False), (0.005, True)])
def test_a_stack_equals_the_definition_map_by_map(threshold, renormalise):
    maps = np.random.default_rng(0).exponential(size=(2, 3, 4, 12, 9)) ** 3
    maps *= 0.2 / maps.sum((-2, -1), keepdims=True)  # a fifth of the attention is on the image
    got = spatial_entropies(maps, threshold, renormalise)
    assert got.shape == (2, 3, 4)
    for index in np.ndindex(got.shape):
        assert got[index] == pytest.approx(reference(maps[index], threshold, renormalise), abs=1e-12)


@pytest.mark.parametrize("m", [1, 2, 3, 9])
def test_equal_blobs_give_ln_m(m):
    attention = np.zeros((24, 24))
    for i, j in list(np.ndindex(3, 3))[:m]:
        attention[8 * i : 8 * i + 2, 8 * j : 8 * j + 3] = 0.3
    assert spatial_entropies(attention) == pytest.approx(math.log(m), abs=1e-12)
    assert spatial_entropies(torch.from_numpy(attention).float()) == pytest.approx(math.log(m), abs=1e-6)


def test_diagonal_neighbours_are_one_component_and_neighbouring_maps_are_not():
    corner = np.zeros((4, 4))
    corner[0, 0] = corner[1, 1] = 1
    assert spatial_entropies(corner) == 0
    other = np.zeros((4, 4))
    other[0, 0] = other[3, 3] = 1
    assert spatial_entropies(np.stack([corner, corner, other])) == pytest.approx([0, 0, math.log(2)])


def test_scale_matters_to_the_raw_reading_only():
    attention = np.random.default_rng(0).exponential(size=(24, 24))
    attention /= attention.sum()
    assert spatial_entropies(1e-3 * attention) == pytest.approx(spatial_entropies(attention), abs=1e-9)
    raw = {"threshold": 1e-3, "renormalise": False}
    assert spatial_entropies(attention, **raw) > 1
    assert spatial_entropies(1e-3 * attention, **raw) == 0  # the artefact: little attention reads as perfect focus


@pytest.mark.parametrize("value", [0, 0.1, 1 / 3])
def test_flat_attention_has_no_entropy(value):
    assert np.isnan(spatial_entropies(np.full((7, 7), value)))
    assert np.isnan(spatial_entropies(np.full((7, 7), value), 1e-3, False))
    peak = np.full((7, 7), value)
    peak[2, 2] = 1
    assert np.isnan(spatial_entropies(np.stack([np.full((7, 7), value), peak]))).tolist() == [True, False]


@pytest.mark.parametrize("bad", [np.ones(4), np.full((2, 2), np.nan), np.array([[0.5, -0.1], [0.2, 0.4]])])
def test_bad_maps_are_refused(bad):
    with pytest.raises(ValueError, match=r"H x W|non-negative"):
        spatial_entropies(bad)
