"""What a model's codes are good for: classifying and finding examples with them."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from gen import estimate, train
from gen.core import Batch, Metrics, adam, descend, replica_key
from gen.estimate import Estimate

PENALTIES = (0.01, 0.1, 1.0, 10.0, 100.0, 1_000.0, 10_000.0)
"""What C is chosen from."""
CHOOSING = 10_000
"""Training rows, at most, on which C is chosen."""
QUERIES, FOUND_AMONG, NEIGHBOURS = 2_000, 20_000, 10
"""Rows of the evaluated split and of training, at most, and neighbours, of the precision."""

ROUND = 300
"""Steps of tuning, at least, between two looks at the validation split."""
DROPOUTS = ((0.0, 0.0), (0.2, 0.5))
"""What the shares of inputs and of hidden units that tuning drops are chosen from: none, and those
of Srivastava et al. (2014), too many for codes of few units."""

Layer = tuple[jax.Array, jax.Array]
"""Weights [D, H] and biases [H] of x ↦ x W + c."""


def probe(
    model: Any, state: Any, splits: Mapping[str, Batch], split: str, seed: int
) -> dict[str, Estimate]:
    """How well labels are told from the model's codes, and from the raw variables (`_raw`), on
    splits[`split`]. `splits` has train and validation, too, each decoded, with labels.

    - `probe_error`, `probe_error_raw`: the error rate of a linear classifier (`linear_error`).
    - `retrieval_precision`, `retrieval_precision_raw`: how many of the nearest training rows have
      the label (`retrieval_precision`).
    - `tuned_error`, of a model with `layers(state) -> [(W, c), ...]`, the sigmoid layers that make
      its code, as weights [D, H] and biases [H]: the error rate after these have learned with the
      classifier (`tuned_error`). Rows are shuffled by `seed`.

    What is chosen is chosen on the validation split, so on that one errors are too low; so they are
    on the training split, where also each row finds itself.
    """
    labels = {name: np.asarray(rows["label"]) for name, rows in splits.items()}
    raw = {name: _vectors(rows["x"]) for name, rows in splits.items()}
    codes = {name: encoded(model, state, rows["x"]) for name, rows in splits.items()}
    estimates = {}
    for suffix, x in (("", codes), ("_raw", raw)):
        estimates[f"probe_error{suffix}"] = linear_error(x, labels, split)
        estimates[f"retrieval_precision{suffix}"] = retrieval_precision(
            x["train"], labels["train"], x[split], labels[split]
        )
    if callable(getattr(model, "layers", None)):
        estimates["tuned_error"] = tuned_error(model.layers(state), raw, labels, split, seed)
    return estimates


def encoded(model: Any, state: Any, x: Any, block: int = 1_000) -> np.ndarray:
    """The codes of x [N, *shape], [N, H], `block` rows at a time."""
    encode = jax.jit(model.encode)
    with jax.default_matmul_precision("highest"):  # a GPU may otherwise round to TF32
        blocks = [encode(state, {"x": x[i : i + block]}) for i in range(0, len(x), block)]
    return np.concatenate([_vectors(codes) for codes in blocks])


def linear_error(
    x: Mapping[str, np.ndarray], labels: Mapping[str, np.ndarray], split: str
) -> Estimate:
    """The error rate on a split of multinomial logistic regression on x [N, D],

        min over V, b of ½ |V|² + C Σ_n −log softmax(V x_n + b)[label_n].

    The C of `PENALTIES` with the lowest error on the validation split, after training on at most
    `CHOOSING` rows spread over the training split, is then taken for all of them.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    # The intercept takes up the mean, so the minimum stays; L-BFGS gets there in far fewer steps.
    mean = x["train"].mean(axis=0)
    x = {name: rows - mean for name, rows in x.items()}

    def errors(penalty, rows, of):
        classifier = LogisticRegression(C=penalty, max_iter=1_000)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # the error no longer moves by then
            classifier.fit(x["train"][rows], labels["train"][rows])
        return np.not_equal(classifier.predict(x[of]), labels[of])

    some = _spread(len(x["train"]), CHOOSING)
    chosen = min(PENALTIES, key=lambda penalty: errors(penalty, some, "validation").mean())
    return estimate.mean(errors(chosen, slice(None), split), "exact", C=chosen)


