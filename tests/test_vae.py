"""The VAE against closed forms, those of probabilistic PCA above all."""

import math
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from jax.test_util import check_grads

from gen import parallel, train
from gen.core import UserError, capabilities, sample_labels
from gen.models.vae import VAE, Moments, free_bits_kl
from gen.nets import MLP, ConvDecoder, ConvEncoder
from gen.optimize import Optimizer

DATA, LATENT, VARIANCE = 6, 2, 0.3


def test_the_default_is_the_textbooks_network():
    model = VAE()
    state = jax.eval_shape(model.init, jax.random.key(0))
    params: dict[tuple[str, ...], Any] = flatten_dict(state.params)
    assert {path: leaf.shape for path, leaf in params.items() if leaf.ndim == 2} == {
        ("encoder", "encoder", "Dense_0", "kernel"): (784, 784),
        ("encoder", "encoder", "Dense_1", "kernel"): (784, 256),
        ("encoder", "encoder", "Dense_2", "kernel"): (256, 128),
        ("encoder", "mean", "kernel"): (128, 10),
        ("encoder", "logvar", "kernel"): (128, 10),
        ("decoder", "Dense_0", "kernel"): (10, 256),
        ("decoder", "Dense_1", "kernel"): (256, 384),
        ("decoder", "Dense_2", "kernel"): (384, 512),
        ("decoder", "Dense_3", "kernel"): (512, 784),
    }
    assert sum(leaf.size for leaf in jax.tree.leaves(model.parameters(state))) == 1_552_692


def linear_vae() -> VAE:
    """x = W z + b + noise and q(z|x) = N(V x + c, diag exp(U x + d))."""
    return VAE(
        shape=(DATA,),
        encoder=MLP(()),
        decoder=MLP(()),
        latent=LATENT,
        likelihood="gaussian",
        variance=VARIANCE,
        optimizer=Optimizer(learning_rate=1e-2),
    )


def linear_data(n=2000):
    """Return draws of a probabilistic PCA model with orthogonal columns of W."""
    rng = np.random.RandomState(0)
    w = np.linalg.qr(rng.randn(DATA, LATENT))[0] * np.array([2.0, 1.0])
    x = rng.randn(n, LATENT) @ w.T + np.sqrt(VARIANCE) * rng.randn(n, DATA) + 0.5
    return x.astype(np.float32)


