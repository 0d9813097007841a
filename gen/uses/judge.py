"""Judge samples by what a classifier of real images sees in them.

    samples, test, training = (predict(classifier, state, x) for x in (drawn, test_x, train_x))
    estimates = judge(samples, test, training)

Every measure compares samples with test examples. Most are functions of the classifier's features
[N, F], the others of its class probabilities [N, K]. No measure here is the FID of the literature,
whose features come from a network that was trained on ImageNet. Values can be compared only if
classifier, test examples and numbers of samples are the same. Equal numbers of training examples in
place of samples show the value that a perfect model would have (`floor`), and `mixture_samples`
gives the samples of a simple model.

Standard errors of the two distances are over samples and test examples. Precision, density and the
measures of samples alone have errors over the samples, recall and coverage over the test examples;
the other set is held fixed there.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gen import estimate, train
from gen.core import capabilities, facts, require
from gen.estimate import Estimate
from gen.uses.classifier import Classifier, Prediction

RESAMPLES = 50
"""Bootstrap resamples of the samples, from which some standard errors come."""
BLOCK = 1_000
"""Rows of a matrix of kernel values that are computed at a time: 80 MB beside 10,000 examples."""
WORKING_MEMORY = 64
"""Mebibytes of distances, at most, that scikit-learn computes at a time."""
NEAREST = 0.01
"""Share of the test examples, the ones nearest to the training set, that count as copies."""


def judge(
    samples: Prediction, test: Prediction, training: Prediction, seed: int = 0
) -> dict[str, Estimate]:
    """Return all measures that need no labels.

    Args:
      samples: predictions of the classifier for the samples.
      test: predictions for the test examples.
      training: predictions for the training examples.
      seed: the seed of the bootstrap.
    """
    return {
        "frechet_distance": frechet_distance(samples.features, test.features, seed),
        "kernel_distance": kernel_distance(samples.features, test.features),
        **precision_and_recall(samples.features, test.features),
        **density_and_coverage(samples.features, test.features),
        "vendi_score": vendi_score(samples.features, seed),
        "class_kl": reverse_kl(samples.labels, class_shares(test)),
        **memorisation(samples.features, test.features, training.features),
    }


def frechet_distance(samples: np.ndarray, test: np.ndarray, seed: int = 0) -> Estimate:
    """Return the Fréchet distance between the Gaussians of the same means and covariances,

        d² = |m₁ − m₂|² + tr(C₁ + C₂ − 2 (C₁ C₂)^½).

    Dowson & Landau 1982, https://doi.org/10.1016/0047-259X(82)90077-X; on features of ImageNet it
    is the FID of Heusel et al. 2017, https://arxiv.org/abs/1706.08500. Its expectation lies above
    the distance at infinitely many samples, since |·|² is convex and tr (C₁ C₂)^½ is concave, and
    the less so the more samples there are. The standard error is by bootstrap.

    Args:
      samples: features of the samples, [N, F].
      test: features of the test examples, [M, F].
      seed: the seed of the bootstrap.
    """
    from scipy.linalg import eigh, eigvalsh

    samples, test = np.asarray(samples, np.float64), np.asarray(test, np.float64)
    require(min(len(samples), len(test)) > 1, "a covariance takes two examples or more")

    def distance(x, y):
        c_x, c_y = _covariance(x), _covariance(y)
        # 1. C_x^½ from the eigenvectors of C_x. Rounding can take its eigenvalues below 0.
        values, vectors = eigh(c_x)
        root = (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T
        # 2. C_x C_y has the eigenvalues of the symmetric C_x^½ C_y C_x^½. The trace of its root is
        #    the sum of their roots.
        trace = np.sqrt(np.maximum(eigvalsh(root @ c_y @ root), 0)).sum()
        return ((x.mean(0) - y.mean(0)) ** 2).sum() + np.trace(c_x + c_y) - 2 * trace

    value, error = distance(samples, test), _bootstrap_error(distance, seed, samples, test)
    settings = {"test": len(test), "resamples": RESAMPLES}
    return Estimate(float(value), error, "upper bound", len(samples), settings)


def kernel_distance(samples: np.ndarray, test: np.ndarray) -> Estimate:
    """Return the squared maximum mean discrepancy with the cubic kernel k(x, y) = (x·y / F + 1)³,

        MMD² = mean_{i≠j} k(x_i, x_j) − 2 mean_{i,j} k(x_i, y_j) + mean_{i≠j} k(y_i, y_j).

    Bińkowski et al. 2018, https://arxiv.org/abs/1801.01401, who average over subsets; this is the
    mean over all pairs. It is unbiased for independent examples, and so can be negative. A test
    split that is stratified by class, such as the one of `digits`, lowers it. The standard error is
    by the jackknife: MMD² is taken without each of the samples and of the test examples in turn.

    Args:
      samples: features of the samples x, [N, F].
      test: features of the test examples y, [M, F].
    """
    x, y = np.asarray(samples, np.float64), np.asarray(test, np.float64)
    n, m = len(x), len(y)
    require(min(n, m) > 2, "a kernel distance takes three samples and three test examples or more")
    within_x = _kernel_sums(x, x) - (np.square(x).mean(1) + 1) ** 3  # Σ_{j≠i} k(x_i, x_j), [N]
    within_y = _kernel_sums(y, y) - (np.square(y).mean(1) + 1) ** 3  # Σ_{j≠i} k(y_i, y_j), [M]
    of_x, of_y = (
        _kernel_sums(x, y),
        _kernel_sums(y, x),
    )  # Σ_j k(x_i, y_j), [N]; Σ_j k(y_i, x_j), [M]
    value = within_x.sum() / (n * (n - 1)) + within_y.sum() / (m * (m - 1))
    value -= 2 * of_x.sum() / (n * m)

    def variance(within, across, others):
        """Return the jackknife's variance of MMD² over the rows of one set."""
        rows = len(within)
        # The terms of MMD² without row i, whose kernel values stand twice in the first sum.
        without = (within.sum() - 2 * within) / ((rows - 1) * (rows - 2))
        without -= 2 * (across.sum() - across) / ((rows - 1) * others)
        return (rows - 1) / rows * np.square(without - without.mean()).sum()

    error = math.sqrt(variance(within_x, of_x, m) + variance(within_y, of_y, n))
    return Estimate(float(value), error, "Monte Carlo", n, {"test": m})


