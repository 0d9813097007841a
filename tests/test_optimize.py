"""Optimisers against optax's own and against their formulas."""

from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from gen import optimize, train
from gen.core import UserError
from gen.models.dequantized import Dequantized
from gen.models.mixture import Mixture
from gen.models.vae import VAE
from gen.nets import MLP
from gen.optimize import Optimizer

PARAMS = {"kernel": jnp.array([[2.0, -1.0], [0.5, 3.0]]), "bias": jnp.array([1.0, -2.0])}
IS_WEIGHT = {"kernel": True, "bias": False}


def loss(params):
    """A bowl that is 100 times steeper in one direction than in another."""
    curvature = {"kernel": jnp.array([[1.0, 10.0], [0.1, 1.0]]), "bias": jnp.array([2.0, 0.5])}
    value = jnp.sum(jnp.stack([(curvature[name] * params[name] ** 2).sum() for name in params]))
    return value, {"loss": value}


def descend(optimizer, steps=6):
    """Return the parameters after each step, [steps, ...]."""

    def step(carry, _):
        params, opt_state = carry
        gradient, _ = optimize.gradient(loss, params)
        params, opt_state = optimize.update(optimizer, gradient, opt_state, params)
        return (params, opt_state), params

    begin = PARAMS, optimize.init(optimizer, PARAMS)
    return jax.jit(lambda: jax.lax.scan(step, begin, length=steps)[1])()


def assert_same_path(optimizer, expected):
    ours, theirs = descend(optimizer), descend(expected)
    for name in PARAMS:
        np.testing.assert_allclose(ours[name], theirs[name], rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(
    ("optimizer", "expected"),
    [
        (Optimizer("adam", 0.1), optax.adam(0.1)),
        (Optimizer("adam", 0.1, b1=0.5, b2=0.9, eps=0.1), optax.adam(0.1, 0.5, 0.9, 0.1)),
        (
            Optimizer("adam", 0.1, weight_decay=0.3),
            optax.adamw(0.1, weight_decay=0.3, mask=IS_WEIGHT),
        ),
        (Optimizer("sgd", 0.01), optax.sgd(0.01)),
        (Optimizer("sgd", 0.01, momentum=0.9), optax.sgd(0.01, momentum=0.9)),
        (
            Optimizer("rmsprop", 0.1, decay=0.8, eps=0.1),
            optax.rmsprop(0.1, decay=0.8, eps=0.1, eps_in_sqrt=False),
        ),
        (
            Optimizer("sgd", 0.1, clip_norm=0.5),
            optax.chain(optax.clip_by_global_norm(0.5), optax.sgd(0.1)),
        ),
        (
            Optimizer("adam", 0.1, "cosine", decay_steps=5, warmup_steps=2),
            optax.adam(optax.warmup_cosine_decay_schedule(0.0, 0.1, 2, 5)),
        ),
        (
            Optimizer("sgd", 0.1, warmup_steps=4),
            optax.sgd(optax.linear_schedule(0.0, 0.1, 4)),
        ),
    ],
)
def test_every_kind_moves_as_optax_does(optimizer, expected):
    assert_same_path(optimizer, expected)


def test_rmsprop_adds_epsilon_outside_of_the_root():
    """θ ← θ − η g / (√v + ε) with v ← decay · v + (1 − decay) g², in NumPy."""
    theta, v, expected = 1.0, 0.0, []
    for _ in range(6):
        g = 2 * 2.0 * theta  # of the first bias, whose curvature is 2
        v = 0.8 * v + 0.2 * g**2
        theta -= 0.1 * g / (np.sqrt(v) + 0.5)
        expected.append(theta)
    path = descend(Optimizer("rmsprop", 0.1, decay=0.8, eps=0.5))
    np.testing.assert_allclose(path["bias"][:, 0], expected, rtol=1e-5)


def test_the_cosine_rises_to_the_learning_rate_and_reaches_zero_at_decay_steps():
    """Under SGD with gradient 1 each step is the learning rate itself."""
    optimizer = Optimizer("sgd", 0.2, "cosine", decay_steps=10, warmup_steps=4)
    params = {"kernel": jnp.zeros(())}
    opt_state, rates = optimize.init(optimizer, params), []
    step = jax.jit(lambda s: optimize.update(optimizer, {"kernel": jnp.ones(())}, s, params))
    for _ in range(13):
        moved, opt_state = step(opt_state)
        rates.append(-float(moved["kernel"]))
    np.testing.assert_allclose(rates[:5], [0.0, 0.05, 0.1, 0.15, 0.2], rtol=1e-6)
    cosine = 0.1 * (1 + np.cos(np.pi * np.arange(7) / 6))
    np.testing.assert_allclose(rates[4:11], cosine, atol=1e-7)
    np.testing.assert_allclose(rates[10:], 0, atol=1e-8)


class Layers(NamedTuple):
    weights: tuple[jax.Array, ...]
    biases: tuple[jax.Array, ...]


def test_weight_decay_shrinks_weights_and_leaves_biases_and_scales_alone():
    """With a gradient of 0 a weight becomes (1 − η · weight_decay) of itself."""
    params = {
        "layers": Layers((jnp.ones(2), jnp.ones(3)), (jnp.ones(2), jnp.ones(3))),
        "logvar": {"kernel": jnp.ones(2), "bias": jnp.ones(2)},
        "hidden": jnp.ones(2),
        "LayerNorm_0": {"scale": jnp.ones(2), "bias": jnp.ones(2)},
    }
    zero = jax.tree.map(jnp.zeros_like, params)
    shrunk = Layers((0.95 * jnp.ones(2), 0.95 * jnp.ones(3)), params["layers"].biases)
    head = {"kernel": 0.95 * jnp.ones(2), "bias": jnp.ones(2)}
    expected = {**params, "layers": shrunk, "logvar": head}

    def step(optimizer):
        opt_state = optimize.init(optimizer, params)
        return optimize.update(optimizer, zero, opt_state, params)[0]

    for kind in ("adam", "sgd", "rmsprop"):
        after = jax.jit(step, static_argnums=0)(Optimizer(kind, 0.1, weight_decay=0.5))
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), after, expected)