def ppca(x):
    """Return the maximum-likelihood W and b at the stated variance, and log p of each row in nats
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


def exact_elbo(params, x):
    """Return the ELBO of a linear model, with the expectation over z in closed form, [N] nats."""

    params = jax.tree.map(np.asarray, params)

    def linear(layer, rows):
        return rows @ layer["kernel"] + layer["bias"]

    mean, logvar = (linear(params["encoder"][head], x) for head in ("mean", "logvar"))
    decoder = params["decoder"]["Dense_0"]  # kernel [LATENT, DATA], Wᵀ
    spread = np.exp(logvar) @ (decoder["kernel"] ** 2).sum(axis=1)
    squares = ((x - linear(decoder, mean)) ** 2).sum(axis=1) + spread
    log_likelihood = -0.5 * (squares / VARIANCE + DATA * math.log(2 * math.pi * VARIANCE))
    kl = 0.5 * (mean**2 + np.exp(logvar) - 1 - logvar).sum(axis=1)
    return log_likelihood - kl


def set_optimum(state, w, b):
    """Return the state whose q(z|x) is the posterior N(M⁻¹ Wᵀ (x − b), σ² M⁻¹), M = WᵀW + σ²I."""
    m_inverse = np.linalg.inv(w.T @ w + VARIANCE * np.eye(LATENT))
    params = jax.tree.map(np.asarray, state.params)
    encoder, decoder = params["encoder"], params["decoder"]["Dense_0"]
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
    np.testing.assert_allclose(exact_elbo(state.params, x), log_p, rtol=1e-4, atol=1e-4)
    # The model's own estimate from draws of z agrees with it.
    nll = model.evaluate(state, {"x": np.tile(x, (20, 1))}, jax.random.key(1))["nll"]
    assert nll.kind == "upper bound"
    assert abs(nll.value + log_p.mean()) < 4 * nll.stderr
    assert nll.stderr < 0.02


@pytest.mark.parametrize("seed", range(3))
def test_elbo_never_exceeds_the_exact_likelihood(seed):
    """At the best W, for any q(z|x), for every x."""
    model, x = linear_vae(), linear_data(200)
    w, b, log_p = ppca(x)
    state = set_optimum(jax.jit(model.init)(jax.random.key(0)), w, b)
    rng = np.random.RandomState(seed)
    encoder = jax.tree.map(
        lambda leaf: leaf + np.float32(0.1 * rng.randn(*leaf.shape)), state.params["encoder"]
    )
    params = {**state.params, "encoder": encoder}
    assert np.all(exact_elbo(params, x) <= log_p + 1e-3)
    state = state._replace(params=params)
    one_draw = jax.jit(jax.vmap(lambda key: jnp.add(*model.terms(state, {"x": x}, key))))
    draws = np.asarray(one_draw(jax.random.split(jax.random.key(9), 2000)))  # −ELBO, [2000, N]
    stderr = draws.std(axis=0) / np.sqrt(2000)
    assert np.all(np.abs(draws.mean(axis=0) + exact_elbo(params, x)) < 5 * stderr)


def test_training_reaches_the_exact_likelihood():
    x = linear_data()
    model = replace(linear_vae(), optimizer=Optimizer("adam", 5e-2, "cosine"))
    _, _, log_p = ppca(x)
    *_, last = train.fit(model, {"x": x}, steps=600, batch_size=500, steps_per_dispatch=200)
    elbo = float(exact_elbo(last.carry.state.params, x).mean())
    assert elbo <= log_p.mean() + 1e-4
    assert elbo > log_p.mean() - 0.05


def suboptimal(model, x):
    """Return a state with the best W and a q(z|x) off in its mean and too wide, and log p."""
    w, b, log_p = ppca(x)
    state = set_optimum(jax.jit(model.init)(jax.random.key(0)), w, b)
    encoder = state.params["encoder"]
    encoder["mean"]["bias"] = encoder["mean"]["bias"] + np.float32(0.3)
    encoder["logvar"]["bias"] = encoder["logvar"]["bias"] + np.float32(0.8)
    return state, log_p


def test_importance_weighted_bound_rises_with_k_to_the_exact_likelihood():
    """ELBO ≤ L_4 ≤ L_60 ≤ log p in expectation (Burda et al. 2016, theorem 1), each step by many
    standard errors, and L_5000 = log p within its own."""
    model, x = linear_vae(), linear_data(20)
    state, log_p = suboptimal(model, x)
    repeats = 300

    def mean_bound(k):
        """Return the mean of L_k − log p over examples and its standard error over repeats."""
        draw = jax.jit(jax.vmap(lambda key: model.bound(state, {"x": x}, key, k).log_mean))
        gap = np.asarray(draw(jax.random.split(jax.random.key(k), repeats))) - log_p[None]
        of_repeat = gap.mean(1)
        return of_repeat.mean(), of_repeat.std(ddof=1) / math.sqrt(repeats)

    gaps = {k: mean_bound(k) for k in (1, 4, 60)}
    values = [gap for gap, _ in gaps.values()]
    errors = [stderr for _, stderr in gaps.values()]
    for low, high, e_low, e_high in zip(values, values[1:], errors, errors[1:], strict=False):
        assert high - low > 4 * math.hypot(e_low, e_high)
    assert values[-1] < 2 * errors[-1]
    np.testing.assert_allclose(
        values[0],
        (np.asarray(exact_elbo(state.params, x)) - log_p).mean(),
        atol=5 * errors[0],
    )
    many = jax.jit(lambda key: model.bound(state, {"x": x}, key, 5000))(jax.random.key(1))
    assert np.all(np.abs(np.asarray(many.log_mean) - log_p) < 0.1)
    assert np.all((many.ess > 1000) & (many.ess < 5000))


def test_importance_weights_are_equal_where_q_is_the_posterior():
    """Every bound is log p itself, and the effective sample size is the number of draws."""
    model, x = linear_vae(), linear_data(20)
    w, b, log_p = ppca(x)
    state = set_optimum(jax.jit(model.init)(jax.random.key(0)), w, b)
    # 75 is not a multiple of the block.
    bound = jax.jit(lambda key: model.bound(state, {"x": x}, key, 75))(jax.random.key(0))
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
def test_the_objective_is_the_loss_of_a_step():
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


@pytest.mark.slow
def test_convolutional_networks_train_on_images():
    shape = (9, 6, 3)
    model = VAE(shape, ConvEncoder((4, 6), (5,)), 3, ConvDecoder((7,), (6, 4)))
    state = jax.jit(model.init)(jax.random.key(0))
    assert state.params["encoder"]["encoder"]["Conv_1"]["kernel"].shape == (3, 3, 4, 6)
    batch = {"x": jnp.ones((2, *shape))}
    assert jax.eval_shape(model.reconstruct, state, batch).shape == (2, *shape)
    _, metrics = jax.jit(model.step)(state, batch, jax.random.key(1))
    assert np.isfinite(metrics["loss"])


def test_gradient_equals_finite_differences():
    model = VAE(shape=(4,), encoder=MLP((3,), "elu"), decoder=MLP((3,), "elu"), latent=2)
    state = jax.jit(model.init)(jax.random.key(0))
    batch, key = {"x": jnp.array([[0.0, 1.0, 1.0, 0.0]])}, jax.random.key(1)

    @jax.jit
    def loss(params):
        return sum(term.sum() for term in model.terms(state._replace(params=params), batch, key))

    check_grads(loss, (state.params,), order=1, modes=["rev"], rtol=0.02, atol=0.02)


@pytest.mark.usefixtures("eight_devices")
def test_replicas_under_pmap_draw_noise_of_their_own():
    """All rows are equal and the key is one, so only noise can move the replicas' mean."""
    model = linear_vae()
    state, key = jax.jit(model.init)(jax.random.key(0)), jax.random.key(2)
    _, alone = jax.jit(model.step)(state, {"x": jnp.ones((2, DATA))}, key)
    shards = parallel.shard({"x": jnp.ones((8, DATA))}, 4)
    _, together = parallel.pmap_step(model, 4)(parallel.replicate(state, 4), shards, key)
    np.testing.assert_allclose(together["kl"][0], alone["kl"], rtol=1e-5)
    assert abs(together["reconstruction"][0] - alone["reconstruction"]) > 1e-3


