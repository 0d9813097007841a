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
# # 7. Diffusion models
#
# It is easy to destroy an image by noise, little by little. A diffusion model learns to undo each
# small step. To draw a new image it starts from pure noise and undoes all of them. We begin with
# points in the plane, where everything can be seen, and then draw digits. It takes two to four
# minutes.

# %% tags=["parameters"] quick={"STEPS_TOY": 200, "STEPS_LIKELIHOOD": 200, "STEPS_DIGITS": 100, "POINTS": 300, "FEW": [3], "FEW_DIGITS": [4]}
STEPS_TOY = 5_000
STEPS_LIKELIHOOD = 5_000
STEPS_DIGITS = 8_000
POINTS = 1_000
FEW = [3, 6, 12, 24, 48]  # steps of the samplers of points
FEW_DIGITS = [4, 8, 32]  # steps of the samplers of digits

# %%
from dataclasses import replace

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

import gen
from gen import data, estimate, plots
from gen.models.diffusion import GaussianDiffusion, ResidualMLP
from gen.optimize import Optimizer
from gen.uses.completion import occlusion_mask

# %% [markdown]
# ## Forward: from data to noise
#
# At time $t$, from 0 to 1, an example $x$ has become
#
# $$x_t = α_t\, x + σ_t\, ε, \qquad ε \sim \mathcal N(0, I), \qquad α_t^2 + σ_t^2 = 1.$$
#
# The signal fades as the noise grows, and at $t = 1$ nothing but noise is left. Each $x_t$ is drawn
# in one step; there is no need to walk through the times before it. The course is set by the *log
# signal-to-noise ratio* $λ_t = \log α_t^2 / σ_t^2$, which falls from +10 to −7 here. Our data are
# eight small clouds of points on a circle.

# %%
toy = data.load("eight_gaussians")
x_toy = toy.test["x"][:POINTS] / toy.format.peak  # in the unit square
model = GaussianDiffusion(
    ResidualMLP(width=128, layers=3),
    shape=(2,),
    levels=0,
    log_snr_min=-7.0,
    log_snr_max=10.0,
    prediction="noise",
    weighting="simple",
    sample_steps=100,
    ode_examples=0,
    time_draws=100,
    optimizer=Optimizer(learning_rate=1e-3, schedule="cosine"),
)
path = model.path({})  # t ↦ (α_t, σ_t); this schedule has no parameters

times = (0.0, 0.25, 0.5, 0.75, 1.0)
x_0 = np.asarray(model.to_continuous(x_toy))  # in [−1, 1]
noise = np.asarray(jax.random.normal(jax.random.key(0), x_0.shape))
figure, axes = plt.subplots(1, 5, figsize=(9.5, 2.2), layout="constrained")
for axis, t in zip(axes, times, strict=True):
    alpha, sigma = path(jnp.asarray(t))
    axis.scatter(*(alpha * x_0 + sigma * noise).T, s=1, alpha=0.5)
    axis.set(xlim=(-3, 3), ylim=(-3, 3), xticks=[], yticks=[], title=f"t = {t:g}", aspect="equal")
plt.show()

# %%
mnist = data.load("mnist")
images = mnist.test["x"][:10] / 255
rows = []
for t in np.linspace(0, 1, 6):
    alpha, sigma = GaussianDiffusion().path({})(jnp.asarray(t))
    x_t = alpha * (2 * images - 1) + sigma * np.asarray(
        jax.random.normal(jax.random.key(1), images.shape)
    )
    rows.append((x_t + 1) / 2)
plots.grid(np.concatenate(rows), 10, [f"t = {t:.1f}" for t in np.linspace(0, 1, 6)])

# %% [markdown]
# ## The loss: predict the noise
#
# A network sees the noisy $x_t$ and the time, and predicts the noise that was added. The *simple
# loss* of [Ho, Jain & Abbeel 2020](https://arxiv.org/abs/2006.11239) is the squared error at a
# random time,
#
# $$L(θ) = \mathbb E_{t \sim U(0, 1)}\; \mathbb E_{x, ε}\;
#   \frac1D \lVert ε - \hat ε_θ(α_t x + σ_t ε,\, t) \rVert^2,$$
#
# where $D$ is the number of variables, here 2. The loss needs no adversary and no integral: it is
# plain regression. The error cannot reach zero, because one $x_t$ can come from many $x$. The best
# prediction is the mean, $\hat ε = \mathbb E[ε \mid x_t]$.

