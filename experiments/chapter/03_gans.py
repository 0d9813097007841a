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
# # 3. Generative adversarial networks
#
# A generative adversarial network (GAN) is a game of two players. The **generator** $G$ maps noise
# $z \sim N(0, I)$ to an image $G(z)$. The **discriminator** $D$ is given an image and says how
# probable it is that the image comes from the data and not from the generator. The discriminator is
# rewarded for telling the two apart, and the generator for being taken for real:
#
# $$ \min_G \max_D \;
#    \mathbb{E}_{x}[\log D(x)] + \mathbb{E}_{z}[\log(1 - D(G(z)))] . $$
#
# For a fixed generator, which draws images with the density $p_G$, the best discriminator is
#
# $$ D^*(x) = \frac{p_{\text{data}}(x)}{p_{\text{data}}(x) + p_G(x)} , $$
#
# and with it the value of the game is $2\,\mathrm{JS}(p_{\text{data}} \Vert p_G) - \log 4$, where
# $\mathrm{JS}$ is the Jensen–Shannon divergence. It is smallest where the generator draws from the
# law of the data. Then $D = \tfrac12$ everywhere, and nothing can be told apart
# (Goodfellow et al. 2014, [arXiv:1406.2661](https://arxiv.org/abs/1406.2661)).
#
# In practice each player takes gradient steps in turn, on the losses
#
# $$ L_D = -\mathbb{E}_x[\log D(x)] - \mathbb{E}_z[\log(1 - D(G(z)))] , \qquad
#    L_G = -\mathbb{E}_z[\log D(G(z))] . $$
#
# The generator's loss is called *non-saturating*. It has the same goal as $\mathbb{E}_z[\log(1 -
# D(G(z)))]$, but its gradient does not vanish where the discriminator rejects the samples with
# certainty, as it does at the start.
#
# A GAN is an *implicit* model: it draws images but gives no probability of an image. There is no
# likelihood to report, and the losses do not say how good the samples are. So this notebook looks
# at samples, at the discriminator, and at a classifier that judges the samples. It takes about eight
# minutes of one core.

# %%
import jax
import numpy as np

import gen
from gen import data, plots
from gen.models.gan import GAN
from gen.nets import MLP, ConvDecoder, ConvEncoder
from gen.optimize import Optimizer
from gen.uses import judge
from gen.uses.classifier import predict

# %% tags=["parameters"] quick={"STEPS": 20, "CONV_STEPS": 10, "COLLAPSE_STEPS": 20, "SAMPLES": 200}
STEPS = 11_000  # training steps of the dense GAN
CONV_STEPS = 2_000  # training steps of the convolutional GAN
COLLAPSE_STEPS = 2_000  # training steps of the GAN that collapses
SAMPLES = 2_000  # samples that are judged

# %% [markdown]
# ## The chapter's GAN
#
# The default networks of `GAN` are the chapter's: a generator 100 → 256 → 512 → 1024 → 784 and a
# discriminator 784 → 1024 → 512 → 256 → 1, with ReLU units. Thirty percent of the discriminator's
# units are dropped in training.
#
# `gen.fit` calls `watch` again and again during training. `pause_every` makes sure that it does so
# at every multiple of `every`. The function draws samples ten times, always from the same noise, so
# that each column shows one point of the latent space.

# %%
mnist = data.load("mnist")
decode = mnist.format.decode
gan = GAN()
every = STEPS // 10
sample = jax.jit(gan.sample, static_argnums=2)
strip = {}


def watch(progress):
    if progress.step % every == 0:
        samples = sample(progress.carry.state, jax.random.key(1), 12)
        strip[progress.step] = np.asarray(samples)


trained = gen.fit(
    gan,
    mnist.train,
    steps=STEPS,
    batch_size=100,
    decode=decode,
    on_progress=watch,
    pause_every=[every],
)

# %% [markdown]
# How to read these curves: `d_loss` and `g_loss` are $L_D$ and $L_G$. If nothing could be told
# apart, `d_loss` would be $2 \log 2 \approx 1.39$ and `g_loss` would be $\log 2 \approx 0.69$.
# `d_real` and `d_fake` are the mean outputs of $D$ for data and for samples. `diversity` is the
# mean squared distance between two samples, relative to the distance between two images of the
# data: near 1 the samples differ as much as the data do, near 0 they are all alike. `g_gradient` is
# the norm of the generator's gradient. None of these curves falls steadily, since each player's
# task becomes harder when the other one improves.
#
# ## Samples through training
#
# The rows are ten moments of the training, from top to bottom.

# %%
plots.grid(
    np.concatenate(list(strip.values())), columns=12, labels=[f"step {step:,}" for step in strip]
)

