"""Boltzmann machines against sums over all their states."""

import itertools
from dataclasses import replace
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

from experiments import pictures
from gen import estimate
from gen.core import sgd
from gen.models.boltzmann import DBM, DBN, RBM, BoltzmannMachine, dbm, general, learning, rbm
from gen.parallel import pmap_step, replicate, shard

D = 5
V = np.array(list(itertools.product([0, 1], repeat=D)), np.float32)  # all visible states
QUICK: dict[str, Any] = {"chains": 50, "annealed": 200, "temperatures": 300, "mixing": 50}


def bits(n):
    return np.array(list(itertools.product([0, 1], repeat=n)), np.float32)


def normal(seed, *shape, scale=1.0):
    return scale * jax.random.normal(jax.random.key(seed), shape)


def rbm_params(seed=0, visible=D, hidden=4, gaussian=False, scale=1.0):
    return rbm.Params(
        normal(seed, visible, hidden, scale=scale),
        normal(seed + 1, visible, scale=0.5),
        normal(seed + 2, hidden, scale=0.5),
        normal(seed + 3, visible, scale=0.3) if gaussian else None,
    )


def rbm_energy(params, v, h):
    """By the definition, in float64: [n] of v [n, D] and h [n, H]."""
    w, b, c = (np.asarray(leaf, np.float64) for leaf in params[:3])
    if params.logvar is not None:
        v = v * np.exp(-0.5 * np.asarray(params.logvar, np.float64))
        return 0.5 * ((v - b) ** 2).sum(1) - h @ c - np.einsum("ni,ij,nj->n", v, w, h)
    return -v @ b - h @ c - np.einsum("ni,ij,nj->n", v, w, h)


def rbm_joint(params):
    """−E over all (v, h): [2^D, 2^H]."""
    size, hidden = params.weight.shape
    pairs = [(v, h) for v in bits(size) for h in bits(hidden)]
    v, h = (np.array(part) for part in zip(*pairs, strict=True))
    return -rbm_energy(params, v, h).reshape(2**size, 2**hidden)


def layered_params(seed=0, sizes=(D, 3, 4), scale=1.0):
    weights = tuple(
        normal(seed + i, *pair, scale=scale) for i, pair in enumerate(itertools.pairwise(sizes))
    )
    return dbm.Params(
        weights, tuple(normal(seed + 9 + i, n, scale=0.5) for i, n in enumerate(sizes))
    )


def layered_joint(params):
    """−E of a layered machine over all v and all hidden states, by loops: [2^D, …]."""
    weights, biases = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), tuple(params))
    sizes = [len(b) for b in biases]
    out = np.zeros([2**n for n in sizes])
    for index in np.ndindex(*out.shape):
        layers = [bits(n)[i] for n, i in zip(sizes, index, strict=True)]
        out[index] = sum(x @ b for x, b in zip(layers, biases, strict=True))
        for x, w, y in zip(layers, weights, layers[1:], strict=False):
            out[index] += x @ w @ y
    return out.reshape(2 ** sizes[0], -1)


def general_params(seed=0, n=8, scale=0.7):
    return general.Params(
        jnp.triu(normal(seed, n, n, scale=scale), 1), normal(seed + 1, n, scale=0.5)
    )


def general_joint(params, size=D):
    u, b = (np.asarray(leaf, np.float64) for leaf in params)
    n = len(b)
    x = bits(n)
    value = x @ b
    for i in range(n):
        for j in range(i + 1, n):
            value += u[i, j] * x[:, i] * x[:, j]
    return value.reshape(2**size, -1)


def machine(name, seed=0) -> tuple[Any, Any, np.ndarray]:
    """(model, its state at random parameters, −E over all [2^D, states of the rest])."""
    if name == "rbm":
        model = RBM(shape=(D,), hidden=4, **QUICK)
        params, joint = rbm_params(seed), rbm_joint(rbm_params(seed))
    elif name == "dbm":
        model = DBM(shape=(D,), hidden=(3, 4), **QUICK)
        params, joint = layered_params(seed), layered_joint(layered_params(seed))
    elif name == "deep":
        model, sizes = DBM(shape=(D,), hidden=(3, 2, 3), **QUICK), (D, 3, 2, 3)
        params = layered_params(seed, sizes)
        joint = layered_joint(params)
    else:
        model = BoltzmannMachine(shape=(D,), hidden=3, **QUICK)
        params, joint = general_params(seed), general_joint(general_params(seed))
    state = model.init(jax.random.key(seed))
    return model, state._replace(params=params), joint


def log_sum(x, axis=None) -> Any:
    return scipy.special.logsumexp(np.asarray(x, np.float64), axis=axis)