def test_grey_pixels_have_no_nll(digits):
    model = VAE(shape=digits.shape, encoder=MLP((8,)), decoder=MLP((8,)), latent=2)
    state = jax.jit(model.init)(jax.random.key(0))
    grey = np.asarray(digits.test["x"][:20], np.float32) / digits.format.peak
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
        {"samples": 0},
        {"bound_samples": 0},
        {"beta": -1.0},
        {"samples": 5, "beta": 2.0},
    ],
)
def test_impossible_hyperparameters_are_refused(flags):
    with pytest.raises(UserError, match=f"VAE: {'beta' if 'beta' in flags else next(iter(flags))}"):
        VAE(**flags)


def test_conditional_linear_vae_meets_the_exact_likelihood_given_the_label():
    """x = W z + b_label + noise has log p(x|label) = log N(x; b_label, W Wᵀ + σ² I). Where q(z|x,
    label) is the posterior N(M⁻¹ Wᵀ (x − b_label), σ² M⁻¹), every bound equals it."""
    model, classes = replace(linear_vae(), classes=3), 3
    w, b, _ = ppca(linear_data())
    biases = (np.random.RandomState(1).randn(classes, DATA) + b).astype(np.float32)
    label = np.arange(20) % classes
    x = (linear_data(20) + biases[label]).astype(np.float32)
    covariance = w @ w.T + VARIANCE * np.eye(DATA)
    difference = x - biases[label]
    mahalanobis = np.einsum("ni,ij,nj->n", difference, np.linalg.inv(covariance), difference)
    log_det = np.linalg.slogdet(covariance)[1]
    log_p = -0.5 * (mahalanobis + log_det + DATA * math.log(2 * math.pi))

    plain = set_optimum(jax.jit(linear_vae().init)(jax.random.key(0)), w, np.zeros(DATA))
    state = jax.jit(model.init)(jax.random.key(0))
    params = jax.tree.map(np.asarray, state.params)
    v = plain.params["encoder"]["mean"]["kernel"]  # [DATA, LATENT]
    params["encoder"] = {
        "mean": {"kernel": np.concatenate([v, -biases @ v]), "bias": np.zeros(LATENT, np.float32)},
        "logvar": {
            "kernel": np.zeros((DATA + classes, LATENT), np.float32),
            "bias": plain.params["encoder"]["logvar"]["bias"],
        },
    }
    decoder = plain.params["decoder"]["Dense_0"]
    params["decoder"]["Dense_0"] = {
        "kernel": np.concatenate([decoder["kernel"], biases]),
        "bias": np.zeros(DATA, np.float32),
    }
    state, batch = state._replace(params=params), {"x": x, "label": jnp.asarray(label)}
    bound = jax.jit(lambda key: model.bound(state, batch, key, 7))(jax.random.key(0))
    np.testing.assert_allclose(bound.log_mean, log_p, rtol=1e-4, atol=1e-4)
    nll = model.evaluate(state, batch, jax.random.key(1))["nll"]
    assert nll.settings["conditional"]
    # Samples of a class have its mean, and samples without a label the mean over the classes.
    draws = jax.jit(model.sample, static_argnums=2)(state, jax.random.key(2), 4_000, label=1)
    np.testing.assert_allclose(draws.mean(axis=0), biases[1], atol=0.15)
    draws = jax.jit(model.sample, static_argnums=2)(state, jax.random.key(2), 4_000)
    np.testing.assert_allclose(draws.mean(axis=0), biases.mean(axis=0), atol=0.15)


