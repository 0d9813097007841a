"""Judge the codes of a model: a linear probe, nearest-neighbour retrieval and fine-tuning.

    estimates = probe(model, state, splits, "test", seed=0)

`splits` maps `"train"`, `"validation"` and the evaluated split to decoded examples with labels.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gen import checks, estimate, train
from gen.core import Batch, capabilities
from gen.estimate import Estimate
from gen.nets import MLP
from gen.optimize import Optimizer
from gen.uses import classifier
from gen.uses.classifier import Classifier

INVERSE_PENALTIES = (0.01, 0.1, 1.0, 10.0, 100.0, 1_000.0, 10_000.0)
"""Candidates for C, the inverse of the L2 penalty of logistic regression."""
SELECTION_ROWS = 10_000
"""Largest number of training rows on which C is selected."""
QUERIES = 2_000
"""Largest number of rows that retrieval asks for."""
DATABASE = 20_000
"""Largest number of training rows that retrieval searches."""
NEIGHBOURS = 10
"""Number of nearest neighbours that retrieval returns."""
ROUND_STEPS = 300
"""Smallest number of fine-tuning steps between two validations."""
FINE_TUNING_RATE = 2e-3
"""Adam's learning rate at the start of fine-tuning."""
DROPOUT_RATES = ((0.0, 0.0), (0.2, 0.5))
"""Candidates for the dropout rates of inputs and of hidden units in fine-tuning.

The second pair is the one of Srivastava et al. 2014,
https://jmlr.org/papers/v15/srivastava14a.html, which is too strong for codes of few units.
"""

Layer = tuple[jax.Array, jax.Array]
"""Weights [D, H] and biases [H] of x ↦ x W + c."""


def probe(
    model: Any, state: Any, splits: Mapping[str, Batch], split: str, seed: int
) -> dict[str, Estimate]:
    """Estimate how well labels are predicted from a model's codes and from the raw variables.

    Hyperparameters are selected on the validation split, so errors on that split are too low.
    Errors on the training split are too low as well, because each row retrieves itself.

    Args:
      model: a model with `encode` and without classes.
      state: a trained state of it.
      splits: decoded examples with labels; the splits train, validation and `split`.
      split: the name of the split to evaluate on.
      seed: the seed of fine-tuning, which shuffles the rows and draws the dropout.

    Returns:
      Estimates by name. A name that ends in `_raw` is for the raw variables.

      - `probe_error`, `probe_error_raw`: error rate of a linear classifier (`linear_error`).
      - `retrieval_precision`, `retrieval_precision_raw`: precision of the nearest training rows
        (`retrieval_precision`).
      - `tuned_error`: error rate of the model's sigmoid layers under a softmax layer, all trained
        on the labels (`tuned_error`). Only for a model with `layers`.

    Raises:
      UserError: the model has no codes, or is given the labels.
    """
    checks.check_probe(model)
    labels = {name: np.asarray(rows["label"]) for name, rows in splits.items()}
    raw = {name: _vectors(rows["x"]) for name, rows in splits.items()}
    codes = {name: encode_all(model, state, rows) for name, rows in splits.items()}
    estimates = {}
    for suffix, x in (("", codes), ("_raw", raw)):
        estimates[f"probe_error{suffix}"] = linear_error(x, labels, split)
        estimates[f"retrieval_precision{suffix}"] = retrieval_precision(
            x["train"], labels["train"], x[split], labels[split]
        )
    if "layers" in capabilities(model):
        estimates["tuned_error"] = tuned_error(model.layers(state), raw, labels, split, seed)
    return estimates


def encode_all(model: Any, state: Any, data: Mapping[str, Any], block: int = 1_000) -> np.ndarray:
    """Return the codes of all examples as vectors, [N, H].

    Args:
      model: a model with `encode`.
      state: a state of it.
      data: decoded examples, arrays [N, ...] by name.
      block: examples at a time, which bounds the memory.
    """
    encode = jax.jit(model.encode)
    starts = range(0, len(data["x"]), block)
    with jax.default_matmul_precision("highest"):  # a GPU may otherwise round to TF32
        blocks = [
            encode(state, {name: values[i : i + block] for name, values in data.items()})
            for i in starts
        ]
    return np.concatenate([_vectors(codes) for codes in blocks])


