"""Find anomalies by the scores of a model that was trained on normal examples.

    scores = score(model, state, {"x": x}, key)
    p = p_values(scores, score(model, state, {"x": held_out}, key))
    alarms = p <= 0.05

`held_out` are normal examples that neither trained nor selected the model. A model can have several
kinds of score (`kinds`); the default is its own `score`. In every kind, a higher score is stranger.
"""

from __future__ import annotations

import io
import math
import zlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike

from gen import estimate, train
from gen.core import METRIC_UNITS, UserError, capabilities, facts, require
from gen.data.arrays import row_sums
from gen.estimate import Estimate
from gen.uses.features import encode_all

RESAMPLES = 200
"""Bootstrap samples behind the standard error of an average precision."""

KINDS = {
    "default": "the model's own `score`",
    "log_prob": "−log p(x), exact, in nats",
    "reconstruction": "squared error of the reconstruction, the mean over variables",
    "mahalanobis": "squared Mahalanobis distance of the code from the codes of training examples",
    "complexity": "`score` in nats less the length of x under a lossless compressor",
}
"""The kinds of score that follow from other methods of a model. `scores` adds kinds of its own."""


def kinds(
    model: Any, state: Any, data: Mapping[str, ArrayLike], levels: int = 0
) -> tuple[str, ...]:
    """Return the kinds of score that `score` takes for a model.

    They are the kinds of `KINDS` whose methods the model has, and the names that `model.scores`
    returns. The kind `complexity` needs a `score` in nats, and examples with levels.

    Args:
      model: any model.
      state: a state of it.
      data: decoded examples, arrays [N, ...] by name; only their shapes matter.
      levels: number of levels of x; 0 for the number that the model states, if it does.
    """
    able = capabilities(model)
    unit = facts(model).metric_units.get("score", METRIC_UNITS["score"])
    needed = {
        "default": "score" in able,
        "log_prob": "log_prob" in able,
        "reconstruction": "reconstruct" in able,
        "mahalanobis": "encode" in able and not facts(model).sequences,
        "complexity": "score" in able and unit == "nats" and bool(levels or facts(model).levels),
    }
    names = [name for name in KINDS if needed[name]]
    if "scores" in able:
        row = {name: jnp.asarray(np.asarray(values)[:1]) for name, values in data.items()}
        names += jax.eval_shape(model.scores, state, row, jax.random.key(0))
    return tuple(names)


def check_kind(
    model: Any, state: Any, data: Mapping[str, ArrayLike], kind: str, levels: int = 0
) -> None:
    """Raise `UserError` unless `score` takes a kind of score for a model.

    Args:
      model: any model.
      state: a state of it, or its shapes by `jax.eval_shape`.
      data: decoded examples, arrays [N, ...] by name; only their shapes matter.
      kind: the kind of score.
      levels: number of levels of x; 0 for the number that the model states, if it does.
    """
    known, name = kinds(model, state, data, levels), type(model).__name__
    require(
        bool(known),
        f"{name} has no score of any kind: take a model with `score`, such as a VAE or an RBM",
    )
    require(kind in known, f"{name} has no score {kind!r}: choose one of {', '.join(known)}")


def score(
    model: Any,
    state: Any,
    data: Mapping[str, ArrayLike],
    key: jax.Array,
    kind: str = "default",
    reference: Mapping[str, ArrayLike] | None = None,
    levels: int = 0,
    block: int = 500,
) -> np.ndarray:
    """Return the score of every example, [N], higher for stranger examples.

    All examples share their draws, such as the noise of a denoising error: the score of an example
    depends on itself and on `key` alone, and examples do not differ by their luck.

    Args:
      model: a model.
      state: a trained state of it.
      data: decoded examples, arrays [N, ...] by name.
      key: the source of every draw, of a score that takes draws.
      kind: the kind of score, one of `kinds`.
      reference: decoded training examples, for the kind `mahalanobis`.
      levels: number of levels of x, for the kind `complexity`; 0 for the number that the model
        states, if it does.
      block: examples at a time, which bounds the memory.

    Raises:
      UserError: the model has no such score, or the reference is missing.
    """
    check_kind(model, state, data, kind, levels)
    if kind == "mahalanobis":
        if reference is None:
            raise UserError("the score mahalanobis needs training examples: give them as reference")
        codes, of_reference = (encode_all(model, state, rows) for rows in (data, reference))
        return mahalanobis(codes, of_reference)
    arrays = {name: np.asarray(values) for name, values in data.items()}
    program = _program(model, "default" if kind == "complexity" else kind, block)
    values = program(state, arrays, key)
    if kind == "complexity":
        return values - compressed_nats(np.asarray(data["x"]), levels or facts(model).levels or 0)
    return values


