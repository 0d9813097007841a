# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 2. Variational autoencoders
#
# A variational autoencoder (VAE) is a probabilistic model of images that is trained like an
# autoencoder. It draws a code $z$ from a fixed law, the **prior** $p(z) = N(0, I)$, and then an
# image from $p(x|z)$, whose parameters a decoder network computes from $z$. Here the pixels are
# black or white, and the decoder gives the probability of white for each of them:
#
# $$ p(x|z) = \prod_{i=1}^{D} g_i(z)^{x_i} \, (1 - g_i(z))^{1 - x_i} . $$
#
# New images are easy to draw. Training is harder, because the probability of an image is an
# integral over all codes, $p(x) = \int p(x|z)\,p(z)\,dz$, which no computer can evaluate.
#
# This notebook derives the training objective, trains the chapter's VAE on MNIST, and looks at its
# samples, its codes and its likelihood. It takes about five minutes on two cores.
#
# ## The evidence lower bound
#
# An encoder network helps. It gives for each image a Gaussian $q(z|x) = N(\mu(x), \mathrm{diag}\,
# \sigma^2(x))$ of codes that may have produced it. For any $q$,
#
# $$ \log p(x)
#    = \mathbb{E}_{q(z|x)}\!\left[\log \frac{p(x, z)}{q(z|x)}\right]
#    + \mathrm{KL}\!\left(q(z|x) \,\Vert\, p(z|x)\right) , $$
#
# since $p(x, z) = p(z|x)\,p(x)$. A Kullback–Leibler divergence is never negative, so the first term
# is a lower bound on $\log p(x)$. It is called the **evidence lower bound** (ELBO). With
# $p(x, z) = p(x|z)\,p(z)$ it becomes
#
# $$ \mathrm{ELBO}(x)
#    = \underbrace{\mathbb{E}_{q(z|x)}[\log p(x|z)]}_{\text{reconstruction}}
#    - \underbrace{\mathrm{KL}\!\left(q(z|x) \,\Vert\, p(z)\right)}_{\text{code close to the prior}}
#    \;\le\; \log p(x) . $$
#
# The first term asks for codes from which the image can be reconstructed. The second one asks for
# codes that look like draws from the prior, so that later any draw from the prior can be decoded.
# The gap of the bound is $\mathrm{KL}(q(z|x) \Vert p(z|x))$: the better the encoder, the tighter
# the bound.

# %%
from dataclasses import replace
from functools import partial

import jax
import numpy as np
from scipy.stats import norm

import gen
from gen import data, estimate, plots
from gen.models.vae import VAE
from gen.nets import MLP
from gen.optimize import Optimizer
from gen.uses import latent

# %% tags=["parameters"] quick={"STEPS": 20, "FLAT_STEPS": 20, "EXAMPLES": 50, "MAPPED": 100, "DRAWS": [1, 5]}
STEPS = 10_000  # training steps of the VAE
FLAT_STEPS = 10_000  # training steps of the VAE whose code has two numbers
MAPPED = 3_000  # test images on the map of the codes
EXAMPLES = 1_000  # test images on which the bounds are evaluated
DRAWS = [1, 3, 10, 30, 100, 300, 1_000]  # draws of z in the importance-weighted bound

# %% [markdown]
# ## Black and white pixels
#
# MNIST has grey pixels, and this likelihood is for black and white ones. The usual way out is
# *dynamic binarisation*: in every training step each pixel is white with a probability equal to its
# grey value. For the test images this is done once.

# %%
mnist = data.load("mnist")
decode = partial(mnist.format.decode, binarize="dynamic")
test = mnist.decoded("test", binarize="dynamic")
plots.grid(test["x"][:24], columns=12)