# %% [markdown]
# For about 2,500 steps all samples of a row are alike, and the diversity is near 0. Then strokes
# appear, then digits, and the diversity rises. A column need not keep its digit: the generator moves
# whenever the discriminator does, and it never settles. Specks in the background are typical of
# dense networks, which do not know that neighbouring pixels belong together.
#
# ## After 55,000 steps
#
# `gen.load` returns published weights, which are part of the project. The published GAN has the
# same networks and the same optimiser. It was trained for 55,000 steps, or 100 epochs. Three seeds
# were trained together, in four minutes on a GPU, and the weights of the first one are published. The
# upper two rows are samples of the GAN above, the lower two samples of the published one.

# %%
published = gen.load("gan_mnist")
drawn = judge.draw(gan, trained.state, SAMPLES, seed=0)["x"]
published_drawn = judge.draw(published.model, published.state, SAMPLES, seed=0)["x"]
plots.grid(
    np.concatenate([drawn[:24], published_drawn[:24]]),
    columns=12,
    labels=[f"step {STEPS:,}", "", f"step {published.step:,}", ""],
)

# %% [markdown]
# The samples of the shorter training repeat a few digits, such as 1 and 9. The longer training draws
# more kinds of digits, and its samples are not free of specks either. The section "Judging samples"
# below measures both.
#
# ## What the discriminator sees
#
# `scores` returns minus the logit of $D(x)$. The next figure compares $D$ on test images, which it
# has not seen in training, on new samples, on uniform noise, and on test images turned upside down.
# The height of a bin is its share of the images. Values beyond the axis are counted in the
# outermost bins.

# %%
test = mnist.decoded("test")
images = {
    "test images": test["x"][:SAMPLES],
    "samples": drawn,
    "upside down": test["x"][:SAMPLES, ::-1, ::-1],
    "noise": np.random.default_rng(0).random((SAMPLES, *gan.shape), np.float32),
}
logits = {
    name: -np.asarray(gan.scores(trained.state, {"x": x}, jax.random.key(0))["discriminator"])
    for name, x in images.items()
}
for name, values in logits.items():
    print(f"{name}: the share taken for real is {(values > 0).mean():.2f}")
plots.histograms({"logit of D": logits})

# %% [markdown]
# The discriminator has learned to tell data from *this generator's* samples. It rejects noise, too.
# But it takes digits upside down for real as often as digits, because the generator never drew any.
# So it is no judge of images in general, and a poor detector of anomalies.
#
# It does have an opinion on single samples. The first row shows the samples that it takes for real
# with the greatest certainty, and the second row the samples that it rejects with the greatest
# certainty.

# %%
order = np.argsort(logits["samples"])
plots.grid(
    drawn[np.concatenate([order[::-1][:12], order[:12]])],
    columns=12,
    labels=["most real", "least real"],
)

# %% [markdown]
# To the eye, the rejected samples are no worse than the accepted ones. The discriminator judges what
# distinguishes samples from data at this step, and the next steps of the generator change that.
#
# ## Convolutions and batch normalisation
#
# A convolution treats all places of an image alike and connects a pixel with its neighbours. A
# generator of transposed convolutions begins with a small image of many channels and doubles its
# sides layer by layer, and the discriminator halves them. **Batch normalisation** keeps the
# generator's layers in a range where they learn: each channel $h$ is shifted and scaled by its mean
# $m$ and variance $v$ over the batch,
#
# $$ \hat h = \gamma \, \frac{h - m}{\sqrt{v + \epsilon}} + \beta , $$
#
# with learned $\gamma$ and $\beta$ (Radford et al. 2016,
# [arXiv:1511.06434](https://arxiv.org/abs/1511.06434)). Sampling uses running means of $m$ and $v$
# from training.

# %%
conv = GAN(
    latent=32,
    generator=ConvDecoder((256,), (128, 64, 32), batch_norm=True),
    discriminator=ConvEncoder((16, 32, 64), (), "leaky_relu"),
    optimizer=Optimizer(learning_rate=1e-3, b1=0.5),
)
conv_trained = gen.fit(conv, mnist.train, steps=CONV_STEPS, batch_size=100, decode=decode)

# %%
conv_drawn = judge.draw(conv, conv_trained.state, SAMPLES, seed=0)["x"]
plots.grid(conv_drawn[:60], columns=12)

# %% [markdown]
# The strokes are connected, and the background is black. The convolutional generator took fewer
# steps for that.
#
# ## What collapse looks like
#
# The game can fail. The best known failure is **mode collapse**: the generator draws a few images,
# or a single one, that the discriminator happens to accept, and it no longer depends on $z$. It is
# easily provoked by a learning rate of 0.01, which is fifty times the default of `GAN`. The data
# are the 8 × 8 digits of scikit-learn, which train in seconds.

