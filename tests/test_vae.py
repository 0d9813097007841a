"""The VAE against closed forms: KL, likelihoods, and probabilistic PCA."""

import math
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from gen import parallel, train
from gen.core import UserError
from gen.models.vae import VAE, bernoulli_nll, gaussian_kl, gaussian_nll

DATA, LATENT, VARIANCE = 6, 2, 0.3


def test_default_is_the_chapters_network():
    params = jax.eval_shape(VAE().init, jax.random.key(0)).params

    def kernels(net):
        return sorted(leaf.shape for leaf in jax.tree.leaves(params[net]) if leaf.ndim == 2)

    assert kernels("encoder") == sorted([(784, 256), (256, 128), (128, 10), (128, 10)])
    assert kernels("decoder") == sorted([(10, 256), (256, 384), (384, 512), (512, 784)])


@pytest.mark.parametrize(("mean", "logvar"), [(0.0, 0.0), (1.3, -0.7), (-2.0, 1.1), (0.2, -4.0)])
def test_kl_equals_quadrature(mean, logvar):
    sd = math.exp(logvar / 2)
    z = np.linspace(mean - 12 * sd, mean + 12 * sd, 200_001)
    log_q = -0.5 * ((z - mean) / sd) ** 2 - math.log(sd) - 0.5 * math.log(2 * math.pi)
    log_p = -0.5 * z**2 - 0.5 * math.log(2 * math.pi)
    exact = np.trapezoid(np.exp(log_q) * (log_q - log_p), z)
    kl = gaussian_kl(jnp.array([[mean]]), jnp.array([[logvar]]))
    np.testing.assert_allclose(kl, [exact], rtol=1e-5, atol=1e-6)


def test_likelihoods_equal_their_definitions():
    logits, x = jnp.array([[-1.0, 0.3, 2.0]]), jnp.array([[0.0, 1.0, 1.0]])
    p = 1 / (1 + np.exp(-np.asarray(logits)))
    exact = -np.log(np.where(np.asarray(x) == 1, p, 1 - p)).sum()
    np.testing.assert_allclose(bernoulli_nll(logits, x), [exact], rtol=1e-6)
    density = np.exp(-((np.asarray(x) - 0.5) ** 2) / (2 * 0.2)) / np.sqrt(2 * np.pi * 0.2)
    nll = gaussian_nll(jnp.full((1, 3), 0.5), x, 0.2)
    np.testing.assert_allclose(nll, [-np.log(density).sum()], rtol=1e-6)


def test_bernoulli_likelihood_sums_to_one_over_all_images():
    images = jnp.array([[(i >> bit) & 1 for bit in range(8)] for i in range(256)], jnp.float32)
    logits = jnp.broadcast_to(jax.random.normal(jax.random.key(0), (1, 8)), (256, 8))
    np.testing.assert_allclose(jnp.exp(-bernoulli_nll(logits, images)).sum(), 1, rtol=1e-5)


@pytest.mark.parametrize("logit", [-100.0, 100.0])
def test_loss_and_gradient_are_finite_at_extreme_logits(logit):
    for x in (0.0, 0.5, 1.0):
        value, gradient = jax.value_and_grad(
            lambda logits, x=x: bernoulli_nll(logits, jnp.full((1, 1), x))[0]
        )(jnp.full((1, 1), logit))
        assert np.isfinite(value)
        assert np.all(np.isfinite(gradient))


def linear_vae() -> VAE:
    """x = W z + b + noise and q(z|x) = N(V x + c, diag exp(U x + d))."""
    return VAE(
        shape=(DATA,),
        encoder=(),
        decoder=(),
        latent=LATENT,
        likelihood="gaussian",
        variance=VARIANCE,
        learning_rate=1e-2,
    )


def linear_data(n=2000):
    """Draws of a probabilistic PCA model with orthogonal columns of W."""
    rng = np.random.RandomState(0)
    w = np.linalg.qr(rng.randn(DATA, LATENT))[0] * np.array([2.0, 1.0])
    x = rng.randn(n, LATENT) @ w.T + np.sqrt(VARIANCE) * rng.randn(n, DATA) + 0.5
    return x.astype(np.float32)