def precision_and_recall(samples: np.ndarray, test: np.ndarray, k: int = 3) -> dict[str, Estimate]:
    """Return the precision and the recall of samples.

    The support of a set is estimated by a ball around each of its points, which reaches to the
    point's k-th neighbour in the set. `precision` is the share of samples in the support of the
    test examples, `recall` the share of test examples in the support of the samples (Kynkäänniemi
    et al. 2019, https://arxiv.org/abs/1904.06991, eq. 1 and 2).

    Args:
      samples: features of the samples, [N, F].
      test: features of the test examples, [M, F].
      k: the neighbour to which a ball reaches.
    """
    precise = _balls_around(samples, test, _radii(test, k)) > 0
    recalled = _balls_around(test, samples, _radii(samples, k)) > 0
    return {
        "precision": estimate.mean(precise, "Monte Carlo", neighbours=k, test=len(test)),
        "recall": estimate.mean(recalled, "Monte Carlo", neighbours=k, samples=len(samples)),
    }


def density_and_coverage(samples: np.ndarray, test: np.ndarray, k: int = 5) -> dict[str, Estimate]:
    """Return the density and the coverage of samples.

    Both use the balls around the test examples, which reach to their k-th neighbours, so that an
    outlying sample has no large ball. `density` is the number of balls around a sample divided by
    k, about 1 for samples of the true distribution; it can exceed 1. `coverage` is the share of
    balls with a sample inside (Naeem et al. 2020, https://arxiv.org/abs/2002.09797).

    Args:
      samples: features of the samples, [N, F].
      test: features of the test examples, [M, F].
      k: the neighbour to which a ball reaches.
    """
    radii = _radii(test, k)
    density = _balls_around(samples, test, radii) / k
    covered = nearest_distances(test, samples) <= radii
    return {
        "density": estimate.mean(density, "Monte Carlo", neighbours=k, test=len(test)),
        "coverage": estimate.mean(covered, "Monte Carlo", neighbours=k, samples=len(samples)),
    }


