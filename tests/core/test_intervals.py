"""The interval routine: coverage with few seeds, agreement with textbook tests, clusters, strata, sums, p-values."""

import numpy as np
import pytest
from scipy import stats

from viral_core.measure.intervals import effects, interval, jackknife, p_difference, p_equivalence

RNG = np.random.default_rng


def samples(seeds: int, items: int, of_seeds: float, of_items: float, rest: float, number: int):
    """Crossed random effects around 0."""
    rng = RNG(7)
    for _ in range(number):
        yield (
            of_seeds * rng.normal(size=(seeds, 1))
            + of_items * rng.normal(size=(1, items))
            + rest * rng.normal(size=(seeds, items))
        )


@pytest.mark.parametrize("seeds", [3, 5, 10])
@pytest.mark.parametrize(("of_seeds", "of_items"), [(0.0, 1.0), (0.1, 1.0), (1.0, 1.0)])
def test_intervals_hold_the_truth_with_few_seeds(seeds, of_seeds, of_items):
    intervals = [interval(values) for values in samples(seeds, 60, of_seeds, of_items, 1.0, 400)]
    coverage = np.mean([one.low <= 0 <= one.high for one in intervals])
    # Two standard errors of the estimate are 0.024; a crosswise percentile bootstrap has 0.79 with 3 noisy seeds.
    assert 0.905 <= coverage <= 0.985
    decided = np.mean([one.p <= 0.05 for one in intervals])
    assert decided == pytest.approx(1 - coverage)


@pytest.mark.parametrize(("of_seeds", "of_items"), [(0.1, 0.3), (1.0, 1.0)])
def test_the_noise_that_more_runs_tell_makes_three_seeds_tell_more(of_seeds, of_items):
    """Its variance is that of a seed's statistic, the rest of its items included."""
    rng, noise = RNG(3), of_seeds**2 + 1 / 60
    drawn = list(samples(3, 60, of_seeds, of_items, 1.0, 400))
    known = [effects(values).interval((noise * rng.chisquare(40) / 40, 40)) for values in drawn]
    alone = [interval(values) for values in drawn]
    assert 0.925 <= np.mean([one.low <= 0 <= one.high for one in known]) <= 0.975
    assert np.mean([one.high for one in known]) < np.mean([one.high for one in alone])
    assert effects(drawn[0][:1]).interval((noise, 40)) == interval(drawn[0][:1])


@pytest.mark.parametrize("seeds", [3, 5])
def test_small_p_values_are_rare_where_nothing_is(seeds):
    """As often as they say: the many rows of a ledger are decided by these."""
    small = np.mean([interval(values).p <= 0.01 for values in samples(seeds, 60, 0.16, 0.35, 1.0, 2000)])
    assert small <= 0.012  # with the items' degrees of freedom where seeds agree: 0.022 of three, 0.016 of five


def test_known_cases_agree_with_the_textbook():
    items = RNG(0).normal(0.3, 1, 50)
    one, test = interval(items), stats.ttest_1samp(items, 0)
    assert (one.low, one.high) == pytest.approx(tuple(test.confidence_interval()))
    assert (one.p, one.n, one.clusters, one.seeds) == (pytest.approx(test.pvalue), 50, 50, 1)

    seeds = RNG(1).normal(0.05, 0.01, (4, 1))  # one number a seed
    several, test = interval(seeds), stats.ttest_1samp(seeds[:, 0], 0)
    assert (several.low, several.high) == pytest.approx(tuple(test.confidence_interval()))
    assert (several.df, several.seeds) == (pytest.approx(3), 4)


def test_undefined_values_are_left_out():
    values = RNG(0).normal(size=(2, 6))
    values[:, 3] = np.nan
    assert interval(values) == interval(np.delete(values, 3, axis=1))
    values[0, 1] = np.nan
    means = [np.nanmean(row) for row in values]
    assert interval(values).value == pytest.approx(np.mean(means))
    assert np.isnan(interval(np.full((2, 3), np.nan)).value)