def test_labels_of_samples_are_integers():
    model = VAE(classes=3)
    np.testing.assert_array_equal(sample_labels(model, 2, np.uint8(2)), [2, 2])
    np.testing.assert_array_equal(sample_labels(model, 2, [0, 1]), [0, 1])
    for label in (1.0, jnp.array([0.5, 1.0]), True):
        with pytest.raises(UserError, match="must be an integer"):
            sample_labels(model, 2, label)
    with pytest.raises(UserError, match="must be an integer"):
        jax.eval_shape(lambda label: sample_labels(model, 2, label), jnp.zeros(2))


def test_fields_of_another_choice_are_not_used():
    """Bernoulli pixels have no variance, and a normal prior has no pseudo-inputs."""
    model = VAE((7,), MLP((5,)), 2, MLP((5,)))
    states = [
        jax.eval_shape(each.init, jax.random.key(0))
        for each in (model, replace(model, variance=0.5, pseudo_inputs=3))
    ]
    assert states[0] == states[1]


def test_labels_are_channels_of_an_image_and_entries_of_a_vector():
    images = VAE((4, 4, 1), ConvEncoder((3,)), 2, ConvDecoder((), (3,)), classes=5)
    params = jax.eval_shape(images.init, jax.random.key(0)).params
    assert params["encoder"]["encoder"]["Conv_0"]["kernel"].shape == (3, 3, 6, 3)
    vectors = VAE((4, 4, 1), MLP((3,)), 2, MLP((3,)), classes=5)
    params = jax.eval_shape(vectors.init, jax.random.key(0)).params
    assert params["encoder"]["encoder"]["Dense_0"]["kernel"].shape == (21, 3)
    assert params["decoder"]["Dense_0"]["kernel"].shape == (7, 3)
    assert "decode" not in capabilities(vectors)  # a code stands for one image for each label
    with pytest.raises(UserError, match="needs a batch of labels"):
        vectors.encode(vectors.init(jax.random.key(0)), {"x": jnp.ones((2, 4, 4, 1))})