def vendi_score(samples: np.ndarray, seed: int = 0) -> Estimate:
    """Return the Vendi score, an effective number of different samples:

        exp(−Σ_i λ_i log λ_i),    λ the eigenvalues of K / N,    K_ij = cos(x_i, x_j).

    Friedman & Dieng 2022, https://arxiv.org/abs/2210.02410, definition 3.1. It is 1 for equal and N
    for orthogonal samples, and at most F. It measures diversity alone: samples of noise can have a
    large score. Few samples show less diversity than many. The standard error is by bootstrap.

    Args:
      samples: features of the samples, [N, F].
      seed: the seed of the bootstrap.
    """
    from scipy.linalg import eigvalsh

    x = np.asarray(samples, np.float64)
    length = np.linalg.norm(x, axis=1, keepdims=True)
    x = x / np.where(length == 0, 1, length)

    def score(directions):
        # X Xᵀ / N, [N, N], and Xᵀ X / N, [F, F], have the same eigenvalues except for zeros.
        values = eigvalsh(directions.T @ directions / len(directions))
        values = values[values > 0]
        return math.exp(-(values * np.log(values)).sum())

    error = _bootstrap_error(score, seed, x)
    return Estimate(score(x), error, "lower bound", len(x), {"resamples": RESAMPLES})


def class_shares(prediction: Prediction) -> np.ndarray:
    """Return the share of the examples that have each label as their most probable one, [K]."""
    counts = np.bincount(prediction.labels, minlength=prediction.probabilities.shape[1])
    return counts / counts.sum()


def reverse_kl(labels: np.ndarray, data_shares: np.ndarray) -> Estimate:
    """Return the divergence Σ_k p_k log(p_k / q_k) of the labels of samples from the data's labels.

    It is the mean of log(p_k / q_k) over the samples, and the spread of these values gives the
    standard error (delta method). It is infinite if samples have a label that the data lack. Its
    expectation lies above the divergence at infinitely many samples, by about (K − 1) / 2N.

    Args:
      labels: labels of the samples, [N], of which p are the shares.
      data_shares: q, [K].
    """
    shares = np.bincount(labels, minlength=len(data_shares)) / len(labels)
    with np.errstate(divide="ignore"):
        ratios = np.log(shares[labels]) - np.log(data_shares[labels])
    return estimate.mean(ratios, "upper bound")


def modes(labels: np.ndarray, data_shares: np.ndarray) -> dict[str, Estimate]:
    """Return the number of modes that samples of several labels have, and their reverse KL.

    A mode is a combination of C labels. In Stacked MNIST an image has a digit in each of its three
    channels, whose labels the classifier reads one by one, so there are 1,000 modes (Metz et al.
    2017, https://arxiv.org/abs/1611.02163). The channels of the data are independent. VEEGAN
    (Srivastava et al. 2017, https://arxiv.org/abs/1705.07761) and PacGAN (Lin et al. 2018,
    https://arxiv.org/abs/1712.04086) take 26,000 samples.

    Args:
      labels: C labels of each sample, [N, C].
      data_shares: the share of each label in one channel of the data, [K].

    Returns:
      `modes`, the number of modes with a sample, whose standard error is by the jackknife: a mode
      is lost without its only sample. `mode_kl`, the reverse KL of the modes.
    """
    n, channels = labels.shape
    k = len(data_shares)
    codes = np.asarray(np.ravel_multi_index(tuple(labels.T), (k,) * channels))
    counts = np.bincount(codes, minlength=k**channels)
    of_data = data_shares
    for _ in range(channels - 1):
        of_data = np.multiply.outer(of_data, data_shares)
    single = (counts == 1).sum()
    error = math.sqrt((n - 1) / n * single * (1 - single / n))
    found = Estimate(float((counts > 0).sum()), error, "lower bound", n, {"of": k**channels})
    return {"modes": found, "mode_kl": reverse_kl(codes, of_data.ravel())}