def retrieval_precision(
    x: np.ndarray, labels: np.ndarray, queries: np.ndarray, wanted: np.ndarray
) -> Estimate:
    """The mean over queries [Q, D] of the share of their `NEIGHBOURS` nearest rows of x [N, D], by
    cosine similarity, that have their label; of equally near rows each counts in part.

    At most `QUERIES` of the queries, and `FOUND_AMONG` rows, are taken, spread evenly.
    """
    asked, rows = _spread(len(queries), QUERIES), _spread(len(x), FOUND_AMONG)
    among, found = _directions(x[rows]), labels[rows]
    nearest = min(NEIGHBOURS, len(rows))
    shares = []
    for block in np.array_split(asked, -(-len(asked) // 500)):
        # Rounded, so that rows which are equally near have equal similarities.
        similarity = np.round(_directions(queries[block]) @ among.T, 6)
        border = np.partition(similarity, -nearest, axis=1)[:, -nearest, None]
        inside, tied = similarity > border, similarity == border
        left = nearest - inside.sum(axis=1, keepdims=True)
        weight = inside + tied * (left / tied.sum(axis=1, keepdims=True))
        shares.append((weight * (wanted[block, None] == found)).sum(axis=1) / nearest)
    settings = {"neighbours": nearest, "rows": len(rows)}
    return estimate.mean(np.concatenate(shares), "exact", **settings)


def tuned_error(
    layers: Sequence[Layer],
    x: Mapping[str, np.ndarray],
    labels: Mapping[str, np.ndarray],
    split: str,
    seed: int,
    rounds: int = 40,
    batch_size: int = 100,
) -> Estimate:
    """The error rate on a split of `Tuned`, started at `layers`, with that of `DROPOUTS` and after
    the round, of so many, with the lowest error on the validation split. A round is an epoch, of
    small data `ROUND` steps; over all of them the step size falls to 0."""
    data = {name: {"x": x[name], "label": labels[name]} for name in x}
    batch_size = min(batch_size, len(x["train"]))
    every = max(len(x["train"]) // batch_size, ROUND)
    plain: Any = Tuned(
        hidden=tuple(len(bias) for _, bias in layers),
        classes=1 + max(int(of.max()) for of in labels.values()),
        shape=x["train"].shape[1:],
        decay_steps=rounds * every,
    )

    def tuned(dropout):
        model = replace(plain, dropout=dropout)
        carry = train.begin(model, data["train"], batch_size, seed, validated=True)
        carry = carry._replace(state=jax.jit(model.start)(layers))
        for progress in train.fit(
            model,
            data["train"],
            steps=rounds * every,
            batch_size=batch_size,
            seed=seed,
            report_every=every,
            start=(0, carry),
            validation=data["validation"],
            validate_every=every,
        ):
            carry = progress.carry
        assert isinstance(carry.best, train.Best)
        return carry.best

    found = {dropout: tuned(dropout) for dropout in DROPOUTS}
    chosen = min(found, key=lambda dropout: float(found[dropout].validation))
    best = found[chosen]
    blocks = np.array_split(np.arange(len(x[split])), -(-len(x[split]) // 1_000))
    with jax.default_matmul_precision("highest"):  # a GPU may otherwise round to TF32
        wrong = [
            plain.objective(best.state, {"x": x[split][i], "label": labels[split][i]}, None)
            for i in blocks
        ]
    return estimate.mean(np.concatenate(wrong), "exact", steps=int(best.step), dropout=list(chosen))


class State(NamedTuple):
    """Of `Tuned`."""

    layers: tuple[Layer, ...]  # [D, H_1], [H_1]; [H_1, H_2], [H_2]; …; [H_L, K], [K]
    opt_state: Any  # Adam's moments, shaped like the layers, and its count


@dataclass(frozen=True)
class Tuned:
    """p(label | x) = softmax(h_L V + b), h_l = σ(h_{l−1} W_l + c_l), h_0 = x; Adam on −log p, under
    dropout of x and of every h_l."""

    hidden: tuple[int, ...]
    """numbers of units H_1, …, H_L"""
    classes: int
    """number of labels K"""
    shape: tuple[int, ...]
    """[D], the shape of one example"""
    learning_rate: float = 2e-3
    """step size at first"""
    decay_steps: int = 0
    """let the step size fall to 0 over so many steps, along a cosine (0: constant)"""
    dropout: tuple[float, float] = (0.0, 0.0)
    """shares of the inputs and of the hidden units that a step drops; the others make up for it"""

    def init(self, key: jax.Array) -> State:
        """All weights 0: `start` is where training begins."""
        pairs = pairwise((*self.shape, *self.hidden))
        return self.start([(jnp.zeros((d, h)), jnp.zeros(h)) for d, h in pairs])

    def start(self, layers: Sequence[Layer]) -> State:
        """Copies of W_l [H_{l−1}, H_l] and c_l [H_l], under V = 0 and b = 0."""
        width = (*self.shape, *self.hidden)[-1]
        top = jnp.zeros((width, self.classes)), jnp.zeros(self.classes)
        params = (*((jnp.array(weight), jnp.array(bias)) for weight, bias in layers), top)
        return State(params, self._optimizer.init(params))

    def step(
        self, state: State, batch: Batch, key: jax.Array, *, axis_name: str | None = None
    ) -> tuple[State, Metrics]:
        """A step down the mean cross-entropy, the `loss`."""

        def loss(layers):
            logits = self.logits(layers, batch["x"], replica_key(key, axis_name))
            value = optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"]).mean()
            return value, {"loss": value}

        layers, opt_state, metrics = descend(
            loss, self._optimizer, state.layers, state.opt_state, axis_name
        )
        return State(layers, opt_state), metrics

    def objective(self, state: State, batch: Batch, key: jax.Array | None) -> jax.Array:
        """Whether the most probable label is another, 0 or 1, [B]."""
        best = self.logits(state.layers, batch["x"]).argmax(axis=1)
        return (best != batch["label"]).astype(jnp.float32)

    def logits(
        self, layers: Sequence[Layer], x: jax.Array, key: jax.Array | None = None
    ) -> jax.Array:
        """Of x [B, D], [B, K]; with a key, under dropout."""
        *hidden, (top, bias) = layers
        of_inputs, of_hidden = self.dropout
        x = _dropped(x, of_inputs, key, 0)
        for i, (weight, c) in enumerate(hidden, 1):
            x = _dropped(jax.nn.sigmoid(x @ weight + c[None]), of_hidden, key, i)
        return x @ top + bias[None]

    @property
    def _optimizer(self) -> optax.GradientTransformation:
        return adam(self.learning_rate, self.decay_steps)


def _dropped(x: jax.Array, share: float, key: jax.Array | None, layer: int) -> jax.Array:
    """x, with a key without that share of its entries; the others grow, so that the mean stays."""
    if key is None or not share:
        return x
    kept = jax.random.bernoulli(jax.random.fold_in(key, layer), 1 - share, x.shape)
    return jnp.where(kept, x / (1 - share), 0)


def _vectors(x: Any) -> np.ndarray:
    """[N, ...] as [N, D]."""
    x = np.asarray(x)
    return x.reshape(len(x), -1)


def _spread(n: int, most: int) -> np.ndarray:
    """All of n rows, or `most` of them, evenly spread: rows may be in the order of their labels."""
    return np.arange(min(n, most)) * n // min(n, most)


def _directions(x: np.ndarray) -> np.ndarray:
    """Rows [N, D] of length 1; rows of zeros stay."""
    length = np.linalg.norm(x, axis=1, keepdims=True)
    return x / np.where(length == 0, 1, length)
