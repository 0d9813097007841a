"""The measures of samples, against closed forms and constructed sets."""

import json
from dataclasses import dataclass, replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.linalg import sqrtm

from experiments import table
from experiments.__main__ import main
from experiments.uses import judge as judging
from experiments.uses.base import load_subject
from gen.core import UserError
from gen.nets import MLP
from gen.optimize import Optimizer
from gen.uses import judge
from gen.uses.classifier import Classifier, Prediction


def with_moments(rng, n, mean, covariance):
    """Return points [n, F] whose mean and unbiased covariance are exactly the given ones."""
    z = rng.standard_normal((n, len(mean)))
    z -= z.mean(0)
    z = np.linalg.solve(np.linalg.cholesky(np.cov(z.T)), z.T).T
    return z @ np.linalg.cholesky(covariance).T + mean


def prediction(features, labels=None, classes=10):
    labels = np.zeros(len(features), int) if labels is None else labels
    return Prediction(np.asarray(features), np.eye(classes)[labels])


def test_the_frechet_distance_of_gaussians_is_the_closed_form(rng):
    means = np.array([0.0, 1.0, -1.0]), np.array([0.5, 1.0, 2.0])
    mixing = rng.standard_normal((3, 3)), rng.standard_normal((3, 3))
    covariances = [each @ each.T + np.eye(3) for each in mixing]
    x, y = (with_moments(rng, 50, m, c) for m, c in zip(means, covariances, strict=True))
    cross = np.real(np.asarray(sqrtm(covariances[0] @ covariances[1])))
    expected = np.sum((means[0] - means[1]) ** 2) + np.trace(sum(covariances) - 2 * cross)
    distance = judge.frechet_distance(x, y)
    assert distance.value == pytest.approx(expected)
    assert distance.kind == "upper bound"
    assert judge.frechet_distance(x, x).value == pytest.approx(0, abs=1e-9)


def test_the_frechet_distance_takes_features_that_are_constant(rng):
    x, y = rng.standard_normal((40, 2)), rng.standard_normal((40, 2))
    constant = np.zeros((40, 3))
    wide_x, wide_y = np.hstack([x, constant]), np.hstack([y, constant])
    expected = judge.frechet_distance(x, y).value
    assert judge.frechet_distance(wide_x, wide_y).value == pytest.approx(expected, abs=1e-6)


def test_the_error_of_the_frechet_distance_is_its_spread_over_both_sets(rng):
    distances = [
        judge.frechet_distance(rng.standard_normal((400, 2)) + 0.5, rng.standard_normal((100, 2)))
        for _ in range(30)
    ]
    spread = np.std([each.value for each in distances], ddof=1)
    assert np.mean([each.stderr for each in distances]) == pytest.approx(spread, rel=0.4)


def test_the_kernel_distance_is_the_mean_over_pairs_and_its_error_the_jackknife(rng):
    x, y = rng.standard_normal((6, 3)), rng.standard_normal((5, 3)) + 1

    def distance(x, y):
        def mean(a, b, apart):
            pairs = [(u, v) for i, u in enumerate(a) for j, v in enumerate(b) if i != j or apart]
            return np.mean([(u @ v / 3 + 1) ** 3 for u, v in pairs])

        return mean(x, x, False) - 2 * mean(x, y, True) + mean(y, y, False)

    estimate = judge.kernel_distance(x, y)
    assert estimate.value == pytest.approx(distance(x, y))
    of_x = np.array([distance(np.delete(x, i, axis=0), y) for i in range(6)])
    of_y = np.array([distance(x, np.delete(y, i, axis=0)) for i in range(5)])
    variance = 5 / 6 * ((of_x - of_x.mean()) ** 2).sum() + 4 / 5 * ((of_y - of_y.mean()) ** 2).sum()
    assert estimate.stderr == pytest.approx(np.sqrt(variance))


def test_the_kernel_distance_of_gaussians_is_the_closed_form(rng):
    """The cubic kernel of one feature is 1 + 3 xy + 3 x²y² + x³y³, so MMD² compares moments."""
    mean, deviation = 0.3, 1.2
    moments = np.array([mean, mean**2 + deviation**2, mean**3 + 3 * mean * deviation**2])
    expected = np.array([3, 3, 1]) @ (moments - np.array([0, 1, 0])) ** 2
    x = mean + deviation * rng.standard_normal((3_000, 1))
    y = rng.standard_normal((3_000, 1))
    estimate = judge.kernel_distance(x, y)
    assert abs(estimate.value - expected) < 4 * estimate.stderr
    assert estimate.stderr < 0.5 * expected