MODULES: dict[str, Any] = {"rbm": rbm, "dbm": dbm, "deep": dbm, "general": general}
SLOW = pytest.mark.slow
ALL = pytest.mark.parametrize(
    "name", ["rbm", "dbm", pytest.param("deep", marks=SLOW), pytest.param("general", marks=SLOW)]
)


@ALL
def test_log_z_and_log_p_equal_sums_over_all_states(name):
    model, state, joint = machine(name)
    log_z = log_sum(joint)
    np.testing.assert_allclose(MODULES[name].log_partition(state.params), log_z, rtol=1e-5)
    log_p = log_sum(joint, 1) - log_z
    value = model.log_prob_unnormalized(state, {"x": jnp.asarray(V)}) - log_z
    if isinstance(model, DBM):
        assert (value < log_p + 1e-5).all()
        assert (value > log_p - 2).all()
    else:
        np.testing.assert_allclose(value, log_p, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(np.exp(value).sum(), 1, rtol=1e-4)
    nll = model.evaluate(state, {"x": V}, jax.random.key(0))["nll"]
    np.testing.assert_allclose(nll.value, -value.mean(), rtol=1e-5)
    assert nll.kind == ("upper bound" if isinstance(model, DBM) else "exact")
    found = model.bracket(state, jax.random.key(1))
    assert abs(found.forward - log_z) < 4 * found.forward_stderr
    assert (
        abs(found.reverse - log_z) < 4 * found.reverse_stderr + 0.02
    )  # the draws are nearly exact


@pytest.mark.parametrize("shape", [(3, 6), (6, 3)])
def test_rbm_log_z_sums_over_the_smaller_side(shape):
    params = rbm_params(visible=shape[0], hidden=shape[1])
    np.testing.assert_allclose(rbm.log_partition(params), log_sum(rbm_joint(params)), rtol=1e-5)


def test_gaussian_rbm_is_a_mixture_of_gaussians():
    params = rbm_params(visible=2, hidden=3, gaussian=True, scale=0.5)
    grid = np.linspace(-12, 12, 481)
    v = np.array(list(itertools.product(grid, grid)))
    h = bits(3)
    log_p = np.stack([-rbm_energy(params, v, np.tile(row, (len(v), 1))) for row in h])
    log_z = log_sum(log_p) + 2 * np.log(grid[1] - grid[0])
    np.testing.assert_allclose(rbm.log_partition(params), log_z, rtol=1e-4)
    free = -rbm.free_energy(params, jnp.asarray(v[::1000], jnp.float32))
    np.testing.assert_allclose(free, log_sum(log_p[:, ::1000].T, 1), rtol=1e-4, atol=1e-3)
    # AIS reaches it, and Gibbs sampling has the moments of the integral.
    path = rbm.annealing(params, jnp.zeros(2))
    log_w = estimate.ais(path, 300, jax.random.key(0), 500)
    found = estimate.log_z(log_w, log_w)
    assert abs(found.forward - log_z) < 4 * found.forward_stderr + 0.01
    p = np.exp(log_sum(log_p.T, 1) - log_sum(log_p))
    drawn = rbm.gibbs(params, jnp.zeros((20_000, 2)), jax.random.key(1), 60)
    np.testing.assert_allclose(drawn.mean(0), p @ v, atol=0.05)
    np.testing.assert_allclose((drawn**2).mean(0), p @ v**2, rtol=0.05)


@pytest.mark.parametrize("seed", range(3))
def test_conditionals_equal_those_of_the_joint(seed):
    params = rbm_params(seed)
    joint = np.exp(rbm_joint(params))
    of_h = joint / joint.sum(1, keepdims=True)
    np.testing.assert_allclose(
        jax.nn.sigmoid(rbm.hidden_field(params, jnp.asarray(V))), of_h @ bits(4), rtol=1e-4
    )
    of_v = joint / joint.sum(0, keepdims=True)
    np.testing.assert_allclose(
        rbm.visible_mean(params, jnp.asarray(bits(4))), of_v.T @ V, rtol=1e-4
    )
    model, state, joint = machine("general", seed)
    law = np.exp(joint - log_sum(joint, 1)[:, None])
    np.testing.assert_allclose(model.encode(state, {"x": jnp.asarray(V)}), law @ bits(3), rtol=1e-4)


def exact_gradient(name, state, x):
    """That of −mean log p(x), by differentiating the sum over all states."""
    module = MODULES[name]

    def nll(params):
        free = (
            module.free_energy(params, x)
            if name != "dbm"
            else -jax.nn.logsumexp(layered_log_joint(params, x), axis=1)
        )
        return free.mean() + module.log_partition(params)

    return jax.grad(nll)(state.params)


def layered_log_joint(params, x):
    h = [jnp.asarray(bits(len(b))) for b in params.biases[1:]]
    rows = [jnp.asarray(row) for row in itertools.product(*(range(len(part)) for part in h))]
    layers = [jnp.stack([part[row[i]] for row in rows]) for i, part in enumerate(h)]

    def one(v):
        return -dbm.energy(params, [jnp.tile(v[None], (len(rows), 1)), *layers])

    return jax.vmap(one)(x)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("rbm", {"training": "pcd"}),
        pytest.param("rbm", {"training": "cd", "sweeps": 100}, marks=SLOW),
        pytest.param("rbm", {"training": "pt", "ladder": 4}, marks=SLOW),
        pytest.param("general", {}, marks=SLOW),
    ],
)
def test_the_gradient_of_many_long_chains_is_the_exact_one(name, options):
    model, state, _ = machine(name, 3)
    options = {"sweeps": 30, "chains": 20_000, "learning_rate": 1.0, **options}
    if name == "rbm":
        options["centred"] = False
    model = replace(model, **options)
    params = jax.tree.map(lambda leaf: 0.5 * leaf, state.params)
    state = model.init(jax.random.key(0))._replace(params=params)
    x = jnp.asarray(V[[3, 9, 14, 21, 30] * (4_000 if options.get("training") == "cd" else 1)])
    after, _ = jax.jit(model.step)(state, {"x": x}, jax.random.key(1))
    taken = jax.tree.map(lambda old, new: old - new, params, after.params)
    expected = exact_gradient(name, state, x)
    if name == "general":
        expected = expected._replace(weight=jnp.triu(expected.weight, 1))
    chex.assert_trees_all_close(taken, expected, atol=0.02)