def test_gradients_and_auxiliary_arrays_are_averaged_over_the_mapped_axis():
    x = jnp.arange(4.0)

    def of_replica(x):
        def loss(w):
            return w * x, {"loss": x, "count": jnp.int32(7)}

        return optimize.gradient(loss, jnp.float32(2.0), "replicas")

    gradient, aux = jax.vmap(of_replica, axis_name="replicas")(x)
    np.testing.assert_allclose(gradient, np.full(4, 1.5))
    np.testing.assert_allclose(aux["loss"], np.full(4, 1.5))
    np.testing.assert_array_equal(aux["count"], np.full(4, 7, np.int32))
    assert aux["count"].dtype == jnp.int32


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"momentum": 0.9}, "momentum has no meaning for adam, only for sgd"),
        ({"kind": "sgd", "b1": 0.5}, "b1 has no meaning for sgd, only for adam"),
        ({"kind": "sgd", "eps": 1e-3}, "eps has no meaning for sgd, only for adam and rmsprop"),
        ({"decay": 0.5}, "decay has no meaning for adam, only for rmsprop"),
        ({"decay_steps": 10}, "decay_steps is 10, which needs the schedule cosine"),
        (
            {"schedule": "cosine", "decay_steps": 5, "warmup_steps": 5},
            "decay_steps is 5, must be above warmup_steps, 5",
        ),
        ({"learning_rate": 0.0}, "learning_rate is 0.0, must be positive"),
        ({"clip_norm": -1.0}, "clip_norm is -1.0, must be at least 0"),
        ({"b2": 1.0}, "b2 is 1.0, must be at least 0 and below 1"),
    ],
)
def test_impossible_settings_are_refused(flags, message):
    with pytest.raises(UserError, match=f"^Optimizer: {message}$"):
        Optimizer(**flags)


COSINE = Optimizer(schedule="cosine")


def test_a_falling_schedule_needs_a_length():
    model = VAE(shape=(2,), encoder=MLP(()), decoder=MLP(()), latent=1, optimizer=COSINE)
    batch: Any = {"x": jnp.zeros((1, 2))}
    state = jax.eval_shape(model.init, jax.random.key(0))  # the first state has no schedule
    assert state == jax.eval_shape(optimize.for_run(model, 9).init, jax.random.key(0))
    with pytest.raises(UserError, match="the cosine schedule has no length: set decay_steps"):
        jax.eval_shape(model.step, state, batch, jax.random.key(0))


def test_a_warm_up_must_end_before_the_run():
    warm = Optimizer(schedule="cosine", warmup_steps=50)
    assert optimize.for_run(warm, 51).decay_steps == 51
    with pytest.raises(UserError, match="warmup_steps is 50 and the run has 50 steps"):
        optimize.for_run(warm, 50)


@dataclass(frozen=True)
class Part:
    optimizer: Any = COSINE
    count: int = 3