# %%
digits = data.load("digits")
players = {
    "generator": MLP((128, 256), "relu"),
    "discriminator": MLP((256, 128), "relu", dropout=0.3),
}
collapsing = GAN(digits.shape, latent=32, **players, optimizer=Optimizer(learning_rate=1e-2))
collapsed = gen.fit(
    collapsing,
    digits.train,
    steps=COLLAPSE_STEPS,
    batch_size=100,
    decode=digits.format.decode,
)

# %%
plots.grid(collapsing.sample(collapsed.state, jax.random.key(0), 24), columns=12)

# %% [markdown]
# All samples are one image. The metrics show it without a look at the samples: the diversity is 0.
# `hints` reads the last report, names each fault, and proposes a remedy. The command line prints
# the same lines during training. For the two GANs above it is silent.

# %%
for name, model, result in (
    ("dense", gan, trained),
    ("convolutional", conv, conv_trained),
    ("collapsed", collapsing, collapsed),
):
    last = {metric: float(values[-1]) for metric, values in result.history.items()}
    for fault, line in model.hints(last).items() or [("no fault", "nothing to report")]:
        print(f"{name}: {fault}: {line}")

# %% [markdown]
# ## Judging samples
#
# How good are the samples, in numbers? A classifier that was trained on real digits can judge them.
# `gen.load` returns a published one, whose weights are part of the project. Its features turn an
# image into a vector, and two sets of images are compared by their vectors:
#
# - the **Fréchet distance** compares the means and covariances of the vectors, and is 0 if they
#   agree;
# - **precision** is the share of samples that lie near test images, and **recall** the share of
#   test images that lie near samples. A collapsed generator can have a high precision and no
#   recall;
# - **class_kl** compares how often each digit is drawn with how often it occurs.
#
# Training images in place of samples show the values that a perfect generator would have with as
# many samples.

# %%
classifier = gen.load("classifier_mnist")


def seen(x):
    return predict(classifier.model, classifier.state, x)


training = mnist.decoded("train")["x"]
real, reference = seen(test["x"][:SAMPLES]), seen(training[SAMPLES : 6 * SAMPLES])
candidates = {
    f"dense GAN, {STEPS:,} steps": drawn,
    f"dense GAN, {published.step:,} steps": published_drawn,
    f"convolutional GAN, {CONV_STEPS:,} steps": conv_drawn,
    "training images": training[:SAMPLES],
}
judged = {name: judge.judge(seen(x), real, reference) for name, x in candidates.items()}
for measure in ("frechet_distance", "precision", "recall", "class_kl"):
    print(measure)
    for name, estimates in judged.items():
        print(f"  {name}: {estimates[measure].value:.3f} ± {estimates[measure].stderr:.3f}")

# %% [markdown]
# After 11,000 steps nearly half of the samples of the dense GAN lie near test images, but hardly any
# test image lies near a sample: the recall is 0.01. `class_kl` confirms that some digits are drawn
# too often. The longer training reduces the Fréchet distance from 32 to 6, mostly by more variety.
# The convolutional GAN has the lowest distance of the three after 2,000 steps. In precision and
# `class_kl` the dense GAN is ahead of it after the longer training, and in recall the two are close.
# All of them are far from the values of training images.
#
# These distances depend on the classifier and on the number of samples, so they can be compared
# with each other and not with distances of other sources.
#
# The nearest training images answer another question: are the samples copies? Each sample of the
# convolutional GAN stands above the training image that is nearest to it in pixels.

# %%
few = conv_drawn[:12]
rows, _ = judge.nearest(few.reshape(12, -1), training.reshape(len(training), -1))
plots.grid(np.concatenate([few, training[rows]]), columns=12, labels=["sample", "nearest image"])

# %% [markdown]
# None of these samples is a copy: each differs from its neighbour in the form of its strokes.
#
# ## Questions to try
#
# 1. Train the generator with `loss="minimax"` in place of the non-saturating loss. What does
#    `g_gradient` do in the first steps?
# 2. Try to save the collapsing GAN with a remedy that `hints` proposes: `pack=2`, `penalty="r1"` or
#    `loss="relativistic"`, still with the large learning rate.
# 3. Is the path between two latent points a path of digits? Take `latent.interpolate` from the
#    notebook on VAEs and `conv.decode`.
# 4. `GAN(classes=10)` gives both players the label. Draw one row of each digit.
# 5. How do precision and recall change during the training of the dense GAN? Judge 2,000 samples in
#    `watch`, at each of its ten moments.
