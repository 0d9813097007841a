"""What `fit` and `evaluate` refuse, in one line and before anything is compiled."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gen import checks, estimate, train
from gen.core import UserError, facts
from gen.data import Format
from gen.levels import as_values, check_levels, dequantize
from gen.models.autoregressive import NADE, Autoregressive
from gen.models.boltzmann import DBM, RBM
from gen.models.diffusion import FlowMatching, GaussianDiffusion, ResidualMLP
from gen.models.gan import GAN
from gen.models.hmm import HMM, Categorical, Gaussian, Poisson
from gen.models.mixture import Mixture
from gen.models.vae import VAE

RNG = np.random.default_rng(0)
BITS = RNG.integers(0, 2, (8, 4, 4, 1))
IMAGES = BITS.astype(np.float32)
HOLE = np.where(np.arange(8 * 16).reshape(8, 4, 4, 1) == 70, np.nan, IMAGES)
SYMBOLS = RNG.integers(0, 6, (8, 9, 1))
SYMBOLS[0, :6, 0] = np.arange(6)
STEPS = RNG.normal(size=(8, 9, 1)).astype(np.float32)
PADDED = np.where(np.arange(9)[None, :, None] < np.arange(2, 10)[:, None, None], STEPS, 0)

SMALL: Any = {"shape": (4, 4, 1)}
IMAGE = VAE(**SMALL)
MACHINE = RBM(**SMALL, hidden=3)
LABELLED = GaussianDiffusion(ResidualMLP(width=4, layers=1), levels=2, classes=3, **SMALL)
LETTERS = HMM(shape=(9, 1), states=2, emission=Categorical(6))
SERIES = HMM(shape=(9, 1), states=2, emission=Gaussian())
COUNTS = HMM(shape=(9, 1), states=2, emission=Poisson())


def labelled(*label, dtype: Any = np.int32):
    return {"x": IMAGES, "label": np.resize(np.array(label, dtype), 8)}


def lengths(*length, x=SYMBOLS, dtype: Any = np.int32):
    return {"x": x, "length": np.resize(np.array(length, dtype), len(x))}


HMM_LEVELS = r"continuous .* 6 levels: take Dequantized\(HMM.*, or emission=Categorical\(6\)"

REFUSED = {
    "a class": (VAE, {"x": IMAGES}, r"the class VAE: pass VAE\(\.\.\.\)"),
    "bare array": (IMAGE, IMAGES, r'a bare array of shape \(8, 4, 4, 1\): .* \{"x": x\}'),
    "list of arrays": (IMAGE, [IMAGES], "the data are a list: pass arrays by name"),
    "list": (IMAGE, {"x": IMAGES.tolist()}, r"x is a list: pass an array, numpy\.asarray\(x\)"),
    "no x": (IMAGE, {"image": IMAGES}, "no array \"x\" .*'image'"),
    "number": (IMAGE, {"x": IMAGES, "label": np.array(3)}, "label is a single number"),
    "rows": (LABELLED, {"x": IMAGES, "label": np.arange(2)}, "x has 8, label has 2"),
    "no rows": (IMAGE, {"x": IMAGES[:0]}, "x has no rows"),
    "text": (IMAGE, {"x": IMAGES.astype(str)}, r"dtype <U32: .* x\.astype\(numpy\.float32\)"),
    "text beside x": (
        IMAGE,
        labelled("a", "b", dtype=str),
        "label has the dtype <U1: .* leave it out",
    ),
    "dates": (IMAGE, {"x": IMAGES.astype("timedelta64[s]")}, "dtype timedelta64"),
    "masked": (IMAGE, {"x": np.ma.masked_array(IMAGES)}, r"masked array: .*filled\(numpy\.nan\)"),
    "64 bits": (SERIES, {"x": np.full((8, 9, 1), 2**40)}, "beyond 32 bits: pass x.astype"),
    "complex": (IMAGE, {"x": IMAGES.astype(complex)}, "dtype complex128"),
    "no shape": (VAE(), {"x": IMAGES}, r"pass VAE\(shape=\(4, 4, 1\), \.\.\.\)$"),
    "flat": (IMAGE, {"x": IMAGES.reshape(8, 16)}, r"or x\.reshape\(-1, 4, 4, 1\)"),
    "longer": (SERIES, {"x": STEPS[:, :5]}, r"pass HMM\(shape=\(5, 1\), \.\.\.\)"),
    "NaN": (IMAGE, {"x": HOLE}, r"x\[4, 1, 2, 0\] is nan and VAE takes finite values"),
    "infinity": (SERIES, {"x": np.where(STEPS > 1, np.inf, STEPS)}, "is inf and HMM"),
    "bytes": (IMAGE, {"x": 255 * IMAGES}, r"VAE takes .*from 0 to 255: divide .*x / 255"),
    "uint8": (GAN(**SMALL), {"x": (255 * BITS).astype(np.uint8)}, "GAN takes .* x / 255"),
    "standard": (IMAGE, {"x": IMAGES * 5 - 2}, r"from -2 to 3: scale x to \[0, 1\]"),
    "±1": (MACHINE, {"x": 2 * IMAGES - 1}, r"RBM takes .* from -1 to 1: pass \(x \+ 1\) / 2"),
    "±1 levels": (DBM(**SMALL), {"x": 2 * IMAGES - 1}, r"2 levels .* pass \(x \+ 1\) / 2"),
    "±1 integers": (DBM(**SMALL), {"x": 2 * BITS - 1}, r"integers -1 … 1 .* symbols 0 … 1"),
    "grey": (Mixture(**SMALL), {"x": 0.3 * IMAGES}, r"from 0 to 0\.3: binarise them"),
    "grey bytes": (Mixture(**SMALL), {"x": 255 * BITS}, r"integers 0 … 255 .* binarise"),
    "between": (LETTERS, {"x": SYMBOLS / 7}, r"6 levels .* numpy\.round\(x \* 5\) / 5"),
    "from 1": (LETTERS, {"x": SYMBOLS + 1}, "integers 1 … 6 .* symbols 0 … 5: count from 0, x - 1"),
    "below 0": (LETTERS, {"x": SYMBOLS - 1}, 'integers -1 … 4 .* "length"'),
    "too many": (LETTERS, {"x": SYMBOLS * 2}, "integers 0 … 10 .* levels to 11"),
    "floats": (LETTERS, {"x": SYMBOLS * 1.0}, r"from 0 to 5: .* x\.astype\(numpy\.int32\).* x / 5"),
    "levels": (SERIES, {"x": SYMBOLS}, HMM_LEVELS),
    "no counts": (COUNTS, {"x": STEPS}, "counts 0, 1, 2, … and x has other values"),
    "labels from 1": (LABELLED, labelled(1, 2, 3), "label has 1 … 3, .* 0 … 2: .* label - 1"),
    "no label": (LABELLED, labelled(0, -1), "label has -1, needed are 0 … 2"),
    "label 7": (LABELLED, labelled(7), "labels up to 7, the model 3 classes"),
    "unlabelled": (LABELLED, {"x": IMAGES}, "has no labels, which the model takes"),
    "float labels": (LABELLED, labelled(1, dtype=float), r"float64: .* label\.astype"),
    "one-hot": (LABELLED, {"x": IMAGES, "label": np.eye(8, 3, dtype=int)}, r"shape \(8, 3\)"),
    "empty": (LETTERS, lengths(-1), "length has -1, needed are 1 … 9"),
    "too long": (LETTERS, lengths(10), "length has 10, needed are 1 … 9"),
    "float lengths": (LETTERS, lengths(3, dtype=float), r"float64: .* length\.astype"),
    "lengths": (IMAGE, {"x": IMAGES, "length": np.ones(8, int)}, "VAE does not take: an HMM does"),
    "padded": (SERIES, {"x": PADDED}, '7 of 8 sequences end in steps of zeros, up to 7.*"length"'),
}


@pytest.mark.parametrize(("model", "rows", "named"), REFUSED.values(), ids=REFUSED)
def test_data_that_do_not_fit_are_refused_in_one_line(model, rows, named):
    with pytest.raises(UserError, match=named) as raised:
        next(train.fit(model, rows, steps=1, batch_size=2))
    assert "\n" not in str(raised.value)


TAKEN = {
    "symbols": (LETTERS, {"x": SYMBOLS}),
    "symbols in 8 bits": (LETTERS, {"x": SYMBOLS.astype(np.uint8)}),
    "levels": (LETTERS, {"x": SYMBOLS / 5}),
    "missing values": (LETTERS, {"x": np.where(SYMBOLS == 3, np.nan, SYMBOLS / 5)}),
    "padding of any value": (
        LETTERS,
        lengths(5, x=np.where(np.arange(9)[:, None] < 5, SYMBOLS, -1)),
    ),
    "measurements": (SERIES, {"x": STEPS}),
    "padded measurements": (SERIES, lengths(*range(2, 10), x=PADDED)),
    "zeros among measurements": (SERIES, {"x": np.where(np.abs(STEPS) < 0.5, 0, STEPS)}),
    "counts": (COUNTS, {"x": SYMBOLS}),
    "grey": (IMAGE, {"x": 0.3 * IMAGES}),
    "labels": (LABELLED, labelled(0, 1, 2)),
}


@pytest.mark.parametrize(("model", "rows"), TAKEN.values(), ids=TAKEN)
def test_data_that_fit_are_taken(model, rows):
    checks.check_data(model, rows)


@pytest.mark.parametrize(
    ("model", "rows"),
    [each for each in TAKEN.values() if isinstance(each[0], HMM)],
    ids=[name for name, each in TAKEN.items() if isinstance(each[0], HMM)],
)
def test_sequences_that_fit_are_taken_in_evaluation(model, rows):
    state = jax.eval_shape(model.init, jax.random.key(0))
    with pytest.MonkeyPatch.context() as patched:  # nothing is computed, all data are checked
        patched.setattr(estimate, "per_example", lambda f, data, key: np.zeros(len(data["x"])))
        estimate.evaluate(model, state, rows, jax.random.key(0), levels=facts(model).levels)


def test_counts_that_are_all_missing_are_evaluated():
    state = jax.jit(COUNTS.init)(jax.random.key(0))
    missing = {"x": np.full((2, 9, 1), np.nan, np.float32)}
    nll = estimate.evaluate(COUNTS, state, missing, jax.random.key(0))["nll"]
    np.testing.assert_allclose(nll.value, 0, atol=1e-5)


def test_all_rows_decide_what_to_advise(monkeypatch):
    """The advice for labels or symbols 1 … K does not depend on the order of the rows."""
    monkeypatch.setattr(checks, "VALUES_AT_ONCE", 3 * 16)
    with pytest.raises(UserError, match="label has 1 … 3, needed are 0 … 2: count from 0"):
        checks.check_data(LABELLED, {"x": IMAGES, "label": np.array([1, 1, 1, 2, 2, 3, 3, 3])})
    symbols = np.repeat([1, 2, 3, 6], 2)[:, None, None] * np.ones((1, 9, 1), np.int32)
    with pytest.raises(UserError, match="count from 0, x - 1"):
        checks.check_data(LETTERS, {"x": symbols})


def test_padding_in_later_rows_is_noticed(monkeypatch):
    monkeypatch.setattr(checks, "VALUES_AT_ONCE", 9)
    with pytest.raises(UserError, match="look like padding"):
        checks.check_data(SERIES, {"x": PADDED[::-1]})


def test_methods_take_symbols_as_fit_does():
    symbols, levels = {"x": SYMBOLS}, {"x": (SYMBOLS / 5).astype(np.float32)}
    net = Autoregressive(NADE(hidden=2), shape=(9, 1), levels=6)
    for model in (LETTERS, net):
        state = jax.jit(model.init)(jax.random.key(0))
        log_prob = jax.jit(model.log_prob)
        np.testing.assert_array_equal(log_prob(state, symbols), log_prob(state, levels))
    state, x = jax.jit(LETTERS.init)(jax.random.key(0)), jnp.asarray(SYMBOLS)
    completed = jax.jit(LETTERS.complete)(state, x, x < 9, jax.random.key(1))
    np.testing.assert_allclose(completed, levels["x"], rtol=1e-6)


@pytest.mark.parametrize("model", [GaussianDiffusion(levels=6), FlowMatching(levels=6)])
def test_diffusion_models_take_symbols(model):
    levels = (SYMBOLS / 5).astype(np.float32)
    np.testing.assert_array_equal(model.to_continuous(SYMBOLS), model.to_continuous(levels))


def test_the_levels_of_integers_are_checked_and_dequantized():
    levels = (SYMBOLS / 5).astype(np.float32)
    a, b = (dequantize(jnp.asarray(x), 6, 0.5) for x in (SYMBOLS, levels))
    np.testing.assert_array_equal(a, b)
    check_levels({"x": SYMBOLS}, 6)
    with pytest.raises(UserError, match="6 levels"):
        check_levels({"x": SYMBOLS + 1}, 6)


def test_other_lengths_are_taken_in_evaluation():
    checks.check_data(SERIES, {"x": STEPS[:, :5]}, any_length=True)


@pytest.mark.parametrize("dtype", [np.int32, np.uint8, bool, np.float16])
def test_bits_of_any_dtype_become_floats(dtype):
    """Also a state that a step of a loop returns keeps its dtype then."""
    bits = {"x": BITS.astype(dtype)}
    checks.check_data(MACHINE, bits)
    values = as_values(bits, facts(MACHINE).levels)["x"]
    assert values.dtype == np.float32
    np.testing.assert_array_equal(values, IMAGES)
    carry = jax.eval_shape(lambda: train.begin(MACHINE, bits, 2))
    assert {leaf.dtype for leaf in jax.tree.leaves(carry.state)} == {np.dtype(np.float32)}


def test_symbols_train_and_evaluate_as_their_levels_do():
    symbols, levels = {"x": SYMBOLS}, {"x": (SYMBOLS / 5).astype(np.float32)}
    (a,), (b,) = (list(train.fit(LETTERS, x, steps=1, batch_size=8)) for x in (symbols, levels))
    assert a.metrics
    assert b.metrics
    np.testing.assert_array_equal(a.metrics["loss"], b.metrics["loss"])
    state, key = a.carry.state, jax.random.key(0)
    assert estimate.evaluate(LETTERS, state, symbols, key) == LETTERS.evaluate(state, levels, key)
    with pytest.raises(UserError, match="integers 1 … 6"):
        estimate.evaluate(LETTERS, state, {"x": SYMBOLS + 1}, key)


def test_decoded_rows_are_checked(monkeypatch):
    """Every row is decoded, in blocks of one size, and errors name the row."""
    monkeypatch.setattr(checks, "VALUES_AT_ONCE", 3 * 16)
    grey = (255 * BITS).astype(np.uint8)
    sizes = []

    def scale(batch, key):
        sizes.append(len(batch["x"]))
        return Format(255).decode(batch, key)

    checks.check_data(IMAGE, {"x": grey}, decode=scale)
    assert sizes == [3]  # compiled once
    dynamic = partial(Format(255).decode, binarize="dynamic")
    checks.check_data(Mixture(**SMALL), {"x": grey}, decode=dynamic)
    with pytest.raises(UserError, match=r"x\[4, 1, 2, 0\] is nan"):
        checks.check_data(IMAGE, {"x": HOLE}, decode=Format().decode)
    with pytest.raises(UserError, match="from 0 to 255"):
        checks.check_data(IMAGE, {"x": grey}, decode=Format().decode)


SETTINGS = [
    ("seed", 1.5, "seed is 1.5: pass an integer"),
    ("seed", [0, "1"], "seed is '1': pass an integer"),
    ("steps", 1e3, r"steps is 1000\.0: pass an integer"),
    ("seed", [], "seed is empty: pass one integer or more"),
    ("steps", True, "steps is True: pass an integer"),
    ("levels", -3, "levels -3 is out of range: take 0"),
    ("levels", "none", "levels is 'none': pass an integer"),
    ("steps", 0, "steps 0 is out of range: take 1"),
    ("report_every", 2.5, "report_every is 2.5"),
    ("report_every", 0, "report_every 0 is out of range"),
    ("pause_every", [5, 0], "pause_every 0 is out of range"),
    ("batch_size", 2.0, r"batch_size is 2\.0: pass an integer"),
    ("batch_size", 9, "a batch of 9 from 8 training examples: take batch_size 1 … 8"),
    ("steps_per_dispatch", -1, "steps_per_dispatch -1 is out of range: take 0"),
    ("validate_every", "5", "validate_every is '5'"),
]


@pytest.mark.parametrize(("name", "value", "named"), SETTINGS)
def test_settings_that_are_no_integers_or_out_of_range_are_refused(name, value, named):
    options: Any = {"steps": 1, "batch_size": 2, name: value}
    with pytest.raises(UserError, match=named):
        next(train.fit(IMAGE, {"x": IMAGES}, **options))


def test_validation_data_are_checked_too():
    options: Any = {"steps": 1, "batch_size": 2, "validate_every": 1}
    with pytest.raises(UserError, match=r"validation data: VAE takes .* from 0 to 255"):
        next(train.fit(IMAGE, {"x": IMAGES}, validation={"x": 255 * IMAGES}, **options))
    with pytest.raises(UserError, match="a bare array"):
        next(train.fit(IMAGE, {"x": IMAGES}, validation=IMAGES, **options))  # type: ignore
    with pytest.raises(UserError, match='validation data: "length" is missing'):
        next(train.fit(LETTERS, lengths(5), validation={"x": SYMBOLS}, **options))


def test_levels_are_the_symbols_of_every_model_that_has_them():
    model = Autoregressive(NADE(hidden=2), shape=(9, 1), levels=6)
    checks.check_data(model, {"x": SYMBOLS})
    with pytest.raises(UserError, match="Autoregressive the symbols 0 … 5"):
        checks.check_data(model, {"x": SYMBOLS + 1})