def test_blocks_change_no_kernel_distance(rng, monkeypatch):
    x, y = rng.standard_normal((70, 3)), rng.standard_normal((50, 3))
    whole = judge.kernel_distance(x, y).value
    monkeypatch.setattr(judge, "BLOCK", 16)
    assert judge.kernel_distance(x, y).value == pytest.approx(whole)


def of(estimates):
    return {name: estimate.value for name, estimate in estimates.items()}


def test_precision_and_recall_of_equal_nested_and_disjoint_sets(rng):
    wide, narrow = rng.uniform(-1, 1, (500, 2)), rng.uniform(-0.2, 0.2, (500, 2))
    assert of(judge.precision_and_recall(wide, wide)) == {"precision": 1, "recall": 1}
    inside = of(judge.precision_and_recall(narrow, wide))
    assert inside["precision"] > 0.95
    assert inside["recall"] < 0.1
    outside = of(judge.precision_and_recall(wide, narrow))
    assert (outside["precision"], outside["recall"]) == (inside["recall"], inside["precision"])
    assert of(judge.precision_and_recall(wide + 9, wide)) == {"precision": 0, "recall": 0}


def test_density_and_coverage_of_equal_nested_and_disjoint_sets(rng):
    wide, narrow = rng.uniform(-1, 1, (500, 2)), rng.uniform(-0.2, 0.2, (500, 2))
    other = of(judge.density_and_coverage(rng.uniform(-1, 1, (500, 2)), wide))
    assert other["density"] == pytest.approx(1, abs=0.15)
    # A ball reaches to the 5th neighbour, so that as many samples miss it with probability 2⁻⁵.
    assert other["coverage"] == pytest.approx(1 - 2**-5, abs=0.03)
    inside = of(judge.density_and_coverage(narrow, wide))
    assert inside["coverage"] < 0.15
    assert inside["density"] > 0.7
    assert of(judge.density_and_coverage(wide + 9, wide)) == {"density": 0, "coverage": 0}


def test_one_outlier_among_the_test_examples_raises_the_precision_more_than_the_density(rng):
    test = np.vstack([rng.standard_normal((300, 2)), [[60.0, 0.0]]])  # its ball holds all the rest
    far = rng.standard_normal((300, 2)) + np.array([40, 0])
    assert judge.precision_and_recall(far, test)["precision"].value > 0.9
    assert judge.density_and_coverage(far, test)["density"].value < 0.25


def test_the_vendi_score_counts_different_samples():
    assert judge.vendi_score(np.eye(7)).value == pytest.approx(7)
    assert judge.vendi_score(np.ones((7, 4))).value == pytest.approx(1)
    assert judge.vendi_score(np.repeat(np.eye(3), 5, axis=0)).value == pytest.approx(3)


def test_the_kl_of_constructed_labels():
    labels, shares = np.repeat([0, 1], [30, 10]), np.array([0.5, 0.25, 0.25])
    estimate = judge.reverse_kl(labels, shares)
    assert estimate.value == pytest.approx(0.75 * np.log(1.5))
    assert judge.reverse_kl(np.repeat([0, 1, 2], [20, 10, 10]), shares).value == pytest.approx(0)
    assert judge.class_shares(prediction(np.zeros((40, 1)), labels, 3)).tolist() == [0.75, 0.25, 0]


def test_modes_of_a_constructed_sample():
    labels = np.array([[0, 0, 0]] * 4 + [[1, 0, 0]] * 3 + [[2, 2, 2]])
    found = judge.modes(labels, np.full(3, 1 / 3))
    assert found["modes"].value == 3
    assert found["modes"].settings == {"of": 27}
    assert found["modes"].stderr == pytest.approx(7 / 8)  # one mode has a single sample of 8
    shares = np.array([4, 3, 1]) / 8
    assert found["mode_kl"].value == pytest.approx(shares @ np.log(27 * shares))
    every = np.stack(np.unravel_index(np.arange(1_000), (10, 10, 10)), axis=1)
    whole = judge.modes(every, np.full(10, 0.1))
    assert whole["modes"].value == 1_000
    assert whole["mode_kl"].value == pytest.approx(0)


