"""What a bench makes of numbers, against closed forms and published examples."""

import math

import numpy as np
import pytest

from doodl_cli.bench.metrics import frechet_distance, mean_distance, rms_difference
from doodl_cli.bench.statistics import (
    CONFIDENCE,
    agreement,
    bootstrap_mean,
    compare,
    count_wins,
    widen,
)


def test_an_interval_covers_the_mean_as_often_as_it_says():
    rng = np.random.default_rng(0)
    intervals = [bootstrap_mean(rng.normal(3, 2, 30)) for _ in range(100)]
    covered = sum(x.low <= 3 <= x.high for x in intervals)
    assert 88 <= covered <= 99
    width = np.mean([x.high - x.low for x in intervals])
    assert width == pytest.approx(2 * 1.96 * 2 / math.sqrt(30), rel=0.1)


def test_an_interval_of_few_prompts_covers_the_mean_as_often_as_it_says():
    rng = np.random.default_rng(0)
    intervals = [bootstrap_mean(rng.normal(3, 2, 12)) for _ in range(400)]
    missed = sum(not x.low <= 3 <= x.high for x in intervals)
    assert 14 <= missed <= 26  # 5 % are 20; without the widening 29 are missed
    assert widen(100) == pytest.approx(0.954, abs=5e-4)
    assert CONFIDENCE < widen(1000) < 0.951
    assert widen(2) < 1


def test_the_same_numbers_give_the_same_interval_and_equal_ones_no_width():
    values = [0.1, 0.5, -0.2, 0.4]
    assert bootstrap_mean(values) == bootstrap_mean(values)
    assert bootstrap_mean([2.0, 2.0]).high == bootstrap_mean([2.0]).low == 2.0
    assert not bootstrap_mean([0.0, 0.0]).excludes_zero
    assert bootstrap_mean([1.0, 1.1, 0.9]).excludes_zero


def test_methods_are_compared_on_the_prompts_that_both_have():
    found = compare({"a": 3, "b": 1, "c": 9}, {"b": 1, "a": 1, "d": 0})
    assert found.n_prompts == 2
    assert found.gain.mean == 1
    assert found.wins.mean == 0.75  # one win, one tie
    assert compare({"a": 1}, {"b": 1}) is None
    assert count_wins([2, 0, -1]).tolist() == [1, 0.5, 0]


def test_pairing_removes_what_prompts_differ_by():
    rng = np.random.default_rng(1)
    prompts = {str(i): x for i, x in enumerate(rng.normal(0, 100, 20))}
    better = {name: x + 1 + 0.1 * rng.normal() for name, x in prompts.items()}
    gain = compare(better, prompts).gain
    assert 0.9 < gain.low < gain.high < 1.1


def test_the_frechet_distance_of_gaussians_is_its_closed_form():
    rng = np.random.default_rng(2)
    z = rng.normal(size=(5000, 3))
    z = (z - z.mean(0)) @ np.linalg.inv(np.linalg.cholesky(np.cov(z.T)).T)  # covariance 1
    scale, shift = np.array([1.0, 2.0, 0.5]), np.array([1.0, 0.0, 2.0])
    expected = (shift**2).sum() + ((scale - 1) ** 2).sum()
    assert frechet_distance(z, z * scale + shift) == pytest.approx(expected, rel=1e-9)
    assert frechet_distance(z, z) == pytest.approx(0, abs=1e-9)


def test_the_frechet_distance_agrees_with_the_matrix_root_and_takes_few_pictures():
    from scipy.linalg import sqrtm

    rng = np.random.default_rng(3)
    a, b = rng.normal(size=(40, 6)) @ rng.normal(size=(6, 6)), rng.normal(size=(50, 6)) + 1
    c_a, c_b = np.cov(a.T), np.cov(b.T)
    root = sqrtm(c_a @ c_b).real
    plain = ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(c_a + c_b - 2 * root)
    assert frechet_distance(a, b) == pytest.approx(plain, rel=1e-8)
    assert math.isfinite(frechet_distance(a[:3], b[:2]))


def test_distances_of_pictures_and_embeddings():
    e = np.eye(3)
    assert mean_distance(e) == 1
    assert mean_distance([e[0], e[0], e[1]]) == pytest.approx(2 / 3)
    assert math.isnan(mean_distance(e[:1]))
    black, white = np.zeros((3, 2, 2), np.uint8), np.full((3, 2, 2), 255, np.uint8)
    assert rms_difference(black, white) == 1
    assert rms_difference(white, white) == 0


def test_agreement_is_that_of_krippendorffs_own_examples():
    two = [dict(enumerate(line)) for line in ("aabbdcccedda", "babbbccceddd")]
    assert agreement(two) == pytest.approx(0.692, abs=5e-4)  # section B
    four = ["123321412...", "1233224125.3", ".3332342251.", "12332441251."]
    raters = [{k: x for k, x in enumerate(line) if x != "."} for line in four]
    assert agreement(raters) == pytest.approx(0.743, abs=5e-4)  # section C


def test_agreement_without_chance_is_one_and_answers_nobody_shares_do_not_count():
    assert agreement([{"x": "l", "y": "r"}, {"x": "l", "y": "r", "z": "l"}]) == 1
    assert math.isnan(agreement([{"x": "l"}, {"y": "r"}]))
    assert math.isnan(agreement([{"x": "l"}, {"x": "l"}]))
    assert agreement([{"x": "l", "y": "r"}, {"x": "r", "y": "l"}]) < 0
