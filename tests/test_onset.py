"""Onsets of faults: false alarms, delays, and a series of known law."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import binom

from experiments.registry import EXPERIMENTS
from experiments.uses import anomaly
from experiments.uses import onset as command
from experiments.uses.base import Subject
from gen import data
from gen.core import UserError
from gen.data import generated
from gen.models.hmm import HMM, Gaussian
from gen.models.hmm.emissions import Normal, factor
from gen.models.hmm.model import Params
from gen.uses import onset
from gen.uses.anomaly import rank_of_threshold


@pytest.fixture(scope="module")
def sensors():
    return data.load("sensors")


@pytest.fixture(scope="module")
def law():
    """An HMM with the parameters from which `sensors` is drawn."""
    model = HMM(shape=(200, 6), states=3, emission=Gaussian(covariance="full"))
    state = jax.jit(model.init)(jax.random.key(0))
    spread = factor(jnp.asarray(generated.SENSOR_COVARIANCES))
    emission = Normal(jnp.asarray(generated.SENSOR_MEANS), spread)
    transition = jnp.log(jnp.asarray(generated.SENSOR_TRANSITION))
    return model, state._replace(params=Params(jnp.zeros(3), transition, emission))


def test_scores_of_steps_add_up_to_the_density_of_the_law(sensors, law):
    (model, state), x = law, sensors.test["x"][:5]
    scores = onset.step_scores(model, state, {"x": x, "length": np.full(5, 200)})
    assert scores.shape == (5, 200)
    np.testing.assert_allclose(scores.sum(1), -data.sensors_log_prob(x), rtol=1e-4)
    short = onset.step_scores(model, state, {"x": x, "length": np.full(5, 50)})
    np.testing.assert_allclose(short[:, :50], scores[:, :50], atol=1e-3)
    np.testing.assert_allclose(short[:, 50:], 0, atol=1e-5)


def test_the_law_finds_every_fault_soon_after_its_onset(sensors, law):
    """The scores are means of 10 steps. On average a decoupled sensor is found after 10 steps. A
    drift, which is a tenth of the sensor's noise in each step, is found after 28."""
    (model, state), test = law, sensors.test
    scores = onset.trailing_mean(onset.step_scores(model, state, test), 10)
    normal, faulty = np.flatnonzero(test["label"] == 0), np.flatnonzero(test["label"])
    alarms = onset.first_alarms(scores[faulty], scores[normal], rate=0.05)
    for fault, mean_delay in ((1, 32), (2, 13)):
        chosen = test["label"][faulty] == fault
        found = onset.detections(alarms[chosen], test["onset"][faulty][chosen], 200)
        assert found["found"].value >= 0.9
        assert found["found"].value + found["early"].value == 1
        assert 0 < found["delay"].value < mean_delay


def test_a_fault_leaves_the_steps_before_its_onset_unchanged(sensors):
    first, label = sensors.test["onset"], sensors.test["label"]
    np.testing.assert_array_equal(first < 200, label > 0)
    rng = np.random.default_rng(0)  # the same draws, without faults
    z = generated._draw_chains(550, 200, generated.SENSOR_TRANSITION, rng)
    factors, noise = rng.standard_normal((550, 200, 2)), rng.standard_normal((550, 200, 6))
    normal = generated.SENSOR_MEANS[z] + generated.SENSOR_NOISE * noise
    normal += np.einsum("ntif,ntf->nti", generated.SENSOR_LOADINGS[z], factors)
    for x, without, t in zip(sensors.test["x"], normal[250:], first, strict=True):
        np.testing.assert_allclose(x[:t], without[:t], rtol=1e-5, atol=1e-6)
        if t < 200:
            assert np.abs(x[t] - without[t]).max() > 1e-3


def test_a_decoupled_sensor_keeps_its_mean_and_its_variance(sensors):
    series, first = sensors.test["x"][sensors.test["label"] == 2], sensors.test["onset"]
    first = first[sensors.test["label"] == 2]
    d, other = generated.DECOUPLED, generated.DECOUPLED - 1
    after = np.concatenate([x[t:] for x, t in zip(series, first, strict=True)])
    before = np.concatenate([x[:t] for x, t in zip(series, first, strict=True)])
    assert after[:, d].mean() == pytest.approx(before[:, d].mean(), abs=0.1)
    assert after[:, d].std() == pytest.approx(before[:, d].std(), rel=0.1)
    apart = before[:, d] - before[:, other], after[:, d] - after[:, other]
    assert apart[1].std() > 1.1 * apart[0].std()