def ppca(x):
    """Maximum-likelihood W, b at the stated variance, and log p of each row in nats
    (Tipping & Bishop 1999, eq. 7, 15)."""
    b = x.mean(axis=0)
    values, vectors = np.linalg.eigh(np.cov(x.T, bias=True))
    values, vectors = values[::-1][:LATENT], vectors[:, ::-1][:, :LATENT]
    w = vectors * np.sqrt(values - VARIANCE)
    covariance = w @ w.T + VARIANCE * np.eye(DATA)
    centred = x - b
    mahalanobis = np.einsum("ni,ij,nj->n", centred, np.linalg.inv(covariance), centred)
    log_det = np.linalg.slogdet(covariance)[1]
    return w, b, -0.5 * (mahalanobis + log_det + DATA * math.log(2 * math.pi))


def exact_elbo(model, params, x):
    """ELBO of a linear model with the expectation over z in closed form, [N] nats."""
    mean, logvar = model._posterior(params, jnp.asarray(x))
    w = params["decoder"]["params"]["Dense_0"]["kernel"]  # [LATENT, DATA]
    b = params["decoder"]["params"]["Dense_0"]["bias"][None]
    squares = ((x - (mean @ w + b)) ** 2).sum(axis=1) + jnp.exp(logvar) @ (w**2).sum(axis=1)
    log_likelihood = -0.5 * (squares / VARIANCE + DATA * math.log(2 * math.pi * VARIANCE))
    return log_likelihood - gaussian_kl(mean, logvar)


def set_optimum(state, w, b):
    """The state whose q(z|x) is the exact posterior N(M⁻¹ Wᵀ (x − b), σ² M⁻¹), M = WᵀW + σ²I."""
    m_inverse = np.linalg.inv(w.T @ w + VARIANCE * np.eye(LATENT))
    params = jax.tree.map(np.asarray, state.params)
    encoder, decoder = params["encoder"]["params"], params["decoder"]["params"]["Dense_0"]
    v = np.asarray(m_inverse @ w.T, np.float32)
    encoder["mean"] = {"kernel": v.T, "bias": -v @ np.asarray(b, np.float32)}
    encoder["logvar"] = {
        "kernel": np.zeros((DATA, LATENT), np.float32),
        "bias": np.float32(np.log(VARIANCE * np.diag(m_inverse))),
    }
    decoder["kernel"], decoder["bias"] = np.asarray(w.T, np.float32), np.asarray(b, np.float32)
    return state._replace(params=params)


def test_linear_vae_meets_the_exact_likelihood_at_the_optimum():
    model, x = linear_vae(), linear_data()
    w, b, log_p = ppca(x)
    state = set_optimum(jax.jit(model.init)(jax.random.key(0)), w, b)
    np.testing.assert_allclose(exact_elbo(model, state.params, x), log_p, rtol=1e-4, atol=1e-4)
    # The estimate from draws of z agrees with it: the model's own ELBO, not only the test's.
    nll = model.evaluate(state, {"x": np.tile(x, (20, 1))}, jax.random.key(1))["nll"]
    assert nll.kind == "upper bound"
    assert abs(nll.value + log_p.mean()) < 4 * nll.stderr
    assert nll.stderr < 0.02


@pytest.mark.parametrize("seed", range(5))
def test_elbo_never_exceeds_the_exact_likelihood(seed):
    """At the best W, for any q(z|x), for every x."""
    model, x = linear_vae(), linear_data(200)
    w, b, log_p = ppca(x)
    state = set_optimum(jax.jit(model.init)(jax.random.key(0)), w, b)
    keys = iter(jax.random.split(jax.random.key(seed), 100))
    encoder = jax.tree.map(
        lambda leaf: leaf + 0.1 * jax.random.normal(next(keys), leaf.shape),
        state.params["encoder"],
    )
    params = {**state.params, "encoder": encoder}
    assert np.all(exact_elbo(model, params, x) <= log_p + 1e-3)
    one_draw = jax.jit(jax.vmap(lambda key: jnp.add(*model._terms(params, x, key))))
    draws = np.asarray(one_draw(jax.random.split(jax.random.key(9), 2000)))  # −ELBO, [2000, N]
    stderr = draws.std(axis=0) / np.sqrt(2000)
    assert np.all(np.abs(draws.mean(axis=0) + exact_elbo(model, params, x)) < 5 * stderr)


