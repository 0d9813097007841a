"""A classifier of the labels: fine-tuning trains one, and its features judge samples.

run = gen.load("classifier_digits")
prediction = predict(run.model, run.state, x)  # features [N, F], probabilities [N, K]
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from jax.typing import ArrayLike

from gen import estimate, nets, optimize, train
from gen.core import Batch, Data, Density, Metrics, Shape, check_fields, replica_key, require
from gen.estimate import Estimate
from gen.nets import ConvEncoder
from gen.optimize import AnyOptimizer, Optimizer


class State(NamedTuple):
    """Everything that training changes."""

    params: Any  # encoder: of the network; top: kernel V [F, K] and bias b [K]
    stats: Any  # batch statistics of the encoder; empty without them
    opt_state: Any  # Adam's two moments, each shaped like params, and its step count


class Prediction(NamedTuple):
    """The results of a classifier for N images."""

    features: np.ndarray  # f(x), [N, F]
    probabilities: np.ndarray  # p(label | x), [N, K]

    @property
    def labels(self) -> np.ndarray:
        """The most probable label of each image, [N]."""
        return self.probabilities.argmax(axis=1)


@dataclass(frozen=True)
class Classifier:
    """A softmax layer on the features f(x) of a network, trained on the labels.

        p(label | x) = softmax(f(x) V + b)[label]

    A step lowers the mean of −log p(label | x). V and b start at 0. In training, images can be
    moved by some pixels. Some of the images can be binarised, so that the classifier also reads
    images of binary pixels. Inputs and units can be dropped (Srivastava et al. 2014,
    https://jmlr.org/papers/v15/srivastava14a.html). Inputs that are kept are scaled up in training,
    so that nothing is scaled in evaluation.
    """

    family: ClassVar[str] = "classifier"
    density: ClassVar[Density] = "none"
    metric_units: ClassVar[Mapping[str, str]] = MappingProxyType({"validation": "error rate"})

    shape: Shape = (28, 28, 1)
    """shape of one example"""
    classes: int = 10
    """number K of labels"""
    encoder: nn.Module = ConvEncoder((32, 64, 128), (64,), batch_norm=True)
    """network f from x to the features"""
    input_dropout: float = 0.0
    """share of the inputs that are dropped in training"""
    shift: int = 0
    """largest number of pixels by which an image is moved in training, along either axis"""
    binarized: float = 0.0
    """share of the images whose pixels are drawn as 0 or 1 in training, with the means x"""
    optimizer: AnyOptimizer = Optimizer("adam")
    """optimiser"""

    def __post_init__(self):
        check_fields(
            self,
            positive=("classes",),
            fraction=("input_dropout", "binarized"),
            non_negative=("shift",),
        )
        require(
            not self.shift or len(self.shape) == 3,
            f"Classifier: shift is {self.shift}, which examples of shape {list(self.shape)} cannot "
            "have: set it to 0",
        )

    def init(self, key: jax.Array) -> State:
        x = jnp.zeros((1, *self.shape))
        params, stats = nets.init(self.encoder, key, x)
        features, _ = nets.apply(self.encoder, params, stats, x)
        nets.check_features(self.encoder, features)
        top = {
            "kernel": jnp.zeros((features.shape[1], self.classes)),
            "bias": jnp.zeros(self.classes),
        }
        params = {"encoder": params, "top": top}
        return State(params, stats, optimize.init(self.optimizer, params))

    def step(
        self, state: State, batch: Batch, key: jax.Array, *, axis_name: str | None = None
    ) -> tuple[State, Metrics]:
        """Take one step on the mean cross-entropy, the `loss`."""
        shift_key, pixel_key, input_key, key = jax.random.split(replica_key(key, axis_name), 4)
        encoder = nets.fitted(self.encoder, axis_name=axis_name)
        x = shifted(batch["x"], shift_key, self.shift) if self.shift else batch["x"]
        if self.binarized:
            x = some_binarized(x, pixel_key, self.binarized)
        if self.input_dropout:
            kept = jax.random.bernoulli(input_key, 1 - self.input_dropout, x.shape)
            x = jnp.where(kept, x / (1 - self.input_dropout), 0)

        def loss(params):
            features, stats = nets.apply(
                encoder, params["encoder"], state.stats, x, train=True, key=key
            )
            logits = features @ params["top"]["kernel"] + params["top"]["bias"][None]
            value = optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"]).mean()
            return value, ({"loss": value}, stats)

        gradient, (metrics, stats) = optimize.gradient(loss, state.params, axis_name)
        params, opt_state = optimize.update(self.optimizer, gradient, state.opt_state, state.params)
        return State(params, stats, opt_state), metrics

    def parameters(self, state: State) -> Any:
        """Return the weights and biases of all layers."""
        return state.params

    def features_and_logits(self, state: State, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Return f(x), [B, F], and log p(label | x) up to a constant, [B, K]."""
        features, _ = nets.apply(self.encoder, state.params["encoder"], state.stats, x)
        return features, features @ state.params["top"]["kernel"] + state.params["top"]["bias"][
            None
        ]

    def objective(self, state: State, batch: Batch, key: jax.Array) -> jax.Array:
        """Return 1 where the most probable label is wrong and 0 elsewhere, [B].

        Early stopping selects by the error rate, not by the cross-entropy that a step lowers.
        """
        _, logits = self.features_and_logits(state, batch["x"])
        return (logits.argmax(axis=1) != batch["label"]).astype(jnp.float32)

    def evaluate(self, state: State, data: Data, key: jax.Array) -> dict[str, Estimate]:
        """Return the error rate as `error`."""
        wrong = predict(self, state, data["x"]).labels != np.asarray(data["label"])
        return {"error": estimate.mean(wrong, "exact")}


def shifted(x: jax.Array, key: jax.Array, most: int) -> jax.Array:
    """Return images, each moved by up to `most` pixels along either axis, with zeros moved in.

    Args:
      x: images, [B, H, W, C].
      key: the source of the moves, which are uniform on all (2 · most + 1)² places.
      most: the largest number of pixels.
    """
    around = jnp.pad(x, ((0, 0), (most, most), (most, most), (0, 0)))
    corners = jax.random.randint(key, (len(x), 2), 0, 2 * most + 1)

    def crop(image, corner):
        return jax.lax.dynamic_slice(image, (corner[0], corner[1], 0), x.shape[1:])

    return jax.vmap(crop)(around, corners)


def some_binarized(x: jax.Array, key: jax.Array, share: float) -> jax.Array:
    """Return examples of which some have binary pixels, drawn with the values of x as means.

    Args:
      x: values in [0, 1], [B, ...].
      key: the source of the draws.
      share: the probability that an example is binarised.
    """
    choice_key, pixel_key = jax.random.split(key)
    chosen = jax.random.bernoulli(choice_key, share, (len(x), *[1] * (x.ndim - 1)))
    return jnp.where(chosen, jax.random.bernoulli(pixel_key, x).astype(x.dtype), x)


def predict(model: Classifier, state: State, x: ArrayLike, block: int = 500) -> Prediction:
    """Return the features and the class probabilities of images.

    Args:
      model: a classifier.
      state: a state of it.
      x: images with values in [0, 1], [N, *shape].
      block: images at a time, which bounds the memory.
    """
    x, run = np.asarray(x), _program(model)
    parts = np.array_split(np.arange(len(x)), math.ceil(len(x) / block))
    with jax.default_matmul_precision("highest"):  # a GPU may otherwise round to TF32
        results = [jax.device_get(run(state, jnp.asarray(x[rows]))) for rows in parts]
    features, probabilities = map(np.concatenate, zip(*results, strict=True))
    return Prediction(features, probabilities)


@train.keep_programs
def _program(model: Classifier) -> Callable[..., tuple[jax.Array, jax.Array]]:
    """Return the compiled function from (state, x) to features and probabilities."""

    def run(state, x):
        features, logits = model.features_and_logits(state, x)
        return features, jax.nn.softmax(logits)

    return jax.jit(run)