@pytest.mark.parametrize("rate", [0.05, 0.2])
def test_series_without_a_fault_raise_alarms_as_rarely_as_stated(rate):
    rng, trials, alarms = np.random.default_rng(0), 400, 0
    for _ in range(trials):  # one series each: series that share their normal ones are correlated
        scores = np.cumsum(rng.standard_normal((25, 12)), axis=1)  # steps depend on each other
        alarms += int(onset.first_alarms(scores[:1], scores[1:], rate)[0] < 12)
    expected = np.floor(rate * 25) / 25
    low, high = binom.interval(0.999, trials, expected)
    assert low <= alarms <= high


def test_first_alarms_and_their_delays():
    normal = np.tile(np.arange(4.0), (19, 1))  # the largest score is 3
    scores = np.array([[0, 4, 0, 4], [0, 0, 0, 0], [4, 0, 0, 0], [0, 3, 3, 5.0]])
    alarms = onset.first_alarms(scores, normal, rate=0.05)
    np.testing.assert_array_equal(alarms, [1, 4, 0, 3])
    found = onset.detections(alarms, np.array([1, 1, 2, 1]), 4)
    assert found["found"].value == 0.5
    assert found["early"].value == 0.25
    missed = np.mean(alarms == 4)
    assert found["found"].value + found["early"].value + missed == 1
    assert found["delay"].value == 1
    assert "delay" not in onset.detections(alarms[1:2], np.array([1]), 4)


@pytest.mark.parametrize(
    ("rate", "count", "rank"), [(0.29, 99, 29), (1 / 49, 48, 1), (0.05, 30, 1)]
)
def test_the_threshold_is_the_lowest_score_that_raises_an_alarm(rate, count, rank):
    assert rank_of_threshold(rate, count) == rank
    normal = np.arange(float(count))[:, None]
    alarms = onset.first_alarms(normal + 0.5, normal, rate)
    assert (alarms == 0).sum() == rank  # the scores above the one of this rank


def test_trailing_means_begin_where_there_are_enough_steps():
    scores = np.array([[1.0, 3.0, 5.0, 1.0]])
    np.testing.assert_array_equal(onset.trailing_mean(scores, 2), [[-np.inf, 2, 4, 3]])


def test_windows_are_put_together_to_the_series_that_they_are_cut_from(sensors):
    windows = data.load("sensors_windows")
    series, whole = command.series_of(windows), command.series_of(sensors)
    np.testing.assert_allclose(series.x, whole.x)
    np.testing.assert_array_equal(series.label, whole.label)
    np.testing.assert_array_equal(series.onset, whole.onset)
    last, where = windows.test["x"][:, -1, 0], (windows.test["series"], windows.test["step"])
    over_time = onset.on_series(last, where[0], where[1], 200)
    np.testing.assert_allclose(over_time[:, 7:], sensors.test["x"][:, 7:, 0])
    assert (over_time[:, :7] == -np.inf).all()


def test_charts_of_normal_steps_have_their_known_means():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((20, 500, 3))
    charts = onset.step_baselines(x, x)
    assert charts["all sensors together"].mean() == pytest.approx(3, rel=0.01)
    alone = ((x - x.mean((0, 1))) ** 2 / x.var((0, 1))).max(-1)
    np.testing.assert_allclose(charts["one sensor at a time"], alone, rtol=1e-5)


@pytest.mark.parametrize("name", ["hmm_sensors", "rbm_sensors"])
def test_the_command_finds_onsets(name):
    """Under an untrained model, on the test series of three normal ones and two with a fault."""
    experiment = EXPERIMENTS[name]
    dataset = data.load(experiment.data)
    number = dataset.test.get("series", np.arange(300))
    chosen = np.isin(number, (0, 1, 2, 200, 201))
    test = {key: values[chosen] for key, values in dataset.test.items()}
    if "series" in test:
        test["series"] = np.searchsorted((0, 1, 2, 200, 201), test["series"])
    dataset = replace(dataset, test=test)
    experiment = experiment.on(dataset).for_run()
    state = jax.jit(experiment.model.init)(jax.random.key(0))
    subject = Subject(name, experiment, dataset, {0: state}, 0, None)
    flags = anomaly.Flags(Path(name), false_alarm_rate=0.4)
    outcome: Any = anomaly.located(subject, flags)["onset"]
    record, rows, figure = outcome
    assert [(row["score"], row["fault"]) for row in rows] == [
        (score, fault)
        for score in ("the model", "one sensor at a time", "all sensors together")
        for fault in ("drift", "decoupled")
    ]
    assert (record["calibration_series"], record["tested_series"]) == (2, 3)
    assert len(figure.axes) == 6
    with pytest.raises(UserError, match="2 held-out normal series give no alarm"):
        anomaly.located(subject, anomaly.Flags(Path(name)))