def test_copies_of_the_training_set_are_detected(rng):
    training, test, drawn = (rng.standard_normal((800, 3)) for _ in range(3))
    honest = judge.memorisation(drawn, test, training)
    copied = judge.memorisation(training[:200] + 1e-6, test, training)
    of_test = judge.memorisation(test, test, training)
    assert copied["copies"].value == 1
    assert copied["neighbour_distance"].value < 1e-4
    assert of_test["copies"].value == pytest.approx(judge.NEAREST)
    assert honest["copies"].value < 0.04
    difference = honest["neighbour_distance"].value - of_test["neighbour_distance"].value
    assert abs(difference) < 4 * np.hypot(
        honest["neighbour_distance"].stderr, of_test["neighbour_distance"].stderr
    )


def test_the_order_of_the_rows_changes_no_measure(rng):
    labels = rng.integers(0, 10, 120)
    samples = prediction(rng.standard_normal((120, 4)) + 0.3, labels)
    test, training = (
        prediction(rng.standard_normal((n, 4)), rng.integers(0, 10, n)) for n in (100, 150)
    )

    def shuffled(seen):
        order = rng.permutation(len(seen.features))
        return Prediction(seen.features[order], seen.probabilities[order])

    first = of(judge.judge(samples, test, training))
    second = of(judge.judge(shuffled(samples), shuffled(test), shuffled(training)))
    assert first == pytest.approx(second)


def test_too_few_samples_are_refused(rng):
    few, many = rng.standard_normal((3, 2)), rng.standard_normal((10, 2))
    with pytest.raises(UserError, match="3 examples have no 3th neighbours"):
        judge.precision_and_recall(few, many)
    with pytest.raises(UserError, match="three samples"):
        judge.kernel_distance(few[:2], many)


@dataclass(frozen=True)
class Means:
    """A model that returns means, the same for each pixel of an image, by class if it has any."""

    classes: int = 0
    shape = (2, 2, 1)

    def sample(self, state, key, n, label=None):
        means = jax.random.uniform(key, (n,)) if label is None else label / 10
        return jnp.broadcast_to(means[:, None, None, None], (n, *self.shape))


def test_samples_of_binary_pixels_are_draws_and_labels_come_in_turn():
    grey = judge.draw(Means(), None, 7, 0, block=3)
    assert grey.keys() == {"x"}
    assert grey["x"].shape == (7, 2, 2, 1)
    assert len(np.unique(grey["x"])) == 7  # each block has a key of its own
    conditional = judge.draw(Means(classes=3), None, 7, 0, block=3)
    np.testing.assert_array_equal(conditional["label"], [0, 1, 2, 0, 1, 2, 0])
    np.testing.assert_allclose(conditional["x"][:, 0, 0, 0], conditional["label"] / 10)
    binary = judge.draw(Means(), None, 400, 0, binary=True)["x"]
    assert set(np.unique(binary)) == {0, 1}
    assert binary.mean() == pytest.approx(0.5, abs=0.1)


def test_labels_are_read_back():
    seen = prediction(np.zeros((4, 1)), np.array([0, 1, 2, 2]))
    assert judge.labels_read_back(seen, np.array([0, 1, 2, 3])).value == 0.75


def test_a_classifier_learns_from_samples_what_their_labels_say(rng):
    label = rng.integers(0, 2, 200).astype(np.int32)
    x = np.repeat(label[:, None], 3, axis=1) + rng.uniform(-0.3, 0.3, (200, 3))
    data = {"x": x.astype(np.float32), "label": label}
    model = Classifier((3,), 2, MLP((4,)), optimizer=Optimizer(learning_rate=0.02))
    right = judge.trained_on_samples(model, data, data, steps=150, batch_size=50)
    assert right.value > 0.95
    swapped = {**data, "label": 1 - label}
    assert judge.trained_on_samples(model, swapped, data, 150, 50).value < 0.05


def test_samples_of_the_mixture_have_the_moments_of_the_data(rng):
    x = np.clip(0.5 + 0.1 * rng.standard_normal((600, 2, 2, 1)) * [[[1], [0.5]]], 0, 1)
    drawn = judge.mixture_samples(x, 3_000)
    assert drawn.shape == (3_000, 2, 2, 1)
    np.testing.assert_allclose(drawn.mean(0), x.mean(0), atol=0.02)
    np.testing.assert_allclose(drawn.std(0), x.std(0), rtol=0.3)


@pytest.fixture(scope="module")
def judged(tmp_path_factory):
    """Judge a published model of binary digits, and return its record and the folder."""
    folder = tmp_path_factory.mktemp("judged")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert main(["judge", "rbm_tempered_digits", "--samples", "300"]) == 0
        record = json.loads((folder / "samples/rbm_tempered_digits/judge.json").read_text())
    return record