@pytest.mark.slow
def test_the_dbm_gradient_of_many_long_chains_is_that_of_its_bound():
    model, state, _ = machine("dbm", 3)
    model = replace(
        model, sweeps=30, chains=20_000, learning_rate=1.0, centred=False, mean_field=50
    )
    params = jax.tree.map(lambda leaf: 0.5 * leaf, state.params)
    state = model.init(jax.random.key(0))._replace(params=params)
    x = jnp.asarray(V[[3, 9, 14, 21, 30]])

    def bound(params):
        score = model.score(state._replace(params=params), {"x": x})
        return score.mean() + dbm.log_partition(params)

    after, _ = jax.jit(model.step)(state, {"x": x}, jax.random.key(1))
    taken = jax.tree.map(lambda old, new: old - new, params, after.params)
    # At the mean field the bound's gradient through it is 0: both are those at μ held fixed.
    chex.assert_trees_all_close(taken, jax.jacrev(bound)(params), atol=0.02)


@pytest.mark.parametrize("sizes", [(D, 4), (D, 3, 4)])
def test_centring_is_a_gradient_step_in_the_centred_parameters(sizes):
    """Both machines have the same law, and their steps differ as `centre` says."""
    params = layered_params(0, sizes)
    offsets = [jax.random.uniform(jax.random.key(20 + i), (n,)) for i, n in enumerate(sizes)]
    x = [jnp.asarray(bits(n)[np.arange(40) * 7 % 2**n]) for n in sizes]
    y = [jnp.asarray(bits(n)[np.arange(40) * 5 % 2**n]) for n in sizes]

    def plain(centred):
        """The parameters b of the machine whose centred ones are b'."""
        biases = list(centred.biases)
        for i, w in enumerate(centred.weights):
            biases[i] = biases[i] - w @ offsets[i + 1]
            biases[i + 1] = biases[i + 1] - offsets[i] @ w
        return dbm.Params(centred.weights, tuple(biases))

    def centred_energy(centred, layers):
        moved = [part - offset[None] for part, offset in zip(layers, offsets, strict=True)]
        return dbm.energy(centred, moved)

    constant = centred_energy(params, x) - dbm.energy(plain(params), x)
    np.testing.assert_allclose(constant, np.full(40, constant[0]), atol=1e-4)

    def gap(energy, of):
        return energy(of, x).mean() - energy(of, y).mean()

    gradient = jax.grad(lambda of: gap(centred_energy, of))(params)
    stepped = plain(jax.tree.map(lambda p, g: p - 0.1 * g, params, gradient))
    normal_gradient = jax.grad(lambda of: gap(dbm.energy, of))(plain(params))
    weights, biases = learning.centre(normal_gradient.weights, normal_gradient.biases, offsets)
    expected = jax.tree.map(
        lambda p, g: p - 0.1 * g, plain(params), dbm.Params(tuple(weights), tuple(biases))
    )
    chex.assert_trees_all_close(stepped, expected, atol=1e-5)


