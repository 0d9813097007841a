"""The training loop: the rows it visits, its reports, its validation and its refusals."""

import inspect
import socket
from dataclasses import dataclass
from functools import partial
from types import SimpleNamespace
from typing import Any, ClassVar, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.experiment import FormatDecode
from gen import parallel, train
from gen.core import Density, UserError
from gen.data import Format
from gen.models.mixture import Mixture
from gen.models.vae import VAE
from gen.nets import MLP


class Seen(NamedTuple):
    counts: jax.Array  # [N], how often each row was in a batch
    steps: jax.Array  # number of steps


class Counter:
    """A model that counts how often it sees each row; x holds the row's number."""

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
    assert counts.min() > 10  # in 20 epochs, a tenth of which leave a row out


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


def test_dispatched_steps_are_ahead_of_the_computed_ones_by_a_limited_time(monkeypatch):
    """Each wait finds that 0.1 seconds have passed, and steps may be ahead by 0.5 seconds."""
    tenths, waits = iter(range(100)), []
    clock = SimpleNamespace(monotonic=lambda: 0.1 * next(tenths))
    monkeypatch.setattr(train, "time", clock)
    monkeypatch.setattr(jax, "block_until_ready", lambda carry: waits.append(int(carry.count)))
    for _ in train.fit(Counter(), DATA, steps=40, batch_size=5, report_every=40):
        pass
    # One step took 0.1 seconds, so that 5 may be ahead; then 5 took as long, so that 25 may.
    assert waits == [1, 6, 31]


def test_equal_settings_share_their_compiled_functions():
    traced = []

    @dataclass(frozen=True)
    class Traced(Counter):
        size: int = 0

        def step(self, state, batch, key, *, axis_name=None):
            traced.append(self.size)
            return super().step(state, batch, key)

    def final(size, batch_size=5):
        *_, last = train.fit(Traced(size=size), DATA, steps=4, batch_size=batch_size)
        return np.asarray(last.carry.state.counts)

    first, traces = final(1), len(traced)
    np.testing.assert_array_equal(first, final(1))
    assert len(traced) == traces
    final(1, batch_size=2)
    final(2)
    assert len(traced) == 3 * traces
    assert traced[-1] == 2


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

    training = train.fit(
        Broken(), DATA, steps=50, batch_size=5, report_every=10, steps_per_dispatch=1
    )
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


def test_no_key_of_a_step_is_used_twice():
    """Rows, binarisation and the model's own noise all come from the seed, by different keys."""
    model = VAE(shape=(2,), encoder=MLP(()), decoder=MLP(()), latent=1)
    data = {"x": jnp.full((8, 2), 7, jnp.uint8)}
    dynamic = partial(Format(16).decode, binarize="dynamic")
    carry = train.begin(model, data, 4, decode=dynamic)
    with jax.debug_key_reuse(True):
        jax.jit(
            lambda carry, order, seed, step: train.train_step(
                model, carry, data, order, seed, step, batch_size=4, report_every=1, decode=dynamic
            )
        )(carry, jnp.arange(8), jnp.uint32(0), jnp.int32(1))


@pytest.mark.parametrize("seed", [-1, 2**32, [0, 0], [0, -1], 1.5, "0"])
def test_impossible_seeds_are_refused(seed):
    with pytest.raises(UserError, match="seed"):
        next(train.fit(Counter(), DATA, steps=1, batch_size=1, seed=seed))


@pytest.mark.parametrize("batch_size", [0, 11])
def test_impossible_batches_are_refused(batch_size):
    with pytest.raises(UserError, match="take batch_size 1 … 10"):
        next(train.fit(Counter(), DATA, steps=1, batch_size=batch_size))


def test_streams_differ():
    keys = [jax.random.key_data(key).tobytes() for key in train.streams(0) + train.streams(1)]
    assert len(set(keys)) == 12


@pytest.mark.parametrize(
    ("batch_size", "devices", "sizes"), [(100, 8, "96 or 104"), (3, 8, "8"), (9, 2, "8 or 10")]
)
def test_batches_that_do_not_split_are_refused_with_the_nearest(batch_size, devices, sizes):
    with pytest.raises(UserError, match=f"nearest sizes that work are {sizes}"):
        parallel.check_batch(batch_size, devices)


def test_a_port_that_is_taken_is_refused():
    with socket.socket() as other:
        other.bind(("", 0))
        other.listen()
        address = f"localhost:{other.getsockname()[1]}"
        with pytest.raises(UserError, match=f"process 0 cannot listen at {address} .*another port"):
            parallel.join(address, processes=2, process=0)


@pytest.mark.parametrize("coordinator", ["here", "here:", "here:65536"])
def test_a_coordinator_without_a_port_is_refused(coordinator):
    with pytest.raises(
        UserError, match=f"coordinator is '{coordinator}': it has the form host:port"
    ):
        parallel.join(coordinator, processes=2, process=0)


@pytest.mark.usefixtures("eight_devices")
def test_too_many_devices_are_refused():
    with pytest.raises(UserError, match=r"9 devices asked for, 8 present"):
        parallel.make_mesh(9)