@train.keep_programs
def _program(model: Any, kind: str, block: int) -> Callable[..., np.ndarray]:
    """Return the compiled function from (state, data, key) to scores."""

    def of_row(state, batch, key):
        if kind == "default":
            return model.score(state, batch, key)
        if kind == "log_prob":
            return -model.log_prob(state, batch)
        if kind == "reconstruction":
            return jnp.mean((batch["x"] - model.reconstruct(state, batch)) ** 2)[None]
        return model.scores(state, batch, key)[kind]  # the compiler drops the other kinds

    return estimate.row_program(of_row, block)


def mahalanobis(codes: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Return (z − m)ᵀ S⁻¹ (z − m) of each code z, [N].

    m is the mean of the reference. S is its covariance, shrunk towards a multiple of the identity
    by Ledoit & Wolf 2004, https://doi.org/10.1016/S0047-259X(03)00096-4, so that it is invertible
    for few examples or units that do not vary.

    Args:
      codes: [N, H].
      reference: codes of training examples, [M, H].
    """
    from sklearn.covariance import LedoitWolf

    return LedoitWolf().fit(reference).mahalanobis(codes)


def compressed_nats(x: np.ndarray, levels: int) -> np.ndarray:
    """Return the length of each example under a lossless compressor, [N] nats.

    The score −log p(x) less this length is the one of Serrà et al. 2020,
    https://arxiv.org/abs/1909.11480, eq. 3: a simple image has a high likelihood under any model,
    and a compressor corrects for it.

    An image is compressed as PNG and as lossless JPEG 2000, any other example by zlib, and the
    shortest length counts. Headers have the same length for all examples.

    Deviations from Serrà et al. 2020:

    - No FLIF among the compressors, and zlib for examples that are no images.

    Args:
      x: decoded examples with values in [0, 1], [N, *shape].
      levels: number of levels of each variable.
    """
    values = np.round(np.asarray(x) * (levels - 1))
    # Spread over all bytes, so that a compressor of images meets black and white as 0 and 255.
    stored = np.round(values * (255 / (levels - 1))) if levels < 256 else values
    stored = stored.astype(np.uint8 if levels <= 256 else np.uint16)
    is_image = stored.ndim == 4 and stored.shape[-1] in (1, 3) and levels <= 256
    length = _image_bytes if is_image else (lambda row: len(zlib.compress(row.tobytes(), 9)))
    return np.array([length(row) for row in stored]) * 8 * math.log(2)


def _image_bytes(image: np.ndarray) -> int:
    """Return the number of bytes of an image [H, W, C] in the shorter of two lossless formats."""
    from PIL import Image

    sizes = []
    for options in ({"format": "PNG", "optimize": True}, {"format": "JPEG2000"}):
        file = io.BytesIO()
        Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).save(file, **options)
        sizes.append(file.tell())
    return min(sizes)


def p_values(scores: ArrayLike, calibration: ArrayLike) -> np.ndarray:
    """Return the conformal p-value of each score against n held-out normal scores, [N]:

        p = (1 + #{calibration ≥ score}) / (n + 1).

    If a normal example and the n held-out ones are exchangeable, then P(p ≤ α) ≤ α, whatever the
    model: an alarm at p ≤ α is false with a probability of at most α (Bates et al. 2023, "Testing
    for outliers with conformal p-values", https://arxiv.org/abs/2104.08279, section 1.2). The
    probability is over the held-out examples, too: alarms on many examples share them, so that
    their false-alarm rate can exceed α with one held-out set and stay below it with another.

    Args:
      scores: scores of the examples to test, [N].
      calibration: scores of normal examples that neither trained nor selected the model, [n].

    Raises:
      UserError: there are no calibration scores, or a score is not a number.
    """
    scores, calibration = np.asarray(scores, np.float64), np.asarray(calibration, np.float64)
    require(
        calibration.size > 0, "p-values need the scores of held-out normal examples: none given"
    )
    _check_numbers(scores, calibration)
    at_least = len(calibration) - np.searchsorted(np.sort(calibration), scores, side="left")
    return (1 + at_least) / (len(calibration) + 1)


def rank_of_threshold(rate: float, count: int) -> int:
    """Return k = ⌊rate (n + 1)⌋: p ≤ rate for scores above the k-th largest of the calibration.

    No score has so small a p-value if k is 0.

    Args:
      rate: largest p-value of an alarm.
      count: the number n of calibration scores.
    """
    return int(rate * (count + 1) + 1e-9)  # 0.29 · 100 is 28.999… in floating point


def discoveries(p: ArrayLike, rate: float) -> np.ndarray:
    """Return which examples of a batch the Benjamini–Hochberg procedure calls anomalies, [N].

    The expected share of normal examples among them is at most `rate`. Benjamini & Hochberg 1995,
    https://doi.org/10.1111/j.2517-6161.1995.tb02031.x; it holds for conformal p-values that share
    their calibration scores (Bates et al. 2023, https://arxiv.org/abs/2104.08279, theorem 2).

    Args:
      p: p-values of the examples, [N].
      rate: the false discovery rate, in (0, 1).
    """
    from scipy.stats import false_discovery_control

    return false_discovery_control(np.asarray(p)) <= rate


def auroc(scores: ArrayLike, anomalies: ArrayLike) -> Estimate:
    """Return the area under the ROC curve: P(score of an anomaly > score of a normal example).

    Ties count one half. The standard error is the one of DeLong, DeLong & Clarke-Pearson 1988,
    https://doi.org/10.2307/2531595: with V_i the share of the n normal scores below anomaly i, and
    W_j the share of the m anomalies above normal example j,

        stderr² = var(V) / m + var(W) / n.

    Args:
      scores: [N], higher for stranger examples.
      anomalies: whether each example is an anomaly, [N].

    Raises:
      UserError: all examples are normal, or all are anomalies, or a score is not a number.
    """
    from scipy.stats import rankdata
    from sklearn.metrics import roc_auc_score

    ranks, anomalies = ranked(scores, anomalies)
    m, n = anomalies.sum(), (~anomalies).sum()
    # The place among all less the place within its kind is the number of the other kind below it.
    place = rankdata(ranks)
    above = (place[anomalies] - rankdata(ranks[anomalies])) / n
    below = 1 - (place[~anomalies] - rankdata(ranks[~anomalies])) / m
    stderr = math.nan
    if min(m, n) > 1:
        stderr = math.sqrt(above.var(ddof=1) / m + below.var(ddof=1) / n)
    value = float(roc_auc_score(anomalies, ranks))
    return Estimate(value, stderr, "exact", len(ranks), {"anomalies": int(m)})


def average_precision(
    scores: ArrayLike, anomalies: ArrayLike, seed: int = 0, resamples: int = RESAMPLES
) -> Estimate:
    """Return the average precision, the mean precision over the recalls of all anomalies.

    The standard error is the standard deviation over bootstrap samples, in which anomalies and
    normal examples are drawn separately, as many as there are.

    Args:
      scores: [N], higher for stranger examples.
      anomalies: whether each example is an anomaly, [N].
      seed: the seed of the bootstrap samples.
      resamples: their number; below 2 there is no standard error.

    Raises:
      UserError: all examples are normal, or all are anomalies, or a score is not a number.
    """
    from sklearn.metrics import average_precision_score

    ranks, anomalies = ranked(scores, anomalies)
    rng, groups = np.random.default_rng(seed), [np.flatnonzero(a) for a in (anomalies, ~anomalies)]
    values = []
    for _ in range(resamples):
        rows = np.concatenate([rng.choice(group, len(group)) for group in groups])
        values.append(average_precision_score(anomalies[rows], ranks[rows]))
    # Rounded, so that perfect orders, whose sums differ by rounding alone, have no error.
    stderr = float(np.std(np.round(values, 12), ddof=1)) if resamples > 1 else math.nan
    value = float(average_precision_score(anomalies, ranks))
    settings = {"anomalies": int(anomalies.sum()), "resamples": resamples}
    return Estimate(value, stderr, "exact", len(ranks), settings)


def ranked(scores: ArrayLike, anomalies: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """Return the ranks of the scores, equal for ties, and the anomalies as Booleans, [N] each.

    The ROC curve, the AUROC and the average precision depend on the order of the scores alone. A
    score of float32 can be infinite for an example that is far from the training examples. Such
    scores share the highest rank.

    Args:
      scores: [N], higher for stranger examples.
      anomalies: whether each example is an anomaly, [N].

    Raises:
      UserError: all examples are normal, or all are anomalies, or a score is not a number.
    """
    from scipy.stats import rankdata

    scores, anomalies = np.asarray(scores, np.float64), np.asarray(anomalies).astype(bool)
    _check_numbers(scores)
    require(
        bool(anomalies.any()) and not anomalies.all(),
        "AUROC and average precision need both anomalies and normal examples: "
        f"{int(anomalies.sum())} of {len(anomalies)} are anomalies",
    )
    return rankdata(scores, "dense"), anomalies


def _check_numbers(*scores: np.ndarray) -> None:
    """Raise `UserError` if a score is NaN."""
    require(
        not any(np.isnan(each).any() for each in scores),
        "a score is not a number (NaN): train the model anew, or check the values of the examples",
    )


def repeats(rows: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Return which rows equal some row of the reference, [N].

    A test row that repeats a training row says nothing about rows that the model has not met. Rows
    are compared by their values, at the precision of a reference of floats: the types of both can
    differ, and −0 equals 0.

    Args:
      rows: stored examples, [N, ...].
      reference: stored examples of the same shape, [M, ...].
    """
    common = reference.dtype if reference.dtype.kind == "f" else np.dtype(np.float64)
    known = set(row_sums(reference.astype(common)))
    return np.array([each in known for each in row_sums(rows.astype(common))], bool)