# %%
result = gen.fit(
    model,
    toy.train,
    steps=STEPS_TOY,
    batch_size=200,
    decode=toy.format.decode,
    levels=0,
    steps_per_dispatch=50,
)
state = result.state

# %% [markdown]
# ## The score: arrows towards the data
#
# The mean of the noise has a second meaning. If $p_t$ is the density of $x_t$, then
#
# $$\nabla_{x_t} \log p_t(x_t) = -\frac{\mathbb E[ε \mid x_t]}{σ_t}.$$
#
# This gradient is called the *score*. It points to where the data are denser. So a network that
# predicts noise knows the direction to the data from everywhere. For our eight clouds, $p_t$ is a
# mixture of eight Gaussians with the variance $α_t^2 τ^2 + σ_t^2$, where $τ$ is the standard
# deviation of a cloud, and the true score is its derivative. Red arrows are the network's, grey
# ones the truth; where only red is visible, they agree.

# %%
centres, deviation = 2 * data.CENTRES - 1, 2 * data.DEVIATION


def true_log_density(x, t):
    """Return log p_t(x) of one point, up to a constant."""
    alpha, sigma = path(t)
    variance = alpha**2 * deviation**2 + sigma**2
    return jax.nn.logsumexp(-0.5 * ((x - alpha * centres) ** 2).sum(axis=1) / variance)


side = np.linspace(-1.2, 1.2, 15)
grid = np.stack(np.meshgrid(side, side), axis=-1).reshape(-1, 2).astype(np.float32)
denoise = jax.jit(model.denoiser(state))
figure, axes = plt.subplots(1, 4, figsize=(10, 2.7), layout="constrained")
for axis, t in zip(axes, (0.03, 0.08, 0.2, 0.6), strict=True):
    alpha, sigma = path(jnp.asarray(t))
    learned = -np.asarray(denoise(grid, jnp.asarray(t)).noise) / sigma
    truth = np.asarray(jax.vmap(lambda x, t=t: jax.grad(true_log_density)(x, jnp.asarray(t)))(grid))
    axis.scatter(*(alpha * x_0 + sigma * noise).T[:, ::4], s=1, alpha=0.4)
    for arrows, colour in ((truth, "0.55"), (learned, "tab:red")):
        arrows = sigma * arrows / (1 + np.linalg.norm(sigma * arrows, axis=1, keepdims=True))
        axis.quiver(*grid.T, *arrows.T, color=colour, scale=11, width=0.006)
    axis.set(xlim=(-1.3, 1.3), ylim=(-1.3, 1.3), xticks=[], yticks=[], title=f"t = {t:g}")
    axis.set_aspect("equal")
plt.show()

# %% [markdown]
# Near $t = 0$ each arrow points to the nearest cloud. With more noise the clouds merge to a ring
# and then to a single heap, and all arrows point to its middle: from so much noise one cannot tell
# the clouds apart yet. Where grey arrows show at small $t$, far from the clouds, no training
# example ever was, and the network guesses. (Long arrows are shortened, so that all can be seen.)
#
# ## The reverse chain
#
# From $x_t$ and the predicted clean point $\hat x = (x_t - σ_t \hat ε) / α_t$ we draw a slightly
# less noisy $x_s$, with $s < t$:
#
# $$x_s \sim q(x_s \mid x_t, x = \hat x).$$
#
# This distribution is Gaussian. With $α_{t|s} = α_t / α_s$ and
# $σ_{t|s}^2 = σ_t^2 - α_{t|s}^2 σ_s^2$ it has
#
# $$\text{mean } \frac{α_{t|s}\, σ_s^2\, x_t + α_s\, σ_{t|s}^2\, \hat x}{σ_t^2}, \qquad
#   \text{variance } \frac{σ_{t|s}^2\, σ_s^2}{σ_t^2}.$$
#
# Drawing from it again and again is *ancestral sampling*. The figure shows its course from left to
# right, in 100 steps.

# %%
course = np.asarray(model.denoising(state, jax.random.key(2), POINTS, 5))
figure, axes = plt.subplots(1, 6, figsize=(10, 1.9), layout="constrained")
for axis, x, t in zip(axes, 2 * course - 1, np.linspace(1, 0, 6), strict=True):
    axis.scatter(*x.T, s=1, alpha=0.5)
    axis.set(xlim=(-3, 3), ylim=(-3, 3), xticks=[], yticks=[], title=f"t = {t:.1f}", aspect="equal")
