"""The loop: what it visits, what it reports, what it refuses."""

from functools import partial
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gen import parallel, train
from gen.core import Density, UserError
from gen.data import decode
from gen.models.vae import VAE


class Seen(NamedTuple):
    counts: jax.Array  # [N], how often each row was in a batch
    steps: jax.Array  # number of steps


class Counter:
    """A model that only notes which rows it is given; x holds the row's number."""

    family: ClassVar[str] = "test"
    density: ClassVar[Density] = "none"
    shape: tuple[int, ...] = ()

    def init(self, key):
        return Seen(jnp.zeros(10, jnp.int32), jnp.zeros((), jnp.int32))

    def step(self, state, batch, key, *, axis_name=None):
        metrics = {"sum": batch["x"].sum(), "steps": state.steps.astype(jnp.float32)}
        return Seen(state.counts.at[batch["x"].astype(int)].add(1), state.steps + 1), metrics

    def parameters(self, state):
        return ()

    def evaluate(self, state, data, key):
        return {}


DATA = {"x": np.arange(10, dtype=np.float32)}


def test_an_epoch_visits_rows_once_and_left_over_rows_take_turns():
    for progress in train.fit(Counter(), DATA, steps=60, batch_size=3):
        counts = np.asarray(progress.carry.state.counts)
        if progress.step % 3 == 0:  # an epoch is 10 // 3 steps of 3 rows
            assert counts.sum() == 3 * progress.step
            assert counts.max() <= progress.step // 3
    assert counts.min() > 10  # of 20 epochs; a row is left out of a tenth of them


def test_row_order_depends_on_seed_and_epoch():
    def batches(seed):
        options: Any = {"steps": 6, "batch_size": 5, "seed": seed, "report_every": 1}
        return [float(p.metrics["sum"]) for p in train.fit(Counter(), DATA, **options) if p.metrics]

    assert batches(0) == batches(0)
    assert batches(0) != batches(1)
    assert len(set(batches(0)[::2])) > 1


def test_metrics_are_means_since_the_last_report():
    reports = {
        progress.step: float(progress.metrics["steps"])
        for progress in train.fit(Counter(), DATA, steps=25, batch_size=5, report_every=10)
        if progress.metrics
    }
    assert reports == {10: 4.5, 20: 14.5, 25: 22.0}


def test_pauses_end_a_dispatch():
    options: Any = {"batch_size": 1, "report_every": 50, "steps_per_dispatch": 100}
    steps = [p.step for p in train.fit(Counter(), DATA, steps=20, pause_every=[7], **options)]
    assert steps == [7, 10, 14, 20]  # an epoch has 10 steps


def test_start_continues():
    *_, half = train.fit(Counter(), DATA, steps=7, batch_size=5)
    *_, rest = train.fit(Counter(), DATA, steps=12, batch_size=5, start=(7, half.carry))
    *_, whole = train.fit(Counter(), DATA, steps=12, batch_size=5)
    np.testing.assert_array_equal(rest.carry.state.counts, whole.carry.state.counts)


def test_metrics_that_are_not_finite_stop_the_run_and_are_named():
    class Broken(Counter):
        def step(self, state, batch, key, *, axis_name=None):
            state, metrics = super().step(state, batch, key)
            return state, {**metrics, "bad": jnp.where(state.steps == 13, jnp.nan, 1.0)}

    training = train.fit(Broken(), DATA, steps=50, batch_size=5, report_every=10)
    for _ in range(19):
        next(training)
    with pytest.raises(train.NonFiniteError, match="step 20: bad of seed 0 is not finite"):
        next(training)


def test_nan_in_the_state_is_named():
    carry = train.begin(Counter(), DATA, 2)
    log_zero = carry._replace(sums={**carry.sums, "sum": jnp.array(-jnp.inf)})
    train.check_finite(3, carry)
    train.check_finite(3, log_zero)
    for value in (jnp.nan, jnp.inf):
        bad = carry._replace(sums={**carry.sums, "sum": jnp.array(value)})
        with pytest.raises(train.NonFiniteError, match=r"step 3: .*sum.* holds NaN or infinity"):
            train.check_finite(3, bad)


def test_the_seed_that_fails_is_named():
    class Broken(Counter):
        def step(self, state, batch, key, *, axis_name=None):
            state, metrics = super().step(state, batch, key)
            return state, {**metrics, "bad": jnp.log(batch["x"][0] - 7.5)}

    options: Any = {"steps": 1, "batch_size": 1, "seed": [5, 6, 7, 8]}
    *_, sound = train.fit(Counter(), DATA, **options)
    assert sound.metrics
    drawn = sound.metrics["sum"]  # the one row that each seed begins with
    assert drawn.min() < 7.5 < drawn.max()
    bad = ", ".join(str(seed) for seed, row in zip([5, 6, 7, 8], drawn, strict=True) if row < 7.5)
    with pytest.raises(train.NonFiniteError, match=f"step 1: bad of seed {bad} is not finite"):
        list(train.fit(Broken(), DATA, **options))


def test_every_use_of_a_steps_randomness_has_a_key_of_its_own():
    """From the seed on: rows, binarisation and the model's own noise."""
    model = VAE(shape=(2,), encoder=(), decoder=(), latent=1)
    data = {"x": jnp.full((8, 2), 7, jnp.uint8)}
    dynamic = partial(decode, peak=16, binarize="dynamic")
    carry = train.begin(model, data, 4, decode=dynamic)
    with jax.debug_key_reuse(True):
        jax.jit(
            lambda carry, order, seed, step: train.train_step(
                model, carry, data, order, seed, step, batch_size=4, report_every=1, decode=dynamic
            )
        )(carry, jnp.arange(8), jnp.uint32(0), jnp.int32(1))


@pytest.mark.parametrize("seed", [-1, 2**32, [0, 0], [0, -1]])
def test_impossible_seeds_are_refused(seed):
    with pytest.raises(UserError, match="seed"):
        next(train.fit(Counter(), DATA, steps=1, batch_size=1, seed=seed))


@pytest.mark.parametrize("batch_size", [0, 11])
def test_impossible_batches_are_refused(batch_size):
    with pytest.raises(UserError, match="take 1 … 10"):
        next(train.fit(Counter(), DATA, steps=1, batch_size=batch_size))


def test_streams_differ():
    keys = [jax.random.key_data(key).tobytes() for key in train.streams(0) + train.streams(1)]
    assert len(set(keys)) == 10


@pytest.mark.parametrize(
    ("batch_size", "devices", "sizes"), [(100, 8, "96 or 104"), (3, 8, "8"), (9, 2, "8 or 10")]
)
def test_batches_that_do_not_split_are_refused_with_the_nearest(batch_size, devices, sizes):
    with pytest.raises(UserError, match=f"nearest sizes that work are {sizes}"):
        parallel.check_batch(batch_size, devices)


def test_too_many_devices_are_refused():
    with pytest.raises(UserError, match=r"9 devices asked for, 8 present"):
        parallel.make_mesh(9)


def test_shard_splits_rows_in_order():
    shards = parallel.shard({"x": np.arange(8)}, 4)
    np.testing.assert_array_equal(shards["x"], [[0, 1], [2, 3], [4, 5], [6, 7]])