# %% [markdown]
# ## The reparameterization trick
#
# The ELBO is an expectation over $z \sim q(z|x)$, and $q$ depends on the parameters that we want to
# change. A draw from $q$ has no derivative, but it can be written as a function that has one:
#
# $$ z = \mu(x) + \sigma(x) \odot \varepsilon, \qquad \varepsilon \sim N(0, I) . $$
#
# The noise $\varepsilon$ does not depend on any parameter, so the gradient passes through $\mu$ and
# $\sigma$ as through any other layer. One draw for each image and step is enough. The second term
# of the ELBO needs no draw, because it has a closed form for two Gaussians:
#
# $$ \mathrm{KL}\!\left(q(z|x) \,\Vert\, N(0, I)\right)
#    = \tfrac12 \sum_j \left(\mu_j^2 + \sigma_j^2 - 1 - \log \sigma_j^2\right) . $$
#
# The class `VAE` has the chapter's networks as defaults: an encoder 784 → 784 → 256 → 128 with two
# heads for $\mu$ and $\log \sigma^2$ of ten numbers each, and a decoder 10 → 256 → 384 → 512 → 784.
# Its training step is a few lines, in `gen/models/vae.py`.

# %%
model = VAE(optimizer=Optimizer(learning_rate=1e-3, schedule="cosine"))
trained = gen.fit(
    model,
    mnist.train,
    steps=STEPS,
    batch_size=100,
    decode=decode,
    validation=mnist.validation,
    validate_every=STEPS // 10,
)

# %% [markdown]
# The loss is −ELBO in nats per image, the sum of the two other panels: `reconstruction` is
# $-\mathbb{E}_{q(z|x)}[\log p(x|z)]$, and `kl` is the KL. The reconstruction term falls and the KL
# rises: the codes carry more and more information about the image, and the reconstructions gain
# more than the KL costs. The dashed line is the same loss on images that are not used in training,
# and `gen.fit` returns the state at which it was lowest.
#
# ## Samples
#
# To sample, draw $z \sim N(0, I)$ and decode it. `sample` returns the mean of $p(x|z)$, the
# probability of white for each pixel.

# %%
plots.grid(model.sample(trained.state, jax.random.key(0), 60), columns=12)

# %% [markdown]
# ## Reconstructions
#
# The code of a test image is the mean $\mu(x)$ of $q(z|x)$. The reconstructions are smoother than
# the originals: ten numbers do not say where every pixel of an edge is.

# %%
shown = test["x"][:12]
reconstructed = model.reconstruct(trained.state, {"x": shown})
plots.grid(
    np.concatenate([shown, reconstructed]), columns=12, labels=["original", "reconstruction"]
)

# %% [markdown]
# Which of the ten numbers are in use? The KL of a number that says nothing about the image is 0,
# because then its $q$ is the prior. A number with a KL of 2 nats distinguishes about
# $e^2 \approx 7$ cases.

# %%
q = latent.posterior(model, trained.state, {"x": test["x"][:MAPPED]})
for j, kl in enumerate(latent.kl_per_dimension(q)):
    print(f"z_{j}: KL {kl.value:.2f} ± {kl.stderr:.2f} nats")

# %% [markdown]
# ## From one digit to another
#
# Two images can be joined by a path between their codes. Codes of a Gaussian in many dimensions lie
# near a sphere, and a straight line would cut through its empty inside. `latent.interpolate`
# therefore takes the great circle between them. Each row begins near the original in the first
# column and ends near the original in the last one. The images between are digits, too, or cross
# over from one digit to another in a few steps.

# %%
pairs = 5
a, b = test["x"][:pairs], test["x"][pairs : 2 * pairs]
codes = np.asarray(model.encode(trained.state, {"x": np.concatenate([a, b])}))
paths = latent.interpolate(model, codes[:pairs], codes[pairs:], np.linspace(0, 1, 10))
between = np.asarray(model.decode(trained.state, paths.reshape(-1, model.latent)))
between = between.reshape(pairs, 10, *model.shape)
rows = np.concatenate([a[:, None], between, b[:, None]], axis=1)
plots.grid(rows.reshape(-1, *model.shape), columns=12)