plt.show()

# %% [markdown]
# The same network can also move points *without* fresh noise, along the *probability flow*, an
# ordinary differential equation whose solutions have the same densities $p_t$. The right panel
# solves it by Heun's method (`heun`). The paths of single points show the difference: ancestral
# sampling jitters towards a cloud, and the flow is smooth. The flow is a deterministic map from
# noise to data, and so it has an inverse: every data point has a code.

# %%
figure, axes = plt.subplots(1, 2, figsize=(7.5, 3.7), layout="constrained")
for axis, sampler in zip(axes, ("ancestral", "heun"), strict=True):
    traced = replace(model, sampler=sampler)
    course = 2 * np.asarray(traced.denoising(state, jax.random.key(3), 8, 50)) - 1
    axis.scatter(*x_0.T, s=1, color="0.8")
    axis.plot(*np.moveaxis(course, -1, 0), linewidth=0.9)
    axis.scatter(*course[0].T, s=8, color="black", zorder=3)
    axis.set(
        xlim=(-2.5, 2.5), ylim=(-2.5, 2.5), xticks=[], yticks=[], title=sampler, aspect="equal"
    )
plt.show()

# %% [markdown]
# ## Few steps
#
# Every step costs one evaluation of the network (two for `heun`), so the number of steps is the
# price of a sample. Samplers differ in how few they need:
#
# - `ancestral` draws each step, as in the derivation of the model.
# - `ddim` takes the same steps without noise ([DDIM](https://arxiv.org/abs/2010.02502)), which is
#   Euler's method on the flow.
# - `heun` is Heun's method on the flow, of second order.
# - `dpm` ([DPM-Solver++](https://arxiv.org/abs/2211.01095)) is of second order, too, and exact where
#   $\hat x$ does not change.

# %%
samplers = ("ancestral", "ddim", "heun", "dpm")
drawn = {}
for sampler in samplers:
    for count in FEW:
        traced = replace(model, sampler=sampler, sample_steps=count)
        draw = jax.jit(traced.sample, static_argnums=2)
        drawn[sampler, count] = np.asarray(draw(state, jax.random.key(4), POINTS))

figure, axes = plt.subplots(4, 4, figsize=(6.8, 7), layout="constrained")
for row, sampler in zip(axes, samplers, strict=True):
    for axis, count in zip(row, FEW, strict=False):
        axis.scatter(*drawn[sampler, count].T, s=1, alpha=0.5)
        axis.set(xlim=(0, 1), ylim=(0, 1), xticks=[], yticks=[], aspect="equal")
        axis.set_title(f"{sampler}, {count} steps", fontsize=9)
plt.show()

# %% [markdown]
# A number measures this: the mean distance of a sample from the nearest centre, in units of the
# clouds' standard deviation. For the data it is $\sqrt{π/2} ≈ 1.25$.


# %%
def distance(x):
    """Return the mean distance from the nearest centre, in standard deviations."""
    return (
        np.linalg.norm(x[:, None] - data.CENTRES[None], axis=-1).min(axis=1).mean() / data.DEVIATION
    )


figure, axis = plt.subplots(figsize=(6, 3), layout="constrained")
for sampler in samplers:
    axis.plot(FEW, [distance(drawn[sampler, count]) for count in FEW], "o-", label=sampler)
axis.axhline(distance(x_toy), color="black", linestyle="--", linewidth=1, label="data")
axis.set(xscale="log", yscale="log", xlabel="steps", ylabel="distance / standard deviation")
axis.set_xticks(FEW, FEW)
axis.set_yticks([1, 2, 5, 10], [1, 2, 5, 10])
axis.minorticks_off()
axis.legend(frameon=False)
plt.show()