def test_the_command_judges_a_published_model_beside_its_anchors(judged):
    estimates = {name: each["value"] for name, each in judged["estimates"].items()}
    floor = {name: each["value"] for name, each in judged["anchors"]["train"].items()}
    assert judged["data"] == "digits"
    assert len(judged["classifier"]["sha256"]) == 64
    assert judged["classifier"]["accuracy"]["value"] > 0.8  # of drawn pixels
    assert floor.keys() == judged["anchors"]["mixture"].keys() == estimates.keys()
    assert floor["frechet_distance"] < estimates["frechet_distance"]
    assert floor["kernel_distance"] < estimates["kernel_distance"]
    assert floor["copies"] == 1
    assert judged["anchors"]["test"]["copies"]["value"] == pytest.approx(0.012, abs=0.005)
    assert sum(judged["per_seed"][0]["class_shares"]) == pytest.approx(1, abs=0.01)


def test_training_images_in_place_of_samples_are_near_the_test_images(judged):
    floor = judged["anchors"]["train"]
    for distance in ("frechet_distance", "kernel_distance"):
        assert floor[distance]["value"] < judged["anchors"]["mixture"][distance]["value"]
    assert floor["coverage"]["value"] > 0.9
    assert floor["density"]["value"] == pytest.approx(1, abs=0.2)


def test_a_judged_model_stands_in_the_results_beside_the_anchors(judged, tmp_path):
    for name, value in (("rbm_tempered_digits", 2.0), ("vae_digits", 1.0)):
        record = {**judged, "experiment": name}
        record["estimates"] = {**judged["estimates"]}
        record["estimates"]["frechet_distance"] = {
            **judged["estimates"]["frechet_distance"],
            "value": value,
        }
        (tmp_path / name).mkdir()
        (tmp_path / name / "judge.json").write_text(json.dumps(record))
    page = table.markdown(tmp_path).split("## Samples, judged by a classifier")[1]
    rows = [line.split(" | ")[0] for line in page.splitlines() if line.startswith("| ")][2:]
    assert rows == [
        "| *training examples*",
        "| *mixture of Gaussians*",
        "| *test examples*",
        "| `vae_digits`",
        "| `rbm_tempered_digits`",
    ]
    assert "300 samples against 250 test examples" in page


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["judge"], "no run"),
        (["judge", "nowhere"], "holds no run"),
        (["judge", "ae_mnist"], "has no method sample"),
        (["judge", "rbm_news"], "no classifier of news is published"),
        (["judge", "rbm_tempered_digits", "--classifier", "nothing"], "nothing is no published"),
        (["judge", "rbm_tempered_digits", "--classifier", "rbm_tempered_digits"], "no classifier"),
        (["judge", "rbm_tempered_digits", "--samples", "3"], "--samples is 3"),
    ],
)
def test_what_cannot_be_judged_is_refused_in_one_line(arguments, message, capsys, monkeypatch):
    monkeypatch.setattr(judging.data, "load", lambda *_: None)
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.splitlines()) == 1


def test_samples_of_another_shape_are_refused(digits, monkeypatch):
    subject = load_subject(Path("rbm_tempered_digits"))
    model = replace(subject.experiment.model, shape=(4, 4, 1))
    other = subject._replace(experiment=replace(subject.experiment, model=model))
    with pytest.raises(UserError, match=r"draws samples of shape \[4, 4, 1\]"):
        judging.load_judge(other)


def test_the_channels_of_stacked_samples_are_read_one_by_one(digits):
    subject = load_subject(Path("rbm_tempered_digits"))
    model = replace(subject.experiment.model, shape=(8, 8, 3))
    stacked = judging.load_judge(
        subject._replace(experiment=replace(subject.experiment, model=model))
    )
    assert stacked.stacked
    x = np.asarray(stacked.test["x"])
    triples = np.concatenate([x[:80], x[80:160], x[160:240]], axis=-1)
    labels = stacked.see(triples).labels.reshape(-1, 3)
    np.testing.assert_array_equal(labels.T.ravel(), stacked.seen_test.labels[:240])
    figures = judging.anchors(stacked, 300, False)
    assert figures["train"]["modes"].value > 200
    assert figures["train"]["mode_kl"].value < figures["mixture"]["mode_kl"].value
