"""Autoencoders in a stack, trained greedily, layer by layer.

Bengio et al. 2007, "Greedy layer-wise training of deep networks",
https://papers.nips.cc/paper/3048-greedy-layer-wise-training-of-deep-networks;
Vincent et al. 2010, "Stacked denoising autoencoders", https://jmlr.org/papers/v11/vincent10a.html.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp

from gen import estimate
from gen.core import Batch, Data, Density, Metrics, Shape, check_fields, require
from gen.estimate import Estimate
from gen.models.autoencoder.model import Autoencoder
from gen.models.autoencoder.model import State as LayerState
from gen.nets import MLP, flatten
from gen.optimize import Optimizer


class State(NamedTuple):
    """Everything that training changes."""

    layers: tuple[LayerState, ...]  # the autoencoder of each layer, from below
    count: jax.Array  # [], steps done


DENOISING_LAYER = Autoencoder(
    encoder=MLP((1_000,), "sigmoid"),
    decoder=MLP(()),
    output="sigmoid",
    loss="cross_entropy",
    noise="masking",
    corruption=0.1,
    tied=True,
    optimizer=Optimizer(learning_rate=1e-3),
)
"""The layer of Vincent et al. 2010: sigmoid units, tied weights, masking noise, cross-entropy."""


@dataclass(frozen=True)
class StackedAutoencoder:
    """f = f_L ∘ … ∘ f_1 and g = g_1 ∘ … ∘ g_L, where (f_l, g_l) is an autoencoder of one layer.

    Training is greedy and layerwise: layer l learns to reconstruct the codes f_{l−1}(… f_1(x)) of
    the layers below it, which are trained already and stay as they are. A denoising layer corrupts
    these codes; the codes themselves are taken from the clean example (Vincent et al. 2010,
    section 3.5). Each layer takes `pretraining` steps, and the last one all further steps.

    The stack of sigmoid layers then starts a classifier: `gen.uses.features.tuned_error` puts a
    softmax layer on it and trains all layers on the labels.

    Deviations from Vincent et al. 2010:

    - Adam on batches in place of stochastic gradient descent on single examples.
    - All layers have the same kind of noise and the same optimiser.
    """

    family: ClassVar[str] = "autoencoder"
    density: ClassVar[Density] = "none"

    shape: Shape = (28, 28, 1)
    """shape of one example"""
    hidden: tuple[int, ...] = (1_000, 1_000, 1_000)
    """numbers of hidden units, from below"""
    corruptions: tuple[float, ...] = ()
    """corruption of each layer's input, from below (empty: the corruption of `layer` for all)"""
    pretraining: int = 5_500
    """training steps of each layer but the last"""
    layer: Autoencoder = DENOISING_LAYER
    """autoencoder of each layer; its shape, its width and its corruption are set by the stack"""

    def __post_init__(self):
        check_fields(self, positive=("hidden", "pretraining"))
        require(
            len(self.hidden) > 1,
            f"StackedAutoencoder: hidden is {self.hidden}, must have two layers or more",
        )
        require(
            len(self.corruptions) in (0, len(self.hidden)),
            f"StackedAutoencoder: corruptions is {self.corruptions}, must have one number for each "
            f"of the {len(self.hidden)} layers",
        )
        encoder, decoder = self.layer.encoder, self.layer.decoder
        require(
            isinstance(encoder, MLP) and isinstance(decoder, MLP) and decoder.hidden == (),
            "StackedAutoencoder: a layer has one matrix in each direction: take an MLP of one "
            "layer as layer.encoder and MLP(()) as layer.decoder",
        )
        optimizer = self.layer.optimizer
        require(
            not isinstance(optimizer, Optimizer)
            or optimizer.schedule == "constant"
            or optimizer.decay_steps is not None,
            "StackedAutoencoder: layer.optimizer has a cosine schedule without a length, and no "
            "layer trains for the whole run: set its decay_steps, for example to pretraining, "
            f"{self.pretraining}",
        )
        assert self.autoencoders  # which checks the corruptions

    @property
    def autoencoders(self) -> tuple[Autoencoder, ...]:
        """The autoencoder of each layer, from below."""
        shapes = (self.shape, *((width,) for width in self.hidden))
        corruptions = self.corruptions or (self.layer.corruption,) * len(self.hidden)
        return tuple(
            replace(
                self.layer,
                shape=shape,
                encoder=self.layer.encoder.clone(hidden=(width,)),
                corruption=corruption,
            )
            for shape, width, corruption in zip(shapes, self.hidden, corruptions, strict=False)
        )

    @property
    def unit_interval(self) -> bool:
        """The first layer reconstructs the data."""
        return self.layer.unit_interval

    @property
    def metric_units(self) -> Mapping[str, str]:
        """The metrics are of the layer whose turn it is."""
        return self.layer.metric_units

    @property
    def lacks(self) -> tuple[str, ...]:
        """A classifier starts from sigmoid layers alone."""
        return self.layer.lacks

    def init(self, key: jax.Array) -> State:
        keys = jax.random.split(key, len(self.hidden))
        pairs = zip(self.autoencoders, keys, strict=True)
        return State(tuple(each.init(key) for each, key in pairs), jnp.zeros((), jnp.int32))

    def step(
        self, state: State, batch: Batch, key: jax.Array, *, axis_name: str | None = None
    ) -> tuple[State, Metrics]:
        """Take one step of the layer whose turn it is, and log its metrics."""

        def step_of(layer):
            x = self._codes(state, batch["x"], layer)
            layers = list(state.layers)
            layers[layer], metrics = self.autoencoders[layer].step(
                layers[layer], {"x": x}, key, axis_name=axis_name
            )
            return tuple(layers), metrics

        count = len(self.hidden)
        layer = jnp.minimum(state.count // self.pretraining, count - 1)
        branches = [partial(step_of, layer) for layer in range(count)]
        layers, metrics = jax.lax.switch(layer, branches)
        return State(layers, state.count + 1), metrics

    def parameters(self, state: State) -> Any:
        """Return the parameters of every layer."""
        return tuple(each.params for each in state.layers)

    def evaluate(self, state: State, data: Data, key: jax.Array) -> dict[str, Estimate]:
        """Return `mse`, the mean over examples of the squared error per pixel of g(f(x))."""
        errors = estimate.per_example(
            lambda batch, row_key: self.score(state, batch, row_key), data, key
        )
        return {"mse": estimate.mean(errors, "exact")}

    def encode(self, state: State, batch: Batch) -> jax.Array:
        """Return the code of the last layer, f(x), [B, D_L]."""
        return self._codes(state, batch["x"], len(self.hidden))

    def decode(self, state: State, z: jax.Array) -> jax.Array:
        """Return the reconstruction through all layers, g(z), [B, *shape]."""
        for each, of_layer in reversed(list(zip(self.autoencoders, state.layers, strict=True))):
            z = each.decode(of_layer, z)
        return z

    def reconstruct(self, state: State, batch: Batch) -> jax.Array:
        """Return g(f(x)), [B, *shape]."""
        return self.decode(state, self.encode(state, batch))

    def score(self, state: State, batch: Batch, key: jax.Array) -> jax.Array:
        """Return the squared error of each example's reconstruction, the mean over its pixels."""
        return jnp.mean(flatten(batch["x"] - self.reconstruct(state, batch)) ** 2, axis=1)

    def filters(self, state: State) -> jax.Array:
        """Return the weights of each unit of the first layer, [D_1, *shape]."""
        return self.autoencoders[0].filters(state.layers[0])

    def layers(self, state: State) -> list[tuple[jax.Array, jax.Array]]:
        """Return weights and biases of the sigmoid layers, from below."""
        pairs = zip(self.autoencoders, state.layers, strict=True)
        return [layer for each, of_layer in pairs for layer in each.layers(of_layer)]

    def _codes(self, state: State, x: jax.Array, layers: int) -> jax.Array:
        """Return the code of x after that many layers, or x itself."""
        for each, of_layer in zip(self.autoencoders[:layers], state.layers[:layers], strict=True):
            x = each.encode(of_layer, {"x": x})
        return x