@ALL
def test_samples_have_the_exact_law(name):
    """Total variation over the 2^D visible states: that of 20,000 exact draws is about 0.013."""
    model, state, joint = machine(name)
    model = replace(model, chains=20_000, mixing=100)
    state = model.init(jax.random.key(4))._replace(params=state.params)
    drawn = np.asarray(jax.jit(model.sample, static_argnums=2)(state, jax.random.key(5), 20_000))
    numbers = drawn.astype(int) @ (2 ** np.arange(D)[::-1])
    found = np.bincount(numbers, minlength=2**D) / len(drawn)
    exact = np.exp(log_sum(joint, 1) - log_sum(joint))
    assert 0.5 * np.abs(found - exact).sum() < 0.025


@ALL
def test_completions_have_the_exact_law(name):
    model, state, joint = machine(name)
    model = replace(model, mixing=100)
    shown = np.array([1, 1, 0, 0, 0])
    x = jnp.broadcast_to(jnp.array([1.0, 0, 0, 0, 0])[None], (20_000, D))
    drawn = np.asarray(jax.jit(model.complete)(state, x, jnp.asarray(shown), jax.random.key(6)))
    assert (drawn[:, :2] == [1, 0]).all()
    numbers = drawn[:, 2:].astype(int) @ np.array([4, 2, 1])
    found = np.bincount(numbers, minlength=8) / len(drawn)
    of_v = log_sum(joint, 1)[(V[:, 0] == 1) & (V[:, 1] == 0)]
    exact = np.exp(of_v - log_sum(of_v))
    assert 0.5 * np.abs(found - exact).sum() < 0.025


def exact_states(name, joint, n, seed):
    """n exact draws of what AIS moves: v, the odd layers or all units."""
    p = np.exp(joint - log_sum(joint)).ravel()
    flat = np.random.default_rng(seed).choice(len(p), n, p=p)
    rest = int(np.log2(joint.shape[1]))
    x = bits(D + rest)[flat]
    if name == "rbm":
        return jnp.asarray(x[:, :D])
    return (jnp.asarray(x[:, D : D + 3]),) if name == "dbm" else jnp.asarray(x)


@pytest.mark.parametrize(
    "name", ["rbm", pytest.param("dbm", marks=SLOW), pytest.param("general", marks=SLOW)]
)
def test_ais_brackets_log_z(name):
    """Of 20 random machines both ends lie within their errors of the exact value: of 40 values at
    4 standard errors. The reverse end is that of exact draws."""
    machines = [machine(name, 50 + 10 * seed) for seed in range(20)]

    @jax.jit
    def both(params, states, key):
        path = MODULES[name].annealing(params, jnp.full(D, 0.4))
        forward = estimate.ais(path, 100, key, 400)
        return forward, estimate.reverse_ais(path, 100, jax.random.fold_in(key, 1), states)

    widths = []
    for seed, (_, state, joint) in enumerate(machines):
        states = exact_states(name, joint, 400, seed)
        found = estimate.log_z(*both(state.params, states, jax.random.key(seed)))
        exact = log_sum(joint)
        assert abs(found.forward - exact) < 4 * found.forward_stderr
        assert abs(found.reverse - exact) < 4 * found.reverse_stderr
        assert min(found.forward_ess, found.reverse_ess) > 20
        widths.append(found.width)
    assert 0 < np.mean(widths) < 0.2


def test_ais_at_few_temperatures_lies_below_and_reverse_above():
    """With one temperature the weights are those of simple importance sampling, whose mean log is
    far below log Z, and far above in reverse."""
    _, state, joint = machine("rbm", 7)
    path = rbm.annealing(state.params, jnp.full(D, 0.4))
    forward = estimate.ais(path, 1, jax.random.key(0), 5_000)
    states = exact_states("rbm", joint, 5_000, 0)
    reverse = estimate.reverse_ais(path, 1, jax.random.key(1), states)
    exact = log_sum(joint)
    assert forward.mean() < exact - 0.5
    assert reverse.mean() > exact + 0.5
    np.testing.assert_allclose(float(estimate.log_z(forward, reverse).forward), exact, atol=0.15)


def test_parallel_tempering_leaves_the_joint_law_invariant():
    """From exact draws at three temperatures, a sweep leads to exact draws, independent of each
    other: total variation over all 2^9 states of three ladders' machines of three units."""
    params = rbm_params(2, visible=3, hidden=3, scale=2.0)
    betas = jnp.array([0.0, 0.5, 1.0])
    path = rbm.annealing(params, jnp.full(3, 0.3))
    v = bits(3)
    log_p = np.asarray(jax.vmap(lambda beta: path.log_density(jnp.asarray(v), beta))(betas))
    law = np.exp(log_p - log_sum(log_p, 1)[:, None])
    generator = np.random.default_rng(0)
    n = 100_000
    index = np.stack([generator.choice(8, n, p=row / row.sum()) for row in law])
    moved, swaps = jax.jit(lambda x, key: learning.temper(path, betas, x, key))(
        jnp.asarray(v[index]), jax.random.key(0)
    )
    assert 0.05 < swaps < 0.95
    number = np.asarray(moved).astype(int) @ [4, 2, 1]
    found = np.bincount(number[0] * 64 + number[1] * 8 + number[2], minlength=512) / n
    joint = np.einsum("i,j,k->ijk", *law).ravel()
    assert 0.5 * np.abs(found - joint).sum() < 0.04  # 0.025 of independent draws


