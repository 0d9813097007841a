"""Autoencoders in a stack, trained greedily, layer by layer.

Bengio et al. 2007, "Greedy layer-wise training of deep networks",
https://papers.nips.cc/paper/3048-greedy-layer-wise-training-of-deep-networks;
Vincent et al. 2010, "Stacked denoising autoencoders", https://jmlr.org/papers/v11/vincent10a.html.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from gen.core import Batch, Density, Metrics, Shape, check_fields, require
from gen.models.autoencoder.model import (
    Autoencoder,
    mean_squared_error,
    reconstruction,
    squared_error,
)
from gen.models.autoencoder.model import State as LayerState
from gen.nets import MLP, Activation
from gen.optimize import Optimizer


class State(NamedTuple):
    """Everything that training changes."""

    layers: tuple[LayerState, ...]  # the autoencoder of each layer, from below
    count: jax.Array  # [], steps done


RANGES: dict[Activation, tuple[float, float]] = {
    "relu": (0, math.inf),
    "elu": (-1, math.inf),
    "tanh": (-1, 1),
    "leaky_relu": (-math.inf, math.inf),
    "softplus": (0, math.inf),
    "sigmoid": (0, 1),
    "linear": (-math.inf, math.inf),
}
"""The smallest and the largest value of each nonlinearity, or their limits."""

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
    section 3.5). Each layer takes `pretraining` steps, and the last one all further steps. A step
    computes the layer whose turn it is. Several seeds at once (`vmap`) compute all L layers in
    every step, and keep the one whose turn it is.

    The stack then starts a classifier: `gen.uses.features.tuned_error` puts a softmax layer on it
    and trains all layers on the labels.

    Deviations from Vincent et al. 2010:

    - Adam on batches in place of stochastic gradient descent on single examples.
    - All layers have the same kind of noise and the same optimiser.
    - Fine-tuning takes Adam and selects dropout rates on the validation split; they fine-tune by
      stochastic gradient descent without dropout.
    """

    family: ClassVar[str] = "autoencoder"
    density: ClassVar[Density] = "none"
    overwrites: ClassVar[tuple[str, ...]] = ("layer.shape", "layer.encoder.hidden")
    """paths of the fields that the stack sets, which are no flags"""
    reconstruct = reconstruction
    score = squared_error
    evaluate = mean_squared_error

    shape: Shape = (28, 28, 1)
    """shape of one example"""
    hidden: tuple[int, ...] = (1_000, 1_000, 1_000)
    """numbers of hidden units, from below"""
    corruptions: tuple[float, ...] = ()
    """corruption of each layer's input, from below; it takes precedence over layer.corruption
    (empty: layer.corruption for all layers)"""
    pretraining: int = 5_500
    """training steps of each layer but the last"""
    layer: Autoencoder = DENOISING_LAYER
    """autoencoder of each layer; `hidden` sets its width, and `corruptions`, unless it is empty,
    its corruption"""

    def __post_init__(self):
        check_fields(self, positive=("hidden", "pretraining"), non_negative=("corruptions",))
        require(
            len(self.hidden) > 1,
            f"StackedAutoencoder: hidden is {self.hidden}, must have two layers or more",
        )
        require(
            len(self.corruptions) in (0, len(self.hidden)),
            f"StackedAutoencoder: corruptions is {self.corruptions}, must have one number for each "
            f"of the {len(self.hidden)} layers",
        )
        require(
            self.layer.noise in ("none", "gaussian") or all(part < 1 for part in self.corruptions),
            f"StackedAutoencoder: corruptions is {self.corruptions}, shares of the inputs, must be "
            "below 1",
        )
        encoder, decoder = self.layer.encoder, self.layer.decoder
        require(
            isinstance(encoder, MLP) and isinstance(decoder, MLP) and decoder.hidden == (),
            "StackedAutoencoder: a layer has one matrix in each direction: take an MLP of one "
            "layer as layer.encoder and MLP(()) as layer.decoder",
        )
        self._check_ranges(encoder.activation)
        optimizer = self.layer.optimizer
        require(
            not isinstance(optimizer, Optimizer)
            or optimizer.schedule == "constant"
            or optimizer.decay_steps is not None,
            "StackedAutoencoder: layer.optimizer has a cosine schedule without a length, and no "
            "layer trains for the whole run: set its decay_steps, for example to pretraining, "
            f"{self.pretraining}",
        )

    def _check_ranges(self, units: Activation) -> None:
        """Raise `UserError` unless a layer can reconstruct the codes of the layer below it."""
        layer = self.layer
        (low, high), (lowest, highest) = RANGES[units], RANGES[layer.output]
        require(
            lowest <= low and high <= highest,
            f"StackedAutoencoder: layer.output is {layer.output}, which cannot reconstruct the "
            f"{units} units of the layer below: set layer.output to linear, or to {units}",
        )
        require(
            layer.noise != "salt_and_pepper" or units == "sigmoid",
            "StackedAutoencoder: layer.noise is salt_and_pepper, which sets units to 0 and 1, and "
            f"layer.encoder.activation is {units}: take sigmoid units or gaussian noise",
        )

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
        """Data must lie in [0, 1] if the first layer needs it, which reconstructs the data."""
        return self.layer.unit_interval

    @property
    def metric_units(self) -> Mapping[str, str]:
        """Return the units of a layer: the metrics are of the layer whose turn it is."""
        return self.layer.metric_units

    @property
    def lacks(self) -> tuple[str, ...]:
        """Return `encoder_network` with sparsity `top_k`, because an MLP has no top-k layer."""
        sparse = ("encoder_network",) if self.layer.sparsity == "top_k" else ()
        return (*self.layer.lacks, *sparse)

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

    def encode(self, state: State, batch: Batch) -> jax.Array:
        """Return the code of the last layer, f(x), [B, D_L]."""
        return self._codes(state, batch["x"], len(self.hidden))

    def decode(self, state: State, z: jax.Array) -> jax.Array:
        """Return the reconstruction through all layers, g(z), [B, *shape]."""
        for each, of_layer in reversed(list(zip(self.autoencoders, state.layers, strict=True))):
            z = each.decode(of_layer, z)
        return z

    def filters(self, state: State) -> jax.Array:
        """Return the weights of each unit of the first layer, [D_1, *shape]."""
        return self.autoencoders[0].filters(state.layers[0])

    def layers(self, state: State, batch: Batch) -> list[jax.Array]:
        """Return the code of every layer, [B, D_l] each, from below."""
        return [self._codes(state, batch["x"], count + 1) for count in range(len(self.hidden))]

    def encoder_network(self, state: State) -> tuple[nn.Module, Any]:
        """Return f as one `MLP`, with copies of the parameters of all layers."""
        encoder = self.layer.encoder
        variables: dict[str, Any] = {}
        for i, each in enumerate(state.layers):
            collections = {"params": each.params["encoder"], **each.stats["encoder"]}
            for collection, of_layer in collections.items():
                named = {f"{name[:-1]}{i}": values for name, values in of_layer.items()}
                variables[collection] = {**variables.get(collection, {}), **named}
        assert isinstance(encoder, MLP)
        return encoder.clone(hidden=self.hidden), variables

    def _codes(self, state: State, x: jax.Array, layers: int) -> jax.Array:
        """Return the code of x after that many layers, or x itself."""
        for each, of_layer in zip(self.autoencoders[:layers], state.layers[:layers], strict=True):
            x = each.encode(of_layer, {"x": x})
        return x