# %% [markdown]
# With a handful of steps only `heun` shows eight clouds, for twice the evaluations, but its clouds
# are too wide. From 6 steps on `ancestral` has the smallest mean distance. With two dozen steps it
# is the closest to the data here, with clouds that are a little too tight: its fresh noise also
# corrects the errors of earlier steps, which the deterministic samplers keep. Which sampler is best
# depends on the data.
#
# ## The likelihood bound
#
# A diffusion model is a deep variational autoencoder whose encoder, the noise, is fixed. So it has
# a bound on the likelihood, with three terms:
#
# $$-\log p(x) \le \underbrace{\mathrm{KL}(q(x_1|x) \Vert \mathcal N(0, I))}_\text{prior}
#   + \underbrace{\int_0^1 \tfrac12 (-λ'_t)\, \mathbb E \lVert ε - \hat ε \rVert^2\,
#   dt}_\text{diffusion} + \underbrace{\mathbb E[-\log p(x|x_0)]}_\text{reconstruction}.$$
#
# Here $λ'_t$ is the derivative of $λ_t$, which is negative. The diffusion term is the simple loss,
# times $D$, with a weight for each time. We know the density of this toy, and no model can be
# better than its entropy. The simple loss was not made for the bound. A second model is trained on
# the bound itself (`weighting="likelihood"`), with a $λ_t$ that falls linearly in time
# (`schedule="log_linear"`). The values of $-\log p(x)$ are negative where the density exceeds 1, as
# it does in these small clouds.

# %%
by_bound = replace(model, schedule="log_linear", weighting="likelihood")
second = gen.fit(
    by_bound,
    toy.train,
    steps=STEPS_LIKELIHOOD,
    batch_size=200,
    decode=toy.format.decode,
    levels=0,
    steps_per_dispatch=50,
)

# %%
test = {"x": toy.test["x"] / np.float32(toy.format.peak)}
true_nll = -np.asarray(toy.log_prob(jnp.asarray(test["x"])))
print(f"{'true density':16s} {estimate.mean(true_nll, 'exact', density=True)}")
for name, (each, trained) in {
    "simple": (model, state),
    "likelihood": (by_bound, second.state),
}.items():
    found = estimate.evaluate(each, trained, test, jax.random.key(0))
    terms = ", ".join(
        f"{term} {found[term].value:.3f}" for term in ("prior", "diffusion", "reconstruction")
    )
    print(f"{name:16s} {found['nll']}: {terms}")

# %% [markdown]
# Both bounds lie above the true value. The model that is trained on the bound comes closer to it
# here.
#
# Where does the diffusion term come from? The left panel has the squared error of the noise that
# the first model predicts, summed over both coordinates. At the end of the chain noise is easy to
# predict, because $x_t$ *is* the noise. At its beginning there is so little noise that it can
# hardly be seen, and the error is the variance of the noise, 2. The term is an integral over time
# with the weight $½ (-λ'_t)$. Over the log signal-to-noise ratio $λ$ in place of time the weight is
# simply ½, as in the right panel, and the area under the curve is the diffusion term. Every unit of
# $λ$ counts as much as any other, however little of it the eye would notice.

# %%
times = np.linspace(0, 1, 120) ** 2


def squared_error(t):
    """Return E ‖ε − ε̂‖² at a time."""
    alpha, sigma = path(t)
    return (
        ((noise - model.denoiser(state)(alpha * x_0 + sigma * noise, t).noise) ** 2).sum(1).mean()
    )


error = np.asarray(jax.lax.map(squared_error, jnp.asarray(times, jnp.float32)))
alpha, sigma = path(jnp.asarray(times, jnp.float32))
log_snr = 2 * np.log(np.asarray(alpha) / np.asarray(sigma))
figure, (left, right) = plt.subplots(1, 2, figsize=(8, 2.6), layout="constrained")
left.plot(times, error)
left.set(xlabel="t", ylabel="squared error", ylim=(0, None))
right.fill_between(log_snr, 0.5 * error, alpha=0.3)
right.plot(log_snr, 0.5 * error)
right.set(xlabel="log signal-to-noise ratio λ", ylabel="nats per unit of λ", ylim=(0, None))
right.invert_xaxis()
plt.show()
print(f"area: {-np.trapezoid(0.5 * error, log_snr):.2f} nats")

# %% [markdown]
# ## Digits
#
# Now $x$ has 64 variables: the grey digits of scikit-learn, 8 × 8 pixels of 17 levels, small enough
# to train on a CPU in about a minute. (For 28 × 28 pixels take `UNet()` in place of `ResidualMLP`,
# and a GPU.) The network predicts $v = α_t ε - σ_t x$, a mixture of noise and image that is of the
# same size at all times. It is also told the class of the digit, except for a tenth of the training
# examples, so that it learns both $\hat x(x_t, \text{class})$ and $\hat x(x_t)$.