def test_tempering_crosses_where_gibbs_sampling_does_not():
    """Two modes far apart, one ladder of many: Gibbs chains stay where they began."""
    weight = jnp.full((6, 4), 3.0)
    params = rbm.Params(weight, jnp.full(6, -6.0), jnp.full(4, -9.0), None)
    start = jnp.zeros((8, 500, 6))
    stuck = rbm.gibbs(params, start[-1], jax.random.key(0), 200)
    path = rbm.annealing(params, jnp.full(6, 0.5))

    def sweep(chains, key):
        return learning.temper(path, jnp.linspace(0, 1, 8), chains, key)[0], None

    chains, _ = jax.lax.scan(sweep, start, jax.random.split(jax.random.key(1), 200))
    exact = np.exp(log_sum(rbm_joint(params), 1))
    share = exact[bits(6).sum(1) > 3].sum() / exact.sum()
    crossed = (chains[-1].sum(1) > 3).mean()
    assert 0.3 < share < 0.7
    assert (stuck.sum(1) > 3).mean() < 0.1
    assert abs(crossed - share) < 0.1


@pytest.mark.slow
def test_the_mean_field_is_a_fixed_point_that_raises_the_bound():
    model, state, _ = machine("deep")
    v = jnp.asarray(V)
    values = []
    for updates in range(1, 30):
        mu = model._mean_field(state.params, v, updates)
        values.append(
            sum(learning.entropy(m).sum(1) for m in mu[1:]) - dbm.energy(state.params, mu)
        )
    assert (np.diff(values, axis=0) > -1e-4).all()
    for layer in (1, 2, 3):
        fixed = jax.nn.sigmoid(dbm.field(state.params, mu, layer))
        np.testing.assert_allclose(fixed, mu[layer], atol=1e-3)


def test_a_dbm_of_one_layer_is_an_rbm():
    params = rbm_params()
    layered = dbm.Params((params.weight,), (params.visible, params.hidden))
    np.testing.assert_allclose(dbm.log_partition(layered), rbm.log_partition(params), rtol=1e-6)
    model = DBM(shape=(D,), hidden=(4,))
    state = model.init(jax.random.key(0))._replace(params=layered)
    free = rbm.free_energy(params, jnp.asarray(V))
    np.testing.assert_allclose(model.score(state, {"x": jnp.asarray(V)}), free, rtol=1e-5)


def test_pretraining_learns_the_pairs_of_layers_in_turn_with_doubled_weights():
    model = DBM(shape=(D,), hidden=(3, 4), pretraining=2, chains=10, centred=True)
    step = jax.jit(model.step)
    state = model.init(jax.random.key(0))
    x = {"x": jnp.asarray(V[3:23])}
    moved = []
    for i in range(6):
        after, _ = step(state, x, jax.random.key(i))
        weights = zip(after.params.weights, state.params.weights, strict=True)
        moved.append([bool(jnp.any(new != old)) for new, old in weights])
        state = after
    assert moved == [[True, False]] * 2 + [[False, True]] * 2 + [[True, True]] * 2
    # The layer below is told twice from below, the one above once, as they will be from both sides.
    w = state.params.weights
    below, above = dbm.up_pass(state.params, x["x"], 2)[1:]
    b = state.params.biases
    np.testing.assert_allclose(below, jax.nn.sigmoid(2 * x["x"] @ w[0] + b[1][None]), rtol=1e-5)
    np.testing.assert_allclose(above, jax.nn.sigmoid(below @ w[1] + b[2][None]), rtol=1e-5)


def moved_leaves(old, new):
    """Which of the weights and biases, in order, have moved."""
    return [
        bool(jnp.any(a != b))
        for a, b in zip(jax.tree.leaves(old), jax.tree.leaves(new), strict=True)
    ]


@pytest.mark.slow
def test_pretraining_moves_its_pair_alone_also_under_decay_and_momentum():
    model = DBM(
        shape=(D,), hidden=(3, 4, 2), pretraining=1, chains=10, weight_decay=0.1, momentum=0.5
    )
    state = model.init(jax.random.key(0))
    biases = tuple(b + 1 for b in state.params.biases)
    state = state._replace(params=state.params._replace(biases=biases))
    moved = []
    for i in range(3):
        after, _ = jax.jit(model.step)(state, {"x": jnp.asarray(V[3:23])}, jax.random.key(i))
        moved.append(moved_leaves(state.params, after.params))
        state = after
    weights = [[True, False, False], [False, True, False], [False, False, True]]
    lower_and_upper = [[True, True, False, False], [False, False, True, False]]
    biases = [*lower_and_upper, [False, False, False, True]]
    assert moved == [w + b for w, b in zip(weights, biases, strict=True)]