@pytest.mark.parametrize("values", [[[0.25] * 5], [[1.0]], [[0.5] * 4, [0.5] * 4]])
def test_where_nothing_varies_there_is_no_interval(values):
    one = interval(values)
    assert one.value == values[0][0]
    assert np.isnan([one.low, one.high, one.p]).all()


def test_clusters_count_and_not_their_members():
    items = RNG(0).normal(size=(3, 20))
    doubled, clusters = np.repeat(items, 2, axis=1), np.repeat(np.arange(20), 2)
    alone, clustered = interval(items), interval(doubled, clusters)
    assert (clustered.low, clustered.high) == pytest.approx((alone.low, alone.high))
    assert (clustered.n, clustered.clusters) == (40, 20)
    assert interval(doubled).error < alone.error
    with pytest.raises(ValueError, match=r"2 clusters of values \(3, 20\)"):
        interval(items, [0, 1])


def test_a_ratio_of_sums_has_the_delta_methods_error():
    rng = RNG(0)
    right, total = rng.integers(0, 3, 200).astype(float), rng.integers(3, 6, 200).astype(float)
    tallies = {"": np.stack([right, total], -1)[None]}
    one = jackknife(lambda sums: {"share": sums[""][..., 0] / sums[""][..., 1]}, tallies, 200)["share"].interval()
    share = right.sum() / total.sum()
    delta = np.std((right - share * total) / total.mean(), ddof=1) / np.sqrt(200)
    assert one.value == share
    assert one.error == pytest.approx(delta, rel=0.01)


def test_strata_keep_their_sizes():
    rng = RNG(0)
    tallies = {"low": rng.normal(0, 1, (2, 30, 1)), "high": rng.normal(50, 1, (2, 30, 1))}
    mean = jackknife(lambda sums: {"mean": (sums["low"] + sums["high"])[..., 0] / 60}, tallies, 60)["mean"].interval()
    together = interval(np.concatenate([tallies["low"], tallies["high"]], 1)[..., 0])
    assert mean.value == pytest.approx(together.value)
    assert mean.error < together.error / 5  # the distance between the strata is no noise


def test_sums_share_their_seeds():
    rng = RNG(0)
    seeds = rng.normal(size=(5, 1))
    a, b = (seeds + 0.1 * rng.normal(size=(5, 40)) for _ in range(2))
    both = (effects(a) * 0.5).beside(effects(b) * 0.5).interval()
    assert both.value == pytest.approx((a.mean() + b.mean()) / 2)
    apart = np.hypot(interval(a).error, interval(b).error) / 2
    assert both.error == pytest.approx(apart * np.sqrt(2), rel=0.05)  # the seeds' noise does not average out
    assert (effects(a) + effects(a) * -1).interval().value == 0
    assert (effects(a) + effects(b) * -1).interval().error < 0.05
    with pytest.raises(ValueError, match="5 and 1 seeds are no pairs"):
        effects(a) + effects(b[:1])
    scaled = interval(a).scaled(-100)
    assert (scaled.low, scaled.high) == pytest.approx((-100 * interval(a).high, -100 * interval(a).low))


def test_p_values():
    one = interval(RNG(0).normal(0.3, 1, 50))
    at_bound = p_difference(one.value, one.error, one.df, one.low)
    assert at_bound == pytest.approx(0.05)
    # Two one-sided tests: the bound of the 90 % interval is where they turn.
    half = stats.t.ppf(0.95, one.df) * one.error
    assert p_equivalence(one.value, one.error, one.df, abs(one.value) + half) == pytest.approx(0.05)
    assert p_equivalence(5.0, 1.0, 30, 2.0) > 0.99
    assert p_equivalence(5.0, 1.0, 30, 2.0, threshold=5.0) == pytest.approx(stats.t.sf(2, 30))