def vamp_vae() -> VAE:
    return replace(linear_vae(), prior="vamp", pseudo_inputs=3, encoder=MLP((4,), "tanh"))


def test_the_vamp_prior_is_the_mixture_of_posteriors_at_the_pseudo_inputs():
    """log p(z) = log 1/K Σ_k N(z; mean(u_k), diag var(u_k)), summed directly; the KL is
    log q(z|x) − log p(z) at the draw of z, and the bound weighs by p(z) and q(z|x)."""
    model, key = vamp_vae(), jax.random.key(1)
    state = jax.jit(model.init)(jax.random.key(0))
    posterior, _ = model._networks()
    variables = {"params": state.params["encoder"]}
    means, logvars = map(np.asarray, posterior.apply(variables, state.params["pseudo_inputs"]))

    def log_normal(z, mean, logvar):
        return -0.5 * np.sum((z - mean) ** 2 / np.exp(logvar) + logvar + np.log(2 * np.pi), axis=-1)

    x = linear_data(5)
    mean, logvar = map(np.asarray, posterior.apply(variables, x))
    noise = jax.random.normal(jax.random.split(key, 3)[0], mean.shape)
    z = mean + np.exp(logvar / 2) * np.asarray(noise)
    density = np.exp(log_normal(z[:, None], means[None], logvars[None])).mean(axis=1)
    terms = jax.jit(lambda: model.terms(state, {"x": x}, key))()
    np.testing.assert_allclose(terms.kl, log_normal(z, mean, logvar) - np.log(density), rtol=1e-4)

    @jax.jit
    @jax.vmap
    def both(key):
        bound = model.bound(state, {"x": x}, key, 1).log_mean
        return bound, -jnp.add(*model.terms(state, {"x": x}, key))

    bounds, elbos = both(jax.random.split(key, 200))
    spread = np.std(np.subtract(bounds, elbos)) / math.sqrt(bounds.size)
    assert abs(np.mean(bounds) - np.mean(elbos)) < 5 * spread
    draws = jax.jit(model.sample, static_argnums=2)(state, key, 4_000)
    decoder = state.params["decoder"]["Dense_0"]
    expected = means.mean(axis=0) @ decoder["kernel"] + decoder["bias"]
    np.testing.assert_allclose(draws.mean(axis=0), expected, atol=0.15)


def test_pseudo_inputs_start_at_training_examples():
    model = replace(vamp_vae(), likelihood="bernoulli")
    state, x = jax.jit(model.init)(jax.random.key(0)), np.eye(DATA, dtype=np.float32)
    begun = jax.jit(model.begin)(state, {"x": x}, jax.random.key(1))
    pseudo_inputs = jax.nn.sigmoid(begun.params["pseudo_inputs"])
    assert pseudo_inputs.shape == (3, DATA)
    rows = np.asarray(pseudo_inputs).argmax(axis=1)
    assert len(set(rows)) == 3
    np.testing.assert_allclose(pseudo_inputs, 0.05 + 0.9 * x[rows], rtol=1e-5)
    assert "begin" not in capabilities(linear_vae())