def test_shard_splits_rows_in_order():
    shards = parallel.shard({"x": np.arange(8)}, 4)
    np.testing.assert_array_equal(shards["x"], [[0, 1], [2, 3], [4, 5], [6, 7]])


class Walk(NamedTuple):
    place: jax.Array  # []
    target: jax.Array  # [], where this seed's objective is least


class Walker:
    """A model that goes up by one in each step; its objective is the distance to a target."""

    family: ClassVar[str] = "test"
    density: ClassVar[Density] = "none"
    shape: tuple[int, ...] = ()

    def init(self, key):
        return Walk(jnp.zeros(()), jax.random.randint(key, (), 4, 40).astype(jnp.float32))

    def step(self, state, batch, key, *, axis_name=None):
        return state._replace(place=state.place + 1), {"loss": state.place}

    def parameters(self, state):
        return ()

    def evaluate(self, state, data, key):
        return {}

    def objective(self, state, batch, key):
        return jnp.abs(state.place - state.target) + batch["x"]


VALIDATED: Any = {"validation": {"x": np.arange(7, dtype=np.float32)}, "validate_every": 4}


def test_validation_keeps_the_state_that_did_best():
    options: Any = {"steps": 50, "batch_size": 5, "report_every": 2, **VALIDATED}
    seen, last = {}, None
    for last in train.fit(Walker(), DATA, seed=1, **options):
        if last.metrics and "validation" in last.metrics:
            seen[last.step] = float(last.metrics["validation"])
    assert last
    carry = last.carry
    assert list(seen) == list(range(4, 51, 4))  # only at the multiples
    target = float(carry.state.target)
    for step, value in seen.items():
        np.testing.assert_allclose(value, abs(step - target) + 3.0)  # the mean of 0 … 6 is 3
    best = min(seen, key=lambda step: seen[step])
    assert isinstance(carry.best, train.Best)
    assert (int(carry.best.step), float(carry.chosen.place)) == (best, best)
    assert float(carry.state.place) == 50
    np.testing.assert_allclose(carry.best.validation, seen[best])


def test_every_seed_has_its_own_best():
    options: Any = {"steps": 48, "batch_size": 5, "report_every": 4, **VALIDATED}
    *_, together = train.fit(Walker(), DATA, seed=[1, 2], **options)
    steps = []
    for index, seed in enumerate([1, 2]):
        *_, alone = train.fit(Walker(), DATA, seed=seed, **options)
        of_seed = jax.tree.map(lambda leaf, i=index: leaf[i], together.carry)
        chex.assert_trees_all_close(of_seed, alone.carry, rtol=1e-6)
        assert isinstance(alone.carry.best, train.Best)
        steps.append(int(alone.carry.best.step))
    assert len(set(steps)) > 1


def test_validation_resumes_exactly():
    options: Any = {"batch_size": 5, "report_every": 4, **VALIDATED}
    *_, whole = train.fit(Walker(), DATA, steps=48, **options)
    *_, half = train.fit(Walker(), DATA, steps=24, **options)
    *_, resumed = train.fit(Walker(), DATA, steps=48, start=(24, half.carry), **options)
    chex.assert_trees_all_equal(resumed.carry, whole.carry)


@pytest.mark.parametrize("rows", [1, 99, 250])
def test_validation_counts_every_row_once(rows):
    x = np.linspace(0, 1, rows, dtype=np.float32)
    carry = train.begin(Walker(), DATA, 5, validated=True)
    _, value = train.validate(Walker(), carry, {"x": jnp.asarray(x)}, jnp.uint32(0), jnp.int32(1))
    np.testing.assert_allclose(value, x.mean() + float(carry.state.target), rtol=1e-5)


def test_validation_draws_the_same_each_time():
    """A VAE's objective is random: the same state has the same value at any step."""
    model = VAE(shape=(3,), encoder=MLP((2,)), decoder=MLP((2,)), latent=2)
    x = jnp.asarray(np.random.RandomState(0).randint(0, 2, (30, 3)), jnp.float32)
    carry = train.begin(model, {"x": x}, 10, validated=True)
    values = [
        float(train.validate(model, carry, {"x": x}, jnp.uint32(seed), jnp.int32(step))[1])
        for seed, step in ((0, 1), (0, 9), (5, 1))
    ]
    assert values[0] == values[1] != values[2]


def test_validation_needs_data():
    options: Any = {"steps": 4, "batch_size": 5, "validate_every": 2}
    for validation in (None, {"x": np.zeros(0, np.float32)}):
        with pytest.raises(UserError, match=r"no validation data|validation data: x has no rows"):
            list(train.fit(Walker(), DATA, validation=validation, **options))


class Scorer(Counter):
    """A model that scores an example by its number times the steps done."""

    def score(self, state, batch, key):
        return batch["x"] * state.steps