@dataclass(frozen=True)
class Whole:
    part: Part = Part()
    fixed: Part = Part(Optimizer())
    own: Any = optax.sgd(0.1)
    net: Any = MLP((3,))


def test_for_run_fills_in_lengths_at_any_depth_and_changes_nothing_else():
    model = Whole()
    filled = optimize.for_run(model, 70)
    assert filled == replace(model, part=Part(replace(COSINE, decay_steps=70)))
    assert optimize.for_run(filled, 90) is filled
    wrapped = Dequantized(VAE(likelihood="gaussian", optimizer=COSINE))
    assert optimize.for_run(wrapped, 5).base.optimizer.decay_steps == 5


def test_fit_lets_the_learning_rate_fall_to_zero_at_its_last_step():
    """The last of `steps` steps is the smallest, and none is 0."""
    model = VAE(shape=(4,), encoder=MLP(()), decoder=MLP(()), latent=1)
    model = replace(model, optimizer=Optimizer("sgd", 0.1, "cosine"))
    x = np.eye(4, dtype=np.float32)
    before, moves = None, []
    for progress in train.fit(model, {"x": x}, steps=8, batch_size=4):
        state = jax.tree.map(np.asarray, progress.carry.state.params)
        if before is not None:
            distances = jax.tree.map(lambda a, b: np.abs(a - b).max(), state, before)
            moves.append(max(jax.tree.leaves(distances)))
        before = state
    assert 0 < moves[-1] < 0.1 * moves[0]


def test_a_model_trains_with_an_optax_transformation_of_the_users():
    own = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-2))
    model = VAE(shape=(4,), encoder=MLP(()), decoder=MLP(()), latent=2, optimizer=own)
    x = np.repeat(np.eye(4, dtype=np.float32), 8, axis=0)
    training = train.fit(model, {"x": x}, steps=100, batch_size=32, report_every=20)
    losses = [progress.metrics["loss"] for progress in training if progress.metrics]
    assert losses[-1] < 0.9 * losses[0]


SWEPT = [
    [
        Optimizer("adam", 1e-3, "cosine", 9, 2, clip_norm=1.0, weight_decay=0.1),
        Optimizer("adam", 1e-2, "cosine", 9, 2, clip_norm=0.5, weight_decay=0.3, eps=1e-3),
    ],
    [Optimizer("sgd", 1e-2, momentum=0.9), Optimizer("sgd", 1e-1, momentum=0.5)],
    [Optimizer("rmsprop", 1e-3, eps=1e-7), Optimizer("rmsprop", 1e-2, eps=1e-3)],
]


@pytest.mark.parametrize("optimizers", SWEPT, ids=lambda optimizers: optimizers[0].kind)
def test_rates_as_arrays_give_what_they_give_as_constants(optimizers):
    rates = [optimize.rates(each) for each in optimizers]
    different = {name: [each[name] for each in rates] for name in rates[0]}
    different = {name: jnp.array(each) for name, each in different.items() if len(set(each)) > 1}
    assert different
    together = jax.vmap(lambda each: descend(optimize.with_rates(optimizers[0], each)))(different)
    for index, optimizer in enumerate(optimizers):
        for name, alone in descend(optimizer).items():
            np.testing.assert_allclose(together[name][index], alone, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(
    ("settings", "path", "values", "named"),
    [
        ({}, "optimizer.rate", [1, 2], "optimizer.rate is no rate of Mixture, which has optimizer"),
        ({}, "optimizer.learning_rate", [0.1, -1], "learning_rate is -1"),
        ({}, "optimizer.learning_rate", [0.1, 0.0], "learning_rate is 0.0"),
        ({}, "optimizer.momentum", [0.0, 0.0], "momentum has no meaning for adam, only for sgd"),
        ({}, "optimizer.clip_norm", [1.0, 2.0], "value 1.0 and the model 0.0: a rate of 0"),
        ({"clip_norm": 1.0}, "optimizer.clip_norm", [1.0, 0.0], "value 0.0 and the model 1.0"),
        ({"weight_decay": 1.0}, "optimizer.weight_decay", [0.0, 0.0], "value 0.0 and the model 1"),
    ],
)
def test_rates_that_a_program_cannot_take_are_refused(settings, path, values, named):
    model = Mixture((3,), optimizer=Optimizer(**settings))
    x = {"x": np.eye(3, dtype=np.float32)}
    with pytest.raises(UserError, match=named) as raised:
        next(train.fit(model, x, steps=1, batch_size=3, seed=(0, 1), rates={path: values}))
    assert "\n" not in str(raised.value)