# %%
digits = data.load("digits")
painter = GaussianDiffusion(
    ResidualMLP(width=256, layers=3),
    shape=digits.shape,
    levels=17,
    log_snr_max=7.7,  # noise of a sixth of a grey level at t = 0
    classes=10,
    sample_steps=100,
    time_draws=50,
    ode_examples=0,
    optimizer=Optimizer(learning_rate=1e-3, schedule="cosine"),
)
trained = gen.fit(
    painter,
    digits.train,
    steps=STEPS_DIGITS,
    batch_size=100,
    decode=digits.format.decode,
    steps_per_dispatch=50,
)

# %% [markdown]
# The figure shows the course of the ancestral sampler, with a column for each class. The rough
# shape comes first and the details last.

# %%
course = np.asarray(painter.denoising(trained.state, jax.random.key(5), 10, 6))
plots.grid(course.reshape(-1, *digits.shape), 10, [f"t = {t:.2f}" for t in np.linspace(1, 0, 7)])

# %% [markdown]
# **Guidance.** With the two predictions we can exaggerate what the class adds,
#
# $$\hat x_w = (1 + w)\, \hat x(x_t, \text{class}) - w\, \hat x(x_t).$$
#
# A larger $w$ gives cleaner and more typical digits, and less variety. The columns are the classes,
# and all rows with the same place in their group start from the same noise.

# %%
rows, titles = [], []
for w in (0.0, 1.0, 4.0):
    guided = replace(painter, guidance=w, sampler="dpm", sample_steps=20)
    draw = jax.jit(guided.sample, static_argnums=2)
    label = np.arange(30) % 10
    rows.append(np.asarray(draw(trained.state, jax.random.key(6), 30, label=label)))
    titles += [f"w = {w:g}"] * 3
plots.grid(np.concatenate(rows), 10, titles)

# %% [markdown]
# **Steps.** Each sampler decodes the same noise in a few steps. `ddim` and `dpm` are deterministic,
# so with more steps they approach one and the same image.

# %%
rows, titles = [], []
for sampler in ("ancestral", "ddim", "dpm"):
    for count in FEW_DIGITS:
        traced = replace(painter, sampler=sampler, sample_steps=count)
        draw = jax.jit(traced.sample, static_argnums=2)
        rows.append(np.asarray(draw(trained.state, jax.random.key(7), 10)))
        titles.append(f"{sampler}, {count}")
plots.grid(np.concatenate(rows), 10, titles)

# %% [markdown]
# **The bound.** The next cell evaluates the bound for the grey levels, also in bits per pixel. The
# model is told the class, so the bound is on $-\log p(x \mid \text{class})$. Equal probabilities
# for all 17 levels would take $\log_2 17 ≈ 4.09$ bits. Most of the bound is paid near $t = 0$, for
# grey levels that the eye does not see, so that good samples and a good likelihood are two
# different aims.

# %%
test = {"x": digits.test["x"] / np.float32(16), "label": digits.test["label"]}
found = estimate.evaluate(painter, trained.state, test, jax.random.key(0))
for name in ("nll", "prior", "diffusion", "reconstruction", "bits_per_dim"):
    print(f"{name:15s} {found[name]}")

# %% [markdown]
# **Completion.** A diffusion model without any further training also fills in hidden pixels: in
# every step the shown pixels are replaced by a noisy copy of their true values, and each step is
# repeated a few times so that the two parts agree ([RePaint](https://arxiv.org/abs/2201.09865)).

# %%
x = np.array([test["x"][test["label"] == c][0] for c in range(10)])
mask = occlusion_mask("lower", digits.shape, seed=0)
complete = jax.jit(painter.complete)
drawn = [np.asarray(complete(trained.state, x, mask, jax.random.key(i))) for i in range(3)]
rows = np.concatenate([x, np.where(mask == 1, x, 0.5), *drawn])
plots.grid(rows, 10, ["test digits", "shown", *["completed"] * 3])

# %% [markdown]
# ## Questions to try
#
# 1. Train the toy with `prediction="x"`. What happens to the samples, and to the bound?
# 2. Draw the arrows at $t = 0.02$ and $t = 0.99$. Where does the network go wrong, and does it
#    matter for the samples?
# 3. Encode the toy's test points by `model.encode` and draw the codes, coloured by cloud
#    (`toy.test["label"]`). Which distribution do all codes together have?
# 4. `schedule="linear"` is the schedule of the DDPM paper. Compare the times at which the digits
#    become visible.
# 5. How few steps does `dpm` need with `guidance=4.0`?
# 6. Set `resamplings=1` in the completion. Do the lower halves still follow the upper ones?