def test_training_reaches_the_exact_likelihood():
    model, x = linear_vae(), linear_data()
    _, _, log_p = ppca(x)
    *_, last = train.fit(model, {"x": x}, steps=3000, batch_size=500, steps_per_dispatch=100)
    elbo = float(exact_elbo(model, last.carry.state.params, x).mean())
    assert elbo <= log_p.mean() + 1e-4
    assert elbo > log_p.mean() - 0.05


def suboptimal(model, x):
    """The best W, and a q(z|x) that is wrong: off in its mean, and too wide."""
    w, b, log_p = ppca(x)
    state = set_optimum(jax.jit(model.init)(jax.random.key(0)), w, b)
    encoder = state.params["encoder"]["params"]
    encoder["mean"]["bias"] = encoder["mean"]["bias"] + np.float32(0.3)
    encoder["logvar"]["bias"] = encoder["logvar"]["bias"] + np.float32(0.8)
    return state, log_p


def test_importance_weighted_bound_rises_with_k_to_the_exact_likelihood():
    """ELBO ≤ L_2 ≤ L_8 ≤ … ≤ log p in expectation (Burda et al. 2016, theorem 1), each step by many
    standard errors, and L_5000 = log p within its own."""
    model, x = linear_vae(), linear_data(20)
    state, log_p = suboptimal(model, x)
    repeats = 300

    def mean_bound(k):
        """Of one example each, over repeats: mean and standard error of L_k − log p."""
        draw = jax.jit(jax.vmap(lambda key: model.bound(state, {"x": x}, key, k).log_mean))
        gap = np.asarray(draw(jax.random.split(jax.random.key(k), repeats))) - log_p[None]
        of_repeat = gap.mean(1)
        return of_repeat.mean(), of_repeat.std(ddof=1) / math.sqrt(repeats)

    gaps = {k: mean_bound(k) for k in (1, 2, 8, 60)}
    values = [gap for gap, _ in gaps.values()]
    errors = [stderr for _, stderr in gaps.values()]
    for low, high, e_low, e_high in zip(values, values[1:], errors, errors[1:], strict=False):
        assert high - low > 4 * math.hypot(e_low, e_high)
    assert values[-1] < 2 * errors[-1]
    np.testing.assert_allclose(
        values[0],
        (np.asarray(exact_elbo(model, state.params, x)) - log_p).mean(),
        atol=5 * errors[0],
    )
    many = model.bound(state, {"x": x}, jax.random.key(1), 5000)
    assert np.all(np.abs(many.log_mean - log_p) < 0.1)
    assert np.all((many.ess > 1000) & (many.ess < 5000))


