"""CKNNA against a loop over the published formula, and its properties."""

import math

import numpy as np
import pytest
import speed
import torch
from scipy.stats import ortho_group

from viral_core.measure.cknna import cknna, clamp_outliers


def loop_cknna(x, y, k):
    """The formula of the paper entry by entry, in float64 Python."""
    n = len(x)

    def kernel(features):
        unit = [row / math.sqrt(sum(v * v for v in row)) for row in np.asarray(features, dtype=float)]
        return [[math.fsum(unit[i] * unit[j]) for j in range(n)] for i in range(n)]

    def neighbours(matrix):
        return [set(sorted((j for j in range(n) if j != i), key=lambda j: -matrix[i][j])[:k]) for i in range(n)]

    def hsic(p, q):
        cross = math.fsum(p[i][j] * q[j][i] for i in range(n) for j in range(n))
        sums = math.fsum(map(math.fsum, p)) * math.fsum(map(math.fsum, q))
        product = math.fsum(p[i][j] * q[j][m] for i in range(n) for j in range(n) for m in range(n))
        return (cross + sums / ((n - 1) * (n - 2)) - 2 * product / (n - 2)) / (n * (n - 3))

    def masked(matrix, mask):
        return [[matrix[i][j] if j in mask[i] else 0.0 for j in range(n)] for i in range(n)]

    a, b = kernel(x), kernel(y)
    near_a, near_b = neighbours(a), neighbours(b)
    both = [one & other for one, other in zip(near_a, near_b, strict=True)]
    product = hsic(masked(a, near_a), masked(a, near_a)) * hsic(masked(b, near_b), masked(b, near_b))
    return hsic(masked(a, both), masked(b, both)) / (math.sqrt(product) + 1e-6) if product >= 0 else math.nan


def related(n, d=12, seed=0, noise=0.5):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, d))
    return x, (x + noise * rng.normal(size=(n, d))) @ rng.normal(size=(d, d + 3))


@pytest.mark.parametrize(("n", "k"), [(4, 2), (8, 3), (16, 10), (40, 5), (40, 39)])
def test_equals_the_formula_in_loops(n, k):
    for seed in range(3):
        x, y = related(n, seed=seed)
        assert float(cknna(x, y, k)) == pytest.approx(loop_cknna(x, y, k), abs=1e-12, nan_ok=True)


def test_itself_rotation_and_scale():
    x, y = related(60)
    rotation = ortho_group.rvs(12, random_state=0)
    assert float(cknna(x, x)) == pytest.approx(1, abs=1e-3)
    assert float(cknna(x @ rotation, y)) == pytest.approx(float(cknna(x, y)), abs=1e-9)
    assert float(cknna(7.5 * x, 0.01 * y)) == pytest.approx(float(cknna(x, y)), abs=1e-9)


def test_independent_data_score_near_zero():
    rng = np.random.default_rng(0)
    values = cknna(rng.normal(size=(5, 576, 64)), rng.normal(size=(5, 576, 64)))
    assert values.abs().max() < 0.03


def test_batch_equals_single_and_broadcasts_a_target():
    x = torch.randn(4, 20, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    values = cknna(x, x[0], k=4)
    assert values.tolist() == pytest.approx([float(cknna(layer, x[0], 4)) for layer in x], abs=1e-12)
    assert torch.equal(cknna(x.numpy(), x[0].numpy(), k=4), values)


def test_low_precision_is_computed_in_float32():
    x, y = related(50)
    half = torch.from_numpy(x).bfloat16(), torch.from_numpy(y).bfloat16()
    assert float(cknna(*half)) == pytest.approx(float(cknna(half[0].double(), half[1].double())), abs=1e-5)


def test_undefined_values_are_nan():
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(200, 4, 4, generator=generator, dtype=torch.float64) for _ in range(2))
    values = cknna(x, y, k=2)
    expected = [loop_cknna(a.numpy(), b.numpy(), 2) for a, b in zip(x, y, strict=True)]
    assert np.isnan(expected).any()
    assert values.numpy() == pytest.approx(np.array(expected), abs=1e-9, nan_ok=True)


@pytest.mark.parametrize(
    ("x", "y", "k", "message"),
    [
        (np.ones((5, 2)), np.ones((6, 2)), 2, "same samples"),
        (np.ones((5, 2)), np.ones((5, 2)), 5, "2 <= k < n"),
        (np.ones((5, 2)), np.ones((5, 2)), 1, "2 <= k < n"),
        (np.ones((3, 2)), np.ones((3, 2)), 2, "at least 4"),
        (np.ones(5), np.ones(5), 2, r"n, d\)"),
        (np.full((5, 2), np.nan), np.ones((5, 2)), 2, "not finite"),
    ],
)
def test_bad_input_is_refused(x, y, k, message):
    with pytest.raises(ValueError, match=message):
        cknna(x, y, k)


def test_clamp_is_the_order_statistic_per_representation():
    x = torch.from_numpy(np.random.default_rng(0).normal(size=(3, 20, 5)))
    x[1] *= 100
    for before, after in zip(x.numpy(), clamp_outliers(x, 0.95).numpy(), strict=True):
        bound = np.sort(np.abs(before), axis=None)[95]
        assert np.array_equal(after, np.clip(before, -bound, bound))
    assert clamp_outliers(x, 1) is x
    with pytest.raises(ValueError, match="quantile"):
        clamp_outliers(x, 0)


def test_clamp_undoes_a_massive_channel():
    """One channel with huge values decides every neighbour, until it is clamped."""
    x, _ = related(100, d=40)
    massive = torch.from_numpy(np.hstack([x, 1e3 * np.random.default_rng(1).normal(size=(100, 1))]))
    assert cknna(x, massive) < 0.3
    assert cknna(x, clamp_outliers(massive)) > cknna(x, massive) + 0.3


def test_the_benchmark_compares_with_the_formula_and_names_the_machine(monkeypatch):
    table = speed.time_cknna(sizes=(32, 64), d=8, k=5)
    assert table["n"].tolist() == [32, 64]
    assert table["processor"].str.len().min() > 0
    monkeypatch.setattr(speed, "transcribed_cknna", lambda *_: 0.0)
    with pytest.raises(ValueError, match="n = 32: cknna gives .*, the transcription 0.0"):
        speed.time_cknna(sizes=(32,), d=8, k=5)
