"""PCA maps against a plain singular value decomposition."""

import numpy as np
import pytest
import torch

from viral_core.measure.pca import pca_map, pca_maps


def tokens(n=16, d=40, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, d)) * np.exp(-np.arange(d) / 4) + rng.normal(size=d)


def by_svd(stacked):
    """(N, 3) colours from LAPACK's full decomposition."""
    centred = stacked - stacked.mean(0)
    basis = np.linalg.svd(centred, full_matrices=False)[2][:3]
    basis = np.stack([row if row[np.abs(row).argmax()] > 0 else -row for row in basis])
    scores = centred @ basis.T
    spread = np.quantile(scores, 0.75, axis=0) - np.quantile(scores, 0.25, axis=0)
    return (np.tanh((scores - np.median(scores, axis=0)) / (spread + 1e-6)) + 1) / 2


def test_map_equals_a_full_decomposition():
    x = tokens()
    colours = pca_map(x)
    assert colours.shape == (4, 4, 3)
    assert colours.reshape(16, 3) == pytest.approx(by_svd(x), abs=1e-9)
    assert np.array_equal(pca_map(torch.from_numpy(x)), colours)


def test_signs_survive_what_flips_them_in_a_decomposition():
    """The order of the tokens and a shift do not change a token's colour."""
    x = tokens()
    order = np.random.default_rng(1).permutation(16)
    assert pca_map(x[order] + 5).reshape(16, 3) == pytest.approx(pca_map(x).reshape(16, 3)[order], abs=1e-9)


def test_shared_basis_is_that_of_all_tokens():
    layers = [tokens(seed=seed) * scale for seed, scale in ((0, 1), (1, 2), (2, 1))]
    shared = pca_maps(layers)
    assert np.concatenate([one.reshape(16, 3) for one in shared]) == pytest.approx(by_svd(np.vstack(layers)), abs=1e-9)
    assert not np.allclose(shared[1], pca_map(layers[1]), atol=0.05)


def test_tokens_that_are_all_alike_are_grey():
    assert np.array_equal(pca_map(np.ones((16, 8))), np.full((4, 4, 3), 0.5))


def test_bad_tokens_are_refused():
    with pytest.raises(ValueError, match="n_components=3"):
        pca_map(tokens(d=3))
    with pytest.raises(ValueError, match="infinity"):
        pca_map(np.where(np.eye(16, 8) > 0, np.inf, tokens(d=8)))
    with pytest.raises(ValueError, match="not a square"):
        pca_map(tokens(n=15))
    with pytest.raises(ValueError, match="dimension"):
        pca_maps([tokens(d=8), tokens(d=9)])