def linear_error(
    x: Mapping[str, np.ndarray], labels: Mapping[str, np.ndarray], split: str
) -> Estimate:
    """Return the error rate of multinomial logistic regression, which minimises

        ½ |V|² + C Σ_n −log softmax(V x_n + b)[label_n]

    over V and b. C is the candidate of `INVERSE_PENALTIES` with the lowest validation error after
    training on at most `SELECTION_ROWS` rows. The classifier is then trained on all rows.

    Args:
      x: inputs [N, D] of the splits train, validation and `split`.
      labels: labels [N] of the same splits.
      split: the name of the split to evaluate on.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    # The intercept takes up the mean, so the minimum stays. L-BFGS gets there in far fewer steps.
    mean = x["train"].mean(axis=0)
    x = {name: rows - mean for name, rows in x.items()}

    def wrong(inverse_penalty, training_rows, name):
        classifier = LogisticRegression(C=inverse_penalty, max_iter=1_000)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # the error is settled by then
            classifier.fit(x["train"][training_rows], labels["train"][training_rows])
        return np.not_equal(classifier.predict(x[name]), labels[name])

    some = _evenly_spaced(len(x["train"]), SELECTION_ROWS)
    best = min(INVERSE_PENALTIES, key=lambda c: wrong(c, some, "validation").mean())
    return estimate.mean(wrong(best, slice(None), split), "exact", C=best)


def retrieval_precision(
    x: np.ndarray, labels: np.ndarray, queries: np.ndarray, query_labels: np.ndarray
) -> Estimate:
    """Return the precision of nearest-neighbour retrieval by cosine similarity.

    The precision of a query is the share of its `NEIGHBOURS` nearest rows of x that have its label.
    Rows that tie for the last places share these places evenly. At most `QUERIES` queries and
    `DATABASE` rows are used, evenly spaced.

    Args:
      x: rows to search, [N, D].
      labels: their labels, [N].
      queries: rows to find neighbours of, [Q, D].
      query_labels: their labels, [Q].
    """
    asked, rows = _evenly_spaced(len(queries), QUERIES), _evenly_spaced(len(x), DATABASE)
    database, database_labels = _directions(x[rows]), labels[rows]
    nearest = min(NEIGHBOURS, len(rows))
    precisions = []
    for block in np.array_split(asked, -(-len(asked) // 500)):
        # Rounded, so that rows which are equally near have equal similarities.
        similarity = np.round(_directions(queries[block]) @ database.T, 6)
        last = np.partition(similarity, -nearest, axis=1)[:, -nearest, None]
        inside, tied = similarity > last, similarity == last
        places = nearest - inside.sum(axis=1, keepdims=True)
        weight = inside + tied * (places / tied.sum(axis=1, keepdims=True))
        relevant = query_labels[block, None] == database_labels
        precisions.append((weight * relevant).sum(axis=1) / nearest)
    settings = {"neighbours": nearest, "rows": len(rows)}
    return estimate.mean(np.concatenate(precisions), "exact", **settings)


def tuned_error(
    layers: Sequence[Layer],
    x: Mapping[str, np.ndarray],
    labels: Mapping[str, np.ndarray],
    split: str,
    seed: int,
    rounds: int = 40,
    batch_size: int = 100,
) -> Estimate:
    """Return the error rate of a `Classifier` that is fine-tuned from a model's layers.

    Early stopping keeps the state with the lowest validation error, which is taken after every
    round: after an epoch, or after `ROUND_STEPS` steps where an epoch is shorter. The dropout rates
    are the pair of `DROPOUT_RATES` with the lowest validation error. The learning rate falls from
    `FINE_TUNING_RATE` to 0 over all rounds.

    Args:
      layers: weights [D, H] and biases [H] of sigmoid layers, the first of the inputs.
      x: inputs [N, D] of the splits train, validation and `split`.
      labels: labels [N] of the same splits.
      split: the name of the split to evaluate on.
      seed: the seed that shuffles the rows and draws the dropout.
      rounds: the number of rounds of training.
      batch_size: training rows in a step.
    """
    data = {name: {"x": x[name], "label": labels[name]} for name in x}
    batch_size = min(batch_size, len(x["train"]))
    round_steps = max(len(x["train"]) // batch_size, ROUND_STEPS)
    steps = rounds * round_steps
    network = MLP(tuple(len(bias) for _, bias in layers), "sigmoid")
    undropped = Classifier(
        shape=x["train"].shape[1:],
        classes=1 + max(int(of_split.max()) for of_split in labels.values()),
        encoder=network,
        optimizer=Optimizer("adam", FINE_TUNING_RATE, schedule="cosine", decay_steps=steps),
    )

    def fine_tune(dropout):
        of_inputs, of_units = dropout
        encoder = network.clone(dropout=of_units)
        model = replace(undropped, encoder=encoder, input_dropout=of_inputs)
        carry = train.begin(model, data["train"], batch_size, seed, validated=True)
        carry = carry._replace(state=jax.jit(with_layers)(carry.state, layers))
        for progress in train.fit(
            model,
            data["train"],
            steps=steps,
            batch_size=batch_size,
            seed=seed,
            report_every=round_steps,
            start=(0, carry),
            validation=data["validation"],
            validate_every=round_steps,
        ):
            carry = progress.carry
        assert isinstance(carry.best, train.Best)
        return carry.best

    results = {dropout: fine_tune(dropout) for dropout in DROPOUT_RATES}
    dropout = min(results, key=lambda rates: float(results[rates].validation))
    best = results[dropout]
    # The error rate is taken without dropout and needs no key.
    error = undropped.evaluate(best.state, data[split], jax.random.key(0))["error"]
    return replace(error, settings={"steps": int(best.step), "dropout": list(dropout)})


def with_layers(state: classifier.State, layers: Sequence[Layer]) -> classifier.State:
    """Return the first state of a classifier with copies of a model's layers as its network."""
    encoder = {
        f"Dense_{i}": {"kernel": jnp.array(weight), "bias": jnp.array(bias)}
        for i, (weight, bias) in enumerate(layers)
    }
    return state._replace(params={**state.params, "encoder": encoder})


def _vectors(x: Any) -> np.ndarray:
    """Return [N, ...] as [N, D]."""
    x = np.asarray(x)
    return x.reshape(len(x), -1)


def _evenly_spaced(n: int, most: int) -> np.ndarray:
    """Return the indices of at most `most` of n rows, which may be in the order of their labels."""
    return np.arange(min(n, most)) * n // min(n, most)


def _directions(x: np.ndarray) -> np.ndarray:
    """Return the rows [N, D] scaled to length 1. Rows of zeros stay."""
    length = np.linalg.norm(x, axis=1, keepdims=True)
    return x / np.where(length == 0, 1, length)
