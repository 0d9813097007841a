"""Judge the codes of a model: a linear probe, nearest-neighbour retrieval and fine-tuning.

    estimates = probe(model, state, splits, "test", seed=0)

`splits` maps `"train"`, `"validation"` and the evaluated split to decoded examples with labels.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from gen import estimate, optimize, train
from gen.core import Batch, Data, Density, Metrics, capabilities, replica_key
from gen.estimate import Estimate
from gen.optimize import AnyOptimizer, Optimizer

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
      model: a model with `encode`.
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
    """
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
    classifier = Classifier(
        hidden=tuple(len(bias) for _, bias in layers),
        classes=1 + max(int(of_split.max()) for of_split in labels.values()),
        shape=x["train"].shape[1:],
        optimizer=Optimizer("adam", FINE_TUNING_RATE, schedule="cosine", decay_steps=steps),
    )

    def fine_tune(dropout):
        model = replace(classifier, dropout=dropout)
        carry = train.begin(model, data["train"], batch_size, seed, validated=True)
        carry = carry._replace(state=jax.jit(model.start)(layers))
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
    error = classifier.evaluate(best.state, data[split], jax.random.key(0))["error"]
    return replace(error, settings={"steps": int(best.step), "dropout": list(dropout)})


class State(NamedTuple):
    """Everything that training changes in a `Classifier`."""

    layers: tuple[Layer, ...]  # ([D, H_1], [H_1]), ..., ([H_L, K], [K]): weights and biases
    opt_state: Any  # Adam's two moments, each shaped like layers, and its step count


@dataclass(frozen=True)
class Classifier:
    """A softmax layer on L sigmoid layers, trained on the labels with dropout.

        p(label | x) = softmax(h_L V + b)[label],    h_l = σ(h_{l−1} W_l + c_l),    h_0 = x.

    A step lowers the mean of −log p(label | x), with dropout of x and of every h_l (Srivastava et
    al. 2014, https://jmlr.org/papers/v15/srivastava14a.html). Units that are kept are scaled up in
    training, so that nothing is scaled in evaluation.
    """

    family: ClassVar[str] = "classifier"
    density: ClassVar[Density] = "none"

    hidden: tuple[int, ...]
    """widths H_1, …, H_L of the hidden layers"""
    classes: int
    """number K of labels"""
    shape: tuple[int, ...]
    """shape [D] of one example"""
    optimizer: AnyOptimizer = Optimizer("adam", FINE_TUNING_RATE)
    """optimiser"""
    dropout: tuple[float, float] = (0.0, 0.0)
    """dropout rates of the inputs and of the hidden units"""

    def init(self, key: jax.Array) -> State:
        """Return the state with all weights 0, from which nothing is learned: see `start`."""
        pairs = pairwise((*self.shape, *self.hidden))
        return self.start([(jnp.zeros((d, h)), jnp.zeros(h)) for d, h in pairs])

    def start(self, layers: Sequence[Layer]) -> State:
        """Return the first state of fine-tuning: copies of W_l and c_l, with V = 0 and b = 0."""
        width = (*self.shape, *self.hidden)[-1]
        top = jnp.zeros((width, self.classes)), jnp.zeros(self.classes)
        params = (*((jnp.array(weight), jnp.array(bias)) for weight, bias in layers), top)
        return State(params, optimize.init(self.optimizer, params))

    def step(
        self, state: State, batch: Batch, key: jax.Array, *, axis_name: str | None = None
    ) -> tuple[State, Metrics]:
        """Take one step on the mean cross-entropy, the `loss`."""

        def loss(layers):
            logits = self.logits(layers, batch["x"], replica_key(key, axis_name))
            value = optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"]).mean()
            return value, {"loss": value}

        gradient, metrics = optimize.gradient(loss, state.layers, axis_name)
        layers, opt_state = optimize.update(self.optimizer, gradient, state.opt_state, state.layers)
        return State(layers, opt_state), metrics

    def parameters(self, state: State) -> Any:
        """Return the weights and biases of all layers."""
        return state.layers

    def objective(self, state: State, batch: Batch, key: jax.Array) -> jax.Array:
        """Return 1 where the most probable label is wrong and 0 elsewhere, [B].

        Early stopping selects by the error rate, not by the cross-entropy that a step lowers.
        """
        predicted = self.logits(state.layers, batch["x"]).argmax(axis=1)
        return (predicted != batch["label"]).astype(jnp.float32)

    def evaluate(self, state: State, data: Data, key: jax.Array) -> dict[str, Estimate]:
        """Return the error rate as `error`."""
        x, label = np.asarray(data["x"]), np.asarray(data["label"])
        with jax.default_matmul_precision("highest"):  # a GPU may otherwise round to TF32
            wrong = [
                self.objective(
                    state, {"x": jnp.asarray(x[rows]), "label": jnp.asarray(label[rows])}, key
                )
                for rows in np.array_split(np.arange(len(x)), -(-len(x) // 1_000))
            ]
        return {"error": estimate.mean(np.concatenate(wrong), "exact")}

    def logits(
        self, layers: Sequence[Layer], x: jax.Array, key: jax.Array | None = None
    ) -> jax.Array:
        """Return log p(label | x) for each label, up to a constant.

        Args:
          layers: weights and biases of the hidden layers and of the softmax layer.
          x: inputs, [B, D].
          key: the source of the dropout; None for none.

        Returns:
          [B, K].
        """
        *hidden, (top, bias) = layers
        input_rate, hidden_rate = self.dropout
        x = _dropout(x, input_rate, key, 0)
        for i, (weight, c) in enumerate(hidden, 1):
            x = _dropout(jax.nn.sigmoid(x @ weight + c[None]), hidden_rate, key, i)
        return x @ top + bias[None]


def _dropout(x: jax.Array, rate: float, key: jax.Array | None, layer: int) -> jax.Array:
    """Set entries to 0 with probability `rate` and divide the others by 1 − rate."""
    if key is None or not rate:
        return x
    kept = jax.random.bernoulli(jax.random.fold_in(key, layer), 1 - rate, x.shape)
    return jnp.where(kept, x / (1 - rate), 0)


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