def memorisation(
    samples: np.ndarray, test: np.ndarray, training: np.ndarray
) -> dict[str, Estimate]:
    """Return how near samples come to the training examples, to be read beside test examples.

    Args:
      samples: features of the samples, [N, F].
      test: features of the test examples, [M, F].
      training: features of the training examples, [T, F].

    Returns:
      `neighbour_distance`, the mean distance of a sample to its nearest training example; of a
      model that copies it is far below the distance of test examples. `copies`, the share of
      samples that are nearer to a training example than all but `NEAREST` of the test examples are:
      about `NEAREST` for samples of the true distribution, 1 for copies of the training set.
    """
    distances = np.round(nearest_distances(samples, training), 6)  # of equal images exactly 0
    threshold = np.quantile(nearest_distances(test, training), NEAREST)
    return {
        "neighbour_distance": estimate.mean(distances, "Monte Carlo", training=len(training)),
        "copies": estimate.mean(distances < threshold, "Monte Carlo", threshold=float(threshold)),
    }


def labels_read_back(samples: Prediction, labels: np.ndarray) -> Estimate:
    """Return the share of samples whose most probable label is the one that they were drawn for.

    Args:
      samples: predictions of the classifier for the samples.
      labels: the labels that the model was given, [N].
    """
    return estimate.mean(samples.labels == labels, "Monte Carlo")


def trained_on_samples(
    model: Classifier,
    samples: Mapping[str, Any],
    test: Mapping[str, Any],
    steps: int,
    batch_size: int,
    seed: int = 0,
) -> Estimate:
    """Return the accuracy on test examples of a classifier that is trained on labelled samples.

    Ravuri & Vinyals 2019, https://arxiv.org/abs/1905.10887, call it the classification accuracy
    score. The standard error is over the test examples.

    Args:
      model: the classifier, its schedule of a length of `steps`; it is trained anew.
      samples: samples x with the labels that they were drawn for.
      test: test examples with their labels.
      steps: training steps.
      batch_size: samples in a step.
      seed: the seed of the training.
    """
    *_, last = train.fit(
        model,
        samples,
        steps=steps,
        batch_size=min(batch_size, len(samples["x"])),
        seed=seed,
        report_every=steps,
    )
    error = model.evaluate(last.carry.state, test, jax.random.key(0))["error"]
    assert error.per_example is not None
    return estimate.mean(1 - error.per_example, "exact", samples=len(samples["x"]), steps=steps)