def test_weights_are_all_equal_where_q_is_the_posterior():
    """Then every bound is log p itself, and every draw counts."""
    model, x = linear_vae(), linear_data(20)
    w, b, log_p = ppca(x)
    state = set_optimum(jax.jit(model.init)(jax.random.key(0)), w, b)
    bound = model.bound(state, {"x": x}, jax.random.key(0), 75)  # not a multiple of the block
    np.testing.assert_allclose(bound.log_mean, log_p, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(bound.ess, 75, rtol=1e-4)


@pytest.mark.slow
def test_training_on_the_bound_lowers_it():
    x = linear_data()
    model = replace(linear_vae(), samples=8, bound_samples=200)
    *_, last = train.fit(model, {"x": x}, steps=1500, batch_size=500, steps_per_dispatch=100)
    _, _, log_p = ppca(x)
    estimates = model.evaluate(last.carry.state, {"x": x[:500]}, jax.random.key(0))
    assert set(estimates) == {"nll", "negative_elbo", "reconstruction", "kl", "ess"}
    assert estimates["nll"].settings["z_per_example"] == 200
    assert estimates["nll"].kind == "upper bound"
    assert abs(estimates["nll"].value + log_p[:500].mean()) < 0.1
    assert 1 < estimates["ess"].value <= 200


@pytest.mark.slow
def test_objective_is_what_a_step_lowers():
    x, key = linear_data(50), jax.random.key(3)
    for model in (linear_vae(), replace(linear_vae(), samples=5), replace(linear_vae(), beta=4.0)):
        state = jax.jit(model.init)(jax.random.key(0))
        _, metrics = model.step(state, {"x": x}, key)
        np.testing.assert_allclose(
            model.objective(state, {"x": x}, key).mean(), metrics["loss"], rtol=1e-5
        )


@pytest.mark.slow
def test_beta_weighs_the_kl():
    x = linear_data()
    kl = {}
    for beta in (0.1, 1.0, 10.0):
        model = replace(linear_vae(), beta=beta)
        *_, last = train.fit(model, {"x": x}, steps=600, batch_size=500, steps_per_dispatch=100)
        assert last.metrics
        kl[beta] = float(last.metrics["kl"])
    assert kl[0.1] > kl[1.0] > kl[10.0]


@pytest.mark.parametrize("shape", [(9, 6, 3), pytest.param((28, 28, 1), marks=pytest.mark.slow)])
def test_convolutions_keep_the_shape(shape):
    model = VAE(shape=shape, channels=(4, 6), encoder=(5,), decoder=(7,), latent=3)
    state = jax.jit(model.init)(jax.random.key(0))
    assert state.params["encoder"]["params"]["Conv_1"]["kernel"].shape == (3, 3, 4, 6)
    assert model.reconstruct(state, {"x": jnp.ones((2, *shape))}).shape == (2, *shape)
    state, metrics = jax.jit(model.step)(state, {"x": jnp.ones((2, *shape))}, jax.random.key(1))
    assert np.isfinite(metrics["loss"])


def test_gradient_equals_finite_differences():
    model = VAE(shape=(4,), encoder=(3,), decoder=(3,), latent=2)
    params = jax.jit(model.init)(jax.random.key(0)).params
    x, key = jnp.array([[0.0, 1.0, 1.0, 0.0]]), jax.random.key(1)
    check_grads(
        lambda params: sum(term.sum() for term in model._terms(params, x, key)),
        (params,),
        order=1,
        modes=["rev"],
        rtol=0.02,
        atol=0.02,
    )


def test_replicas_under_pmap_draw_noise_of_their_own():
    """Equal rows and one key for all: only noise can tell the replicas' mean from a single one."""
    model = linear_vae()
    state, key = jax.jit(model.init)(jax.random.key(0)), jax.random.key(2)
    _, alone = jax.jit(model.step)(state, {"x": jnp.ones((2, DATA))}, key)
    shards = parallel.shard({"x": jnp.ones((8, DATA))}, 4)
    _, together = parallel.pmap_step(model, 4)(parallel.replicate(state, 4), shards, key)
    np.testing.assert_allclose(together["kl"][0], alone["kl"], rtol=1e-5)
    assert abs(together["reconstruction"][0] - alone["reconstruction"]) > 1e-3


def test_grey_pixels_have_no_nll(digits):
    model = VAE(shape=digits.shape, encoder=(8,), decoder=(8,), latent=2)
    state = jax.jit(model.init)(jax.random.key(0))
    grey = np.asarray(digits.test["x"][:20], np.float32) / digits.peak
    binary = (grey > 0.5).astype(np.float32)
    with_grey = model.evaluate(state, {"x": grey}, jax.random.key(1))
    with_binary = model.evaluate(state, {"x": binary}, jax.random.key(1))
    assert set(with_grey) == {"bce_elbo", "reconstruction", "kl"}
    assert with_grey["bce_elbo"].kind == "no likelihood"
    assert set(with_binary) == {"nll", "reconstruction", "kl"}
    parts = with_binary["reconstruction"].value + with_binary["kl"].value
    np.testing.assert_allclose(with_binary["nll"].value, parts, rtol=1e-6)


@pytest.mark.parametrize(
    "flags",
    [
        {"latent": 0},
        {"variance": 0.0},
        {"decoder": (0,)},
        {"samples": 0},
        {"samples": 5, "beta": 2.0},
        {"channels": (4,), "shape": (6,)},
    ],
)
def test_impossible_hyperparameters_are_refused(flags):
    with pytest.raises(UserError):
        VAE(**flags)