# %% [markdown]
# ## A code of two numbers
#
# With `latent=2` the codes can be drawn as they are. The means $\mu(x)$ of the digits lie around 0
# without wide gaps, because the KL pulls them towards $N(0, I)$.

# %%
flat = VAE(
    encoder=MLP((512, 256), "relu"),
    latent=2,
    decoder=MLP((256, 512), "relu"),
    optimizer=Optimizer(learning_rate=1e-3, schedule="cosine"),
)
flat_trained = gen.fit(flat, mnist.train, steps=FLAT_STEPS, batch_size=100, decode=decode)

# %%
means = latent.posterior(flat, flat_trained.state, {"x": test["x"][:MAPPED]}).mean
plots.scatter(means, test["label"][:MAPPED], "means of q(z|x) of test images")

# %% [markdown]
# The decoder can be asked for the image of every point of the plane. The points below divide the
# prior into parts of equal probability, so this is a picture of all that the model can draw.

# %%
quantiles = norm.ppf((np.arange(15) + 0.5) / 15).astype(np.float32)
plane = np.stack(np.meshgrid(quantiles, -quantiles), axis=-1).reshape(-1, 2)
plots.grid(flat.decode(flat_trained.state, plane), columns=15)

# %% [markdown]
# ## How tight is the bound?
#
# The ELBO lies below $\log p(x)$ by an amount that we do not see. A tighter bound draws $k$ codes
# for each image and averages their weights before it takes the logarithm (Burda et al. 2016,
# [arXiv:1509.00519](https://arxiv.org/abs/1509.00519)):
#
# $$ \mathcal{L}_k(x) = \mathbb{E}_{z_1, \dots, z_k \sim q(z|x)}
#    \left[ \log \frac1k \sum_{i=1}^{k} \frac{p(x, z_i)}{q(z_i|x)} \right] . $$
#
# $\mathcal{L}_1$ is the ELBO. The bound rises with $k$ and tends to $\log p(x)$. The next cell
# evaluates $-\mathcal{L}_k$ on the same test images for growing $k$. Every value is an upper bound
# on the negative log-likelihood (NLL).

# %%
rows = {name: values[:EXAMPLES] for name, values in test.items()}
bounds = {}
for k in DRAWS:
    judged = replace(model, bound_samples=k)
    bounds[k] = estimate.evaluate(judged, trained.state, rows, jax.random.key(0))["nll"]
    print(f"k = {k}: {bounds[k]}")
points = [(k, bound.value, bound.stderr) for k, bound in bounds.items()]
plots.against({"VAE": points}, "draws of z for each image, k", "bound on the NLL, nats per image")

# %% [markdown]
# The error bars are standard errors over the images. They are almost the same for all $k$, because
# some images are harder than others for every $k$. For the question whether a larger $k$ gives a
# lower value, the images should be compared one by one. The difference of two bounds on the same
# image varies much less, and its standard error is small:

# %%
for k in DRAWS[1:]:
    gain = estimate.mean(bounds[1].per_example - bounds[k].per_example, "Monte Carlo")
    print(f"the ELBO is below the bound of k = {k} by {gain} nats")

# %% [markdown]
# ## Questions to try
#
# 1. Train with `beta=4.0` and with `beta=0.25`, which weigh the KL more and less (β-VAE). What
#    happens to samples and to reconstructions?
# 2. Train on the importance-weighted bound itself: `VAE(samples=10)`. Does the gap between $k = 1$
#    and $k = 1000$ become larger or smaller? Why?
# 3. How many of the numbers are in use with `latent=50`?
# 4. `VAE(classes=10)` is given the label of the digit. Train it and draw each digit with
#    `model.sample(state, key, 10, label=3)`. What does the code hold now?
# 5. Interpolate between the codes of two images on a straight line (`latent.straight_lines`), and
#    compare the images in the middle.
