"""Intervals and p against scipy and exact counts, and against data where the answer is known."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from m2bert.errors import M2BertError
from m2bert.ranking.significance import Estimate, compare_systems, length_buckets


def one_task(**systems):
    """{"task": {system: {query: {"m": value}}}} of lists of values."""
    return {
        "task": {name: {f"q{i}": {"m": float(x)} for i, x in enumerate(values)} for name, values in systems.items()}
    }


def test_interval_is_that_of_scipy():
    values = np.random.default_rng(5).beta(2, 1, 150)
    ours = compare_systems(one_task(a=values)).overall["a"]["m"]
    theirs = stats.bootstrap((values,), np.mean, n_resamples=20000, method="percentile", rng=1).confidence_interval
    assert ours.mean == pytest.approx(values.mean(), abs=1e-12)
    # Two draws of 10,000: percentiles differ by a few hundredths of the interval.
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=0.05 * (theirs.high - theirs.low))
    assert (ours.difference, ours.p) == (None, None)


def test_p_is_that_of_all_sign_flips():
    """Six queries have 64 flips, which scipy counts one by one."""
    a, b = np.array([0.9, 0.8, 0.7, 0.6, 0.9, 0.4]), np.array([0.5, 0.7, 0.6, 0.65, 0.3, 0.35])
    exact = stats.permutation_test(
        (a, b), lambda x, y, axis: np.mean(x - y, axis=axis), permutation_type="samples", vectorized=True
    )
    found = compare_systems(one_task(base=b, new=a), "base").overall
    assert found["new"]["m"].difference == pytest.approx((a - b).mean(), abs=1e-12)
    assert found["new"]["m"].p == pytest.approx(exact.pvalue, abs=0.02)
    assert found["base"]["m"].difference is None


def test_p_tells_a_difference_from_none():
    generator = np.random.default_rng(0)
    base = generator.uniform(0, 1, 200)
    found = compare_systems(
        one_task(base=base, same=base, noise=base + generator.normal(0, 0.1, 200), better=base + 0.05), "base"
    ).overall
    assert found["same"]["m"].p == 1.0 and found["same"]["m"].difference == 0.0
    assert found["noise"]["m"].p > 0.05
    assert found["better"]["m"].p == pytest.approx(1 / 10001)


def test_tasks_count_once_and_do_not_disturb_each_other():
    small, large = one_task(a=[1.0, 0.0])["task"], one_task(a=[0.25] * 50)["task"]
    both = compare_systems({"small": small, "large": large})
    alone = compare_systems({"small": small})
    assert both.overall["a"]["m"].mean == pytest.approx((0.5 + 0.25) / 2)
    assert both.tasks["small"] == alone.tasks["small"] == {"a": {"m": Estimate(0.5, 0.0, 1.0)}}
    assert both.tasks["large"]["a"]["m"] == Estimate(0.25, 0.25, 0.25)
    # Half of the small task's interval of 0..1, shifted: only that task varies.
    assert (both.overall["a"]["m"].low, both.overall["a"]["m"].high) == (0.125, 0.625)
    assert compare_systems({"small": small, "large": large}) == both


def test_order_of_queries_does_not_matter():
    values = one_task(a=[0.1, 0.5, 0.9], b=[0.2, 0.2, 0.2])
    turned = {"task": {name: dict(reversed(rows.items())) for name, rows in values["task"].items()}}
    assert compare_systems(values, "b") == compare_systems(turned, "b")


def test_buckets_pool_the_queries_of_all_tasks_by_the_length_of_the_answer():
    values = {"x": one_task(a=[1.0, 0.5])["task"], "y": one_task(a=[0.0, 0.25])["task"]}
    tokens = {"x": {"q0": 2047, "q1": 2048}, "y": {"q0": 10, "q1": 32768}}
    buckets = length_buckets(values, tokens)
    assert [(bucket.name, bucket.num_queries, bucket.means["a"]["m"]) for bucket in buckets] == [
        ("<2k", 2, 0.5),
        ("2-8k", 1, 0.5),
        (">32k", 1, 0.25),
    ]


def test_bad_input_is_refused():
    values = one_task(a=[1.0], b=[1.0])
    del values["task"]["b"]["q0"]
    with pytest.raises(M2BertError, match="b must be scored on the same queries of task as a"):
        compare_systems(values)
    with pytest.raises(M2BertError, match="baseline must be one of a, got 'z'"):
        compare_systems(one_task(a=[1.0]), "z")
    with pytest.raises(M2BertError, match="must have the systems a, got b"):
        compare_systems({"one": one_task(a=[1.0])["task"], "two": one_task(b=[1.0])["task"]})
    with pytest.raises(M2BertError, match="at least one task"):
        compare_systems({})