@pytest.mark.parametrize("centred", [pytest.param(False, marks=SLOW), True])
@pytest.mark.parametrize("pair", [0, 1, 2])
def test_the_gradient_of_pretraining_is_that_of_its_doubled_machine(pair, centred):
    """By the paper: σ(2 x W + c) upwards below the last pair, σ(2 h Wᵀ + b) downwards above the
    first; statistics of data minus those of the reconstruction, which many rows make exact."""
    n = 60_000
    model = DBM(shape=(D,), hidden=(3, 4, 2), pretraining=1, centred=centred)
    state = model.init(jax.random.key(0))
    params = layered_params(2, (D, 3, 4, 2), scale=0.5)
    offsets = tuple(
        jax.random.uniform(jax.random.key(i), b.shape) for i, b in enumerate(params.biases)
    )
    state = state._replace(params=params, offsets=offsets)
    v = jnp.asarray(np.tile(V[[3, 9, 14]], (n // 3, 1)))
    found, *_ = jax.jit(lambda key: model._pretrain(state, v, pair, key))(jax.random.key(1))

    up, down = [(2, 1), (2, 2), (1, 2)][pair]
    w, b, c = params.weights[pair], params.biases[pair], params.biases[pair + 1]
    sizes = [D, 3, 4, 2]
    law = {tuple(row): 1 / 3 for row in V[[3, 9, 14]]}  # of the pair's lower layer
    for below in range(pair):
        law = pushed(law, 2, params.weights[below], params.biases[below + 1], sizes[below + 1])
    again = pushed(pushed(law, up, w, c, sizes[pair + 1]), down, w.T, b, sizes[pair])

    def statistics(law):
        x, p = np.array(list(law)), np.array(list(law.values()))
        h = np.asarray(jax.nn.sigmoid(up * x @ w + c[None]))
        return (p[:, None] * x).T @ h, p @ x, p @ h

    gw, gb, gc = (b - a for a, b in zip(statistics(law), statistics(again), strict=True))
    if centred:
        low, high = (np.asarray(offset) for offset in offsets[pair : pair + 2])
        gw = gw - np.outer(gb, high) - np.outer(low, gc)
        gb, gc = gb - down * gw @ high, gc - up * low @ gw
    expected = {"w": gw, "b": gb, "c": gc}
    got = {"w": found.weights[pair], "b": found.biases[pair], "c": found.biases[pair + 1]}
    chex.assert_trees_all_close(jax.tree.map(np.asarray, got), expected, atol=0.01)


def pushed(law, times, w, c, size):
    """The law of h, with P(h_j = 1 | x) = σ(times · x W + c), for x of the law given."""
    out = dict.fromkeys(map(tuple, bits(size)), 0.0)
    for x, p in law.items():
        on = np.asarray(jax.nn.sigmoid(times * np.array(x) @ np.asarray(w) + np.asarray(c)))
        for h in out:
            out[h] += p * float(np.prod(np.where(np.array(h) == 1, on, 1 - on)))
    return out


@pytest.mark.parametrize("units", ["binary", pytest.param("gaussian", marks=SLOW)])
def test_a_centred_step_is_the_plain_one_centred(units):
    plain = RBM(shape=(D,), hidden=4, units=units, centred=False, learning_rate=1.0, chains=30)
    state = plain.init(jax.random.key(0))
    state = plain.begin(state, {"x": jnp.asarray(V)}, jax.random.key(1))
    state = state._replace(params=rbm_params(3)._replace(logvar=state.params.logvar))
    batch, key = {"x": jnp.asarray(V[4:14])}, jax.random.key(2)
    of_plain, _ = plain.step(state, batch, key)
    of_centred, _ = replace(plain, centred=True).step(state, batch, key)
    gradient = jax.tree.map(lambda old, new: old - new, state.params, of_plain.params)
    mean, hidden = of_plain.offsets
    if units == "gaussian":
        assert state.params.logvar is not None
        mean = mean / jnp.exp(0.5 * state.params.logvar)
        assert not jnp.any(gradient.logvar)
    shift = gradient.weight - jnp.outer(gradient.visible, hidden) - jnp.outer(mean, gradient.hidden)
    moved = jax.tree.map(lambda old, new: old - new, state.params, of_centred.params)
    np.testing.assert_allclose(moved.weight, shift, atol=1e-5)
    np.testing.assert_allclose(moved.visible, gradient.visible - shift @ hidden, atol=1e-5)
    np.testing.assert_allclose(moved.hidden, gradient.hidden - mean @ shift, atol=1e-5)


def test_the_gaussian_gradient_of_many_long_chains_is_the_exact_one():
    model = RBM(shape=(3,), hidden=3, units="gaussian", centred=False, learning_rate=1.0, sweeps=30)
    model = replace(model, chains=40_000)
    params = rbm_params(1, 3, 3, gaussian=True, scale=0.5)
    state = model.init(jax.random.key(0))._replace(params=params)
    x = normal(5, 6, 3)

    def nll(params):
        return rbm.free_energy(params, x).mean() + rbm.log_partition(params)

    after, _ = jax.jit(model.step)(state, {"x": x}, jax.random.key(1))
    taken = jax.tree.map(lambda old, new: old - new, params, after.params)
    expected = jax.grad(nll)(params)._replace(logvar=jnp.zeros(3))
    chex.assert_trees_all_close(taken, expected, atol=0.03)


def test_dead_and_saturated_units_leave_the_step_finite():
    for sparsity in (0.0, 1.0):
        model = RBM(shape=(D,), hidden=4, sparsity=sparsity)
        state = model.init(jax.random.key(0))
        params = state.params._replace(hidden=jnp.array([-200.0, -20.0, 20.0, 200.0]))
        after, metrics = jax.jit(model.step)(
            state._replace(params=params), {"x": jnp.asarray(V)}, jax.random.key(1)
        )
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(after))
        assert (metrics["dead"], metrics["saturated"]) == (0.5, 0.5)


def test_weight_decay_leaves_biases_alone():
    optimizer = sgd(0.1, weight_decay=0.5)
    machines: list[Any] = [layered_params(), rbm_params(), general_params()]
    for params in machines:
        updates: Any
        updates, _ = optimizer.update(
            jax.tree.map(jnp.zeros_like, params), optimizer.init(params), params
        )
        weights = updates.weights if isinstance(params, dbm.Params) else [updates.weight]
        kept = [leaf for leaf in jax.tree.leaves(updates) if leaf.ndim == 1]
        assert all(jnp.any(leaf) for leaf in weights)
        assert not any(jnp.any(leaf) for leaf in kept)


@pytest.mark.slow
def test_replicas_under_pmap_draw_noise_of_their_own_upwards():
    """Equal rows: only noise tells the replicas apart, and with it their mean from one's value."""
    x = {"x": jnp.tile(jnp.asarray(V[7:8]), (8, 1))}
    upper = DBN(shape=(D,), hidden=(3, 4), pretraining=1, machine=RBM(**QUICK))
    for model in (upper, DBM(shape=(D,), hidden=(3, 4), pretraining=9)):
        state = model.init(jax.random.key(0))._replace(count=jnp.int32(1))
        _, together = pmap_step(model, 4)(replicate(state, 4), shard(x, 4), jax.random.key(1))
        _, alone = jax.jit(model.step)(state, {"x": x["x"][:2]}, jax.random.key(1))
        (gap,) = (name for name in alone if name.endswith("energy_gap"))
        assert abs(together[gap][0] - alone[gap]) > 1e-6


def test_a_crossed_bracket_is_told():
    crossed = estimate.LogZ(300.0, 0.01, 9.0, 299.9, 0.01, 9.0)
    with pytest.warns(UserWarning, match="reverse end below"):
        learning.likelihood(np.ones(3), None, crossed, 1.0, chains=9)
    broken = estimate.LogZ(np.nan, np.nan, 1.0, 299.9, 0.01, 9.0)
    with pytest.warns(UserWarning, match="wider"):
        learning.likelihood(np.ones(3), None, broken, 1.0, chains=9)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["rbm", "dbn", "general"])
def test_pictures_of_a_machine_are_drawn(name, tmp_path):
    small: dict[str, Any] = {"chains": 20, "annealed": 20, "temperatures": 20, "mixing": 3}
    model: Any = {
        "rbm": RBM(shape=(4, 4, 1), hidden=30, **small),
        "dbn": DBN(shape=(4, 4, 1), hidden=(30, 26), machine=RBM(**small)),
        "general": BoltzmannMachine(shape=(4, 4, 1), hidden=2, **small),
    }[name]
    state = model.init(jax.random.key(0))
    test = {"x": jax.random.bernoulli(jax.random.key(1), shape=(40, 4, 4, 1)).astype(jnp.float32)}
    pictures.final_pictures(tmp_path, model, state, test, jax.random.key(2))
    found = {path.name for path in tmp_path.iterdir()}
    expected = {"samples.png", "bracket.png"}
    expected |= {"tables.png", "chains.png"} if name == "general" else {"filters.png"}
    assert expected <= found


def test_dbn_bound_lies_below_the_exact_likelihood_and_meets_it_where_q_is_exact():
    model = DBN(shape=(D,), hidden=(3, 4), machine=RBM(**QUICK))
    state = model.init(jax.random.key(0))
    lower, upper = rbm_params(0, D, 3), rbm_params(5, 3, 4)

    def exact(state):
        """log p(v) = log Σ_h p(v | h) p(h), with p(h) of the upper machine."""
        of_h = log_sum(rbm_joint(state.machines[1].params), 1)
        of_h -= log_sum(of_h)
        field = np.asarray(rbm.visible_field(state.machines[0].params, jnp.asarray(bits(3))))
        of_v = V @ field.T - np.logaddexp(0, field).sum(1)[None]
        return log_sum(of_v + of_h[None], 1)

    def bound(state, draws):
        def one(key):
            return model.log_prob_unnormalized(state, {"x": jnp.asarray(V)}, key)

        values = jax.vmap(one)(jax.random.split(jax.random.key(1), draws)).mean(0)
        return values - rbm.log_partition(state.machines[1].params)

    def of(upper):
        first, second = (
            part._replace(params=params)
            for part, params in zip(state.machines, (lower, upper), strict=True)
        )
        return state._replace(machines=(first, second))

    assert (bound(of(upper), 3_000) < exact(of(upper)) + 0.02).all()
    np.testing.assert_allclose(np.exp(exact(of(upper))).sum(), 1, rtol=1e-5)
    # An upper machine that mirrors the lower one makes q exact: the bound is log p of that RBM.
    mirrored = of(rbm.Params(lower.weight.T, lower.hidden, lower.visible, None))
    of_rbm = -rbm.free_energy(lower, jnp.asarray(V)) - rbm.log_partition(lower)
    np.testing.assert_allclose(exact(mirrored), of_rbm, atol=1e-4)
    np.testing.assert_allclose(bound(mirrored, 3_000), of_rbm, atol=0.05)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:log Z lies")  # chains hardly cross between the two patterns
def test_training_reaches_the_data():
    """Two patterns: each machine comes near to −log p = log 2."""
    x = np.tile(np.array([[1, 1, 0, 0, 1], [0, 0, 1, 1, 0]], np.float32), (10, 1))
    models = [
        RBM(shape=(D,), hidden=4, learning_rate=0.2, **QUICK),
        DBM(shape=(D,), hidden=(4, 3), learning_rate=0.1, **QUICK),
        BoltzmannMachine(shape=(D,), hidden=1, learning_rate=0.2, **QUICK),
    ]
    for model in models:
        state = model.begin(model.init(jax.random.key(0)), {"x": x}, jax.random.key(1))
        step = jax.jit(model.step)
        for i in range(600):
            state, _ = step(state, {"x": x}, jax.random.key(i))
        nll = model.evaluate(state, {"x": x}, jax.random.key(2))["nll"]
        assert nll.value < np.log(2) + 0.35, model.family
        assert nll.value > np.log(2)


def test_sparsity_draws_activations_to_the_target():
    x = jnp.asarray(V)
    means = []
    for sparsity in (0.0, 5.0):
        model = RBM(shape=(D,), hidden=8, sparsity=sparsity, target=0.1, learning_rate=0.1)
        state = model.init(jax.random.key(0))
        step = jax.jit(model.step)
        for i in range(300):
            state, _ = step(state, {"x": x}, jax.random.key(i))
        means.append(model.encode(state, {"x": x}).mean())
    assert abs(means[1] - 0.1) < 0.05
    assert means[0] > 0.3


def test_grey_values_get_no_likelihood_and_a_wide_bracket_is_told():
    model = RBM(shape=(D,), hidden=4, **QUICK)
    state = model.init(jax.random.key(0))
    nll = model.evaluate(state, {"x": 0.5 * V}, jax.random.key(0))["nll"]
    assert nll.kind == "no likelihood"
    wide = estimate.LogZ(1.0, 0.1, 9.0, 4.0, 0.1, 9.0)
    with pytest.warns(UserWarning, match="wider than 1.0 nats"):
        ends = learning.likelihood(np.ones(3), None, wide, 1.0, chains=9)
    assert (ends["nll"].value, ends["nll_reverse"].value) == (2.0, 5.0)
    np.testing.assert_allclose(ends["nll"].stderr, 0.1)
    assert ends["nll"].kind == "AIS"


def test_replicas_under_pmap_start_cd_from_noise_of_their_own():
    model = RBM(shape=(D,), hidden=4, training="cd")
    state = model.init(jax.random.key(0))
    x = {"x": jnp.tile(jnp.asarray(V[7:8]), (8, 1))}  # equal rows: they differ by noise alone
    step = pmap_step(model, 4)
    _, together = step(replicate(state, 4), shard(x, 4), jax.random.key(1))
    one = {"x": x["x"][:2]}
    _, alone = jax.jit(model.step)(state, one, jax.random.key(1))
    assert abs(together["free_energy_gap"][0] - alone["free_energy_gap"]) > 1e-4