def test_free_bits_are_their_formula_and_leave_a_small_kl_alone():
    x, key, floor = linear_data(50), jax.random.key(3), 0.4
    model = replace(linear_vae(), free_bits=floor)
    state = jax.jit(model.init)(jax.random.key(0))
    state.params["encoder"]["mean"]["bias"] = jnp.array([0.1, 2.0])
    state.params["encoder"]["mean"]["kernel"] = jnp.zeros((DATA, LATENT))
    state.params["encoder"]["logvar"]["kernel"] = jnp.zeros((DATA, LATENT))
    _, metrics = jax.jit(model.step)(state, {"x": x}, key)
    kl = 0.5 * np.array([0.1, 2.0]) ** 2  # log-variance 0
    np.testing.assert_allclose(metrics["kl"], kl.sum(), rtol=1e-5)
    expected = metrics["reconstruction"] + floor + kl[1]
    np.testing.assert_allclose(metrics["loss"], expected, rtol=1e-5)

    def penalty(mean):
        moments = Moments(jnp.broadcast_to(mean[None], (4, 2)), jnp.zeros((4, 2)))
        return free_bits_kl(moments, floor)

    gradient = jax.jit(jax.grad(penalty))(jnp.array([0.1, 2.0]))
    np.testing.assert_allclose(gradient, [0.0, 2.0], atol=1e-6)


def test_kl_warm_up_rises_linearly_to_beta():
    model, x = replace(linear_vae(), kl_warmup_steps=4, beta=2.0), linear_data(50)
    state, step, weights = model.init(jax.random.key(0)), jax.jit(model.step), []
    for i in range(6):
        state, metrics = step(state, {"x": x}, jax.random.key(i))
        weights.append((metrics["loss"] - metrics["reconstruction"]) / metrics["kl"])
    np.testing.assert_allclose(weights, [0, 0.5, 1, 1.5, 2, 2], atol=1e-3)
    assert state.stats["count"] == 6


def test_the_best_learned_variance_is_the_mean_squared_error():
    """∂/∂log σ² of Σ ½ (e² / σ² + log σ²) is 0 at σ² = mean e² (Rybkin et al. 2021)."""
    model, x = replace(linear_vae(), learn_variance=True), linear_data(50)
    state, key = jax.jit(model.init)(jax.random.key(0)), jax.random.key(1)
    assert state.params["logvar"] == pytest.approx(math.log(VARIANCE))

    @jax.jit
    def loss(logvar):
        at = state._replace(params={**state.params, "logvar": logvar})
        return model.terms(at, {"x": x}, key).reconstruction.mean()

    # With σ² = 1 the reconstruction is ½ Σ e² + const.
    squares = 2 * loss(0.0) / DATA - math.log(2 * math.pi)
    slope, best = jax.jit(jax.grad(loss)), np.log(np.float32(squares))
    assert slope(best) == pytest.approx(0, abs=1e-4)
    assert slope(best - np.float32(0.1)) < -0.1
    nll = model.evaluate(state, {"x": x}, key)["nll"]
    assert nll.settings["variance"] == pytest.approx(VARIANCE)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"samples": 5, "kl_warmup_steps": 10}, "kl_warmup_steps is 10, which has no meaning"),
        ({"samples": 5, "free_bits": 0.1}, "free_bits is 0.1, which has no meaning"),
        ({"prior": "vamp", "free_bits": 0.1}, "set free_bits or prior, not both"),
        ({"prior": "vamp", "classes": 10}, "set classes or prior, not both"),
        ({"learn_variance": True}, "learn_variance needs the gaussian likelihood"),
    ],
)
def test_combinations_without_sense_are_refused(fields, message):
    with pytest.raises(UserError, match=message):
        VAE(**fields)


@pytest.mark.parametrize("bound_samples", [1, 3])
def test_the_mean_score_is_the_bound_of_the_evaluation(digits, bound_samples):
    model = VAE(digits.shape, MLP((8,)), 2, MLP((8,)), bound_samples=bound_samples, beta=1.0)
    state = jax.jit(model.init)(jax.random.key(0))
    x = np.round(digits.test["x"] / 16).astype(np.float32)
    scores = jax.jit(model.score)(state, {"x": x}, jax.random.key(1))
    nll = model.evaluate(state, {"x": x}, jax.random.key(2))["nll"]
    assert scores.shape == (len(x),)
    assert float(scores.mean()) == pytest.approx(nll.value, rel=0.01)  # of other draws of z