def mixture_samples(
    x: np.ndarray, n: int, seed: int = 0, components: int = 30, dimensions: int = 40
) -> np.ndarray:
    """Draw samples of a simple model, to have their figures beside a model's, [n, *shape].

    It is a mixture of Gaussians with full covariances in the space of the leading principal
    components, by scikit-learn. Values are clipped to [0, 1].

    Args:
      x: training examples with values in [0, 1], [N, *shape].
      n: the number of samples.
      seed: the seed of the fit and of the draws.
      components: the number of Gaussians, at most; each has 20 examples or more.
      dimensions: the number of principal components, at most.
    """
    from sklearn.decomposition import PCA
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.mixture import GaussianMixture

    rows = np.asarray(x, np.float64).reshape(len(x), -1)
    axes = PCA(min(dimensions, *rows.shape), random_state=seed).fit(rows)
    count = max(1, min(components, len(rows) // 20))
    mixture = GaussianMixture(count, reg_covar=1e-3, max_iter=20, random_state=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # it need not be the best mixture
        mixture.fit(axes.transform(rows))
    drawn = axes.inverse_transform(mixture.sample(n)[0])
    drawn = np.random.default_rng(seed).permutation(drawn)  # they come by component
    return np.clip(drawn, 0, 1).astype(np.float32).reshape(-1, *np.shape(x)[1:])


def draw(
    model: Any, state: Any, n: int, seed: int, *, binary: bool = False, block: int = 500
) -> dict[str, np.ndarray]:
    """Draw samples to be judged: values in [0, 1], and labels of a model with classes.

    Labels are 0, 1, …, K − 1 in turn. Samples of binary pixels are draws: where `sample` returns
    means, as a VAE does, pixels are drawn with these means.

    Args:
      model: a model with `sample`.
      state: a state of it.
      n: the number of samples.
      seed: the seed of the draws.
      binary: whether the pixels are binary.
      block: samples at a time, which bounds the memory.

    Returns:
      `"x"`, [n, *shape], and `"label"`, [n], of a model with classes.
    """
    name = type(model).__name__
    require("sample" in capabilities(model), f"{name} has no method sample, so nothing to judge")
    classes, block = facts(model).classes, min(n, block)

    def sample(state, key, label):
        sample_key, pixel_key = jax.random.split(key)
        x = model.sample(state, sample_key, block, **({"label": label} if classes else {}))
        x = jnp.clip(x, 0, 1)
        return jax.random.bernoulli(pixel_key, x).astype(x.dtype) if binary else x

    key, run = train.streams(seed).sample, jax.jit(sample)
    label = np.arange(-(-n // block) * block, dtype=np.int32) % max(1, classes)
    with jax.default_matmul_precision("highest"):  # a GPU may otherwise round to TF32
        blocks = [
            np.asarray(run(state, jax.random.fold_in(key, first), label[first : first + block]))
            for first in range(0, n, block)
        ]
    drawn = {"x": np.concatenate(blocks)[:n]}
    return {**drawn, "label": label[:n]} if classes else drawn


def nearest_distances(x: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Return the Euclidean distance of each row of x [N, F] to the nearest of `others` [M, F]."""
    return nearest(x, others)[1]


def nearest(x: np.ndarray, others: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the index of the row of `others` [M, F] nearest to each row of x [N, F], and its
    Euclidean distance, each [N]."""
    from sklearn.metrics import pairwise_distances_argmin_min

    return pairwise_distances_argmin_min(x, others)


def _radii(x: np.ndarray, k: int) -> np.ndarray:
    """Return the distance of each row of x [N, F] to its k-th nearest other row, [N]."""
    from sklearn.neighbors import NearestNeighbors

    require(len(x) > k, f"{len(x)} examples have no {k}th neighbours: take more than {k}")
    search = NearestNeighbors(n_neighbors=k, algorithm="brute").fit(x)
    return search.kneighbors()[0][:, -1]  # which leaves out the row itself


def _balls_around(x: np.ndarray, centres: np.ndarray, radii: np.ndarray) -> np.ndarray:
    """Return the number of balls that contain each row of x.

    Args:
      x: [N, F].
      centres: [M, F].
      radii: [M].
    """
    from sklearn.metrics import pairwise_distances_chunked

    parts = pairwise_distances_chunked(x, centres, working_memory=WORKING_MEMORY)
    return np.concatenate([(distances <= radii[None]).sum(1) for distances in parts])


def _kernel_sums(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return Σ_j (x_i·y_j / F + 1)³ for each row of x [N, F], over the rows of y [M, F]."""
    starts = range(0, len(x), BLOCK)
    sums = [((x[i : i + BLOCK] @ y.T / x.shape[1] + 1) ** 3).sum(1) for i in starts]
    return np.concatenate(sums)


def _covariance(x: np.ndarray) -> np.ndarray:
    """Return the unbiased covariance of the rows of x [N, F], [F, F]."""
    centred = x - x.mean(0)
    return centred.T @ centred / (len(x) - 1)


def _bootstrap_error(statistic: Callable[..., float], seed: int, *sets: np.ndarray) -> float:
    """Return the standard deviation of a statistic of sets over `RESAMPLES` resamples of them.

    Args:
      statistic: maps the sets to a number.
      seed: the seed of the resamples.
      *sets: arrays [N, F], resampled independently.
    """
    rng = np.random.default_rng(seed)
    values = [
        statistic(*(x[rng.integers(0, len(x), len(x))] for x in sets)) for _ in range(RESAMPLES)
    ]
    return float(np.std(values, ddof=1))