def test_without_an_objective_the_gap_of_scores_is_reported_and_no_best_state_kept():
    """The validation rows 5 … 11 have mean 8. Seven rows spread over the training rows 0 … 9 are
    0, 1, 3, 4, 6, 7 and 9, of mean 30 / 7."""
    gap = 8 - 30 / 7
    validation = {"x": np.arange(7, dtype=np.float32) + 5}
    for several in (False, True):
        seed: Any = [0, 1] if several else 0
        options: Any = {"steps": 8, "batch_size": 5, "seed": seed, "report_every": 4}
        options |= {"validation": validation, "validate_every": 4}
        gaps = {}
        for progress in train.fit(Scorer(), DATA, **options):
            assert progress.carry.best == ()
            if progress.metrics and "score_gap" in progress.metrics:
                gaps[progress.step] = progress.metrics["score_gap"]
        assert list(gaps) == [4, 8]
        np.testing.assert_allclose(gaps[4], np.full((2,) if several else (), 4 * gap), rtol=1e-6)
        np.testing.assert_allclose(gaps[8], np.full((2,) if several else (), 8 * gap), rtol=1e-6)


def test_before_the_first_validation_the_last_state_is_chosen():
    options: Any = {"steps": 3, "batch_size": 5, **VALIDATED}
    *_, last = train.fit(Walker(), DATA, seed=[1, 2], **options)
    np.testing.assert_array_equal(last.carry.chosen.place, [3, 3])


def test_a_model_without_objective_cannot_be_validated():
    with pytest.raises(UserError, match="no objective"):
        list(train.fit(Counter(), DATA, steps=2, batch_size=5, **VALIDATED))


def test_early_stop_ends_the_run_after_validations_without_a_better_state():
    options: Any = {"steps": 60, "batch_size": 5, "report_every": 4, "early_stop": 3, **VALIDATED}
    *_, alone = train.fit(Walker(), DATA, seed=1, **options)
    assert isinstance(alone.carry.best, train.Best)
    assert alone.step == int(alone.carry.best.step) + 12 < 60
    *_, half = train.fit(Walker(), DATA, seed=1, **options | {"steps": alone.step - 6})
    *_, resumed = train.fit(Walker(), DATA, seed=1, start=(half.step, half.carry), **options)
    assert resumed.step == alone.step
    chex.assert_trees_all_equal(resumed.carry, alone.carry)
    assert not list(train.fit(Walker(), DATA, seed=1, start=(alone.step, alone.carry), **options))
    *_, together = train.fit(Walker(), DATA, seed=[1, 2], **options)
    assert isinstance(together.carry.best, train.Best)
    assert together.step == int(together.carry.best.step.max()) + 12  # until all have stalled


@pytest.mark.parametrize(
    ("model", "options", "named"),
    [
        (Walker(), {"early_stop": 2}, "without validation"),
        (Walker(), {"early_stop": -1, **VALIDATED}, "early_stop -1 is out of range"),
        (Scorer(), {"early_stop": 2, **VALIDATED}, "has no objective"),
    ],
)
def test_early_stop_needs_validation_by_an_objective(model, options, named):
    with pytest.raises(UserError, match=named):
        list(train.fit(model, DATA, steps=4, batch_size=5, **options))


def test_bfloat16_rounds_the_inputs_of_matrix_products_and_sums_in_float32():
    """A CPU keeps float32, so the program for a GPU is read."""

    def algorithm(precision) -> str:
        with train.products_in(precision):
            traced = jax.jit(jnp.dot).trace(jnp.ones((4, 4)), jnp.ones((4, 4)))
            return traced.lower(lowering_platforms=("cuda",)).as_text()

    text = algorithm("bfloat16")
    assert "lhs_precision_type = bf16" in text
    assert "accumulation_type = f32" in text
    assert "bf16" not in algorithm("float32")


def default_precision() -> Any:
    """Return the precision in which JAX traces matrix products."""
    return jax.config.values["jax_default_matmul_precision"]


class Product(Counter):
    """A model whose step multiplies matrices, and notes the precision that it was traced in."""

    traced: ClassVar[list[Any]] = []

    def step(self, state, batch, key, *, axis_name=None):
        self.traced.append(default_precision())
        return super().step(state, batch, key, axis_name=axis_name)


@pytest.mark.parametrize("steps_per_dispatch", [1, 4])
def test_the_precision_holds_in_training_steps_and_not_outside(steps_per_dispatch):
    Product.traced.clear()
    options: Any = {"steps": 4, "batch_size": 5, "steps_per_dispatch": steps_per_dispatch}
    before = default_precision()
    for _ in train.fit(Product(), DATA, precision="bfloat16", **options):
        assert default_precision() == before
    assert Product.traced[-1] == "BF16_BF16_F32"


def test_fits_with_equal_formats_share_their_programs(monkeypatch):
    built, programs = [], inspect.unwrap(train._programs)

    @train.keep_programs
    def counted(*given, **settings):
        built.append(given)
        return programs(*given, **settings)

    monkeypatch.setattr(train, "_programs", counted)
    model, data = Mixture((3,), components=2), {"x": 255 * np.eye(3, dtype=np.uint8)}

    def fit(decode):
        next(train.fit(model, data, steps=1, batch_size=3, decode=decode))
        return len(built)

    assert [fit(FormatDecode(Format(255), "threshold")) for _ in range(2)] == [1, 1]
    assert fit(FormatDecode(Format(255))) == 2
