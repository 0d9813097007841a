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
# # 8. The same ten digits through every family
#
# The chapter ends with a comparison, which takes about four minutes. Ten test digits, one of each
# class, go through every family: they are reconstructed, completed from their upper halves, and
# scored. Beside them stand samples of the same models.
#
# The first half takes the 28 × 28 digits of MNIST and models with published weights; nothing is
# trained. The second half takes digits of 8 × 8 pixels. They are so small that every family is at
# its best within a minute on a CPU, also a family whose large models need a GPU.

# %% tags=["parameters"] quick={"SHARE": 0.01, "TEST_IMAGES": 20, "COMPLETIONS": 2}
SHARE = 1.0  # of the training steps of the small models
TEST_IMAGES = 1_000
COMPLETIONS = 20  # of each digit

# %%
from dataclasses import replace

import jax
import matplotlib.pyplot as plt
import numpy as np

import gen
from gen import data, estimate, plots
from gen.data import Format
from gen.models.autoencoder import Autoencoder
from gen.models.gan import GAN
from gen.models.hmm import HMM
from gen.models.mixture import Mixture
from gen.nets import MLP
from gen.uses import anomaly
from gen.uses.classifier import predict
from gen.uses.completion import occlusion_mask

# %% [markdown]
# ## Published models of MNIST
#
# The test images are black or white, fixed once and for all. They have no labels, so a published
# classifier of digits finds the first clear example of each class.

# %%
mnist = data.load("binarized_mnist")
x_test = mnist.test["x"]
classifier = gen.load("classifier_mnist")
prediction = predict(classifier.model, classifier.state, x_test[:300].astype(np.float32))
clear = prediction.probabilities.max(axis=1) > 0.95
ten = np.array([x_test[:300][(prediction.labels == c) & clear][0] for c in range(10)])

large = {
    "autoencoder": gen.load("ae_mnist"),
    "VAE": gen.load("vae_conv_binarized_mnist"),
    "GAN": gen.load("gan_conv_mnist"),
    "mixture": gen.load("mixture_binarized_mnist"),
    "FVSBN": gen.load("fvsbn_mnist"),
    "PixelCNN": gen.load("gated_pixelcnn_binarized_mnist"),
}
for name, run in large.items():
    wanted = ("sample", "reconstruct", "complete", "log_prob")
    able = [method for method in wanted if method in run.abilities]
    print(f"{name:12s} {run.model.density:12s} {', '.join(able)}")

# %% [markdown]
# The figure has a row for each family, and three panels:
#
# - **Reconstructed**: the digit is encoded and decoded again. This takes a model with a code.
# - **Completed**: the model sees the upper half and draws the lower one.
# - **Sampled**: nothing is given. The autoencoder has no distribution to draw from. The samples of
#   the VAE and of the GAN are grey: the VAE shows the mean of each pixel, and the GAN was trained
#   on grey digits.
#
# A grey square stands for something that the family cannot do.


# %%
def through(runs, ten, training):
    """Draw what each model makes of ten digits: a row for each model, and three panels.

    Args:
      runs: trained models by name.
      ten: ten binary images.
      training: ten training images, which stand beside the samples.
    """
    mask = occlusion_mask("lower", ten.shape[1:], seed=0)  # 1 where a pixel is shown
    ten = ten.astype(np.float32)
    blank = np.full_like(ten, 0.5)
    panels = {
        "reconstructed": [ten],
        "completed": [np.where(mask == 1, ten, 0.5)],
        "sampled": [training.astype(np.float32)],
    }
    for run in runs.values():
        can = run.abilities
        panels["reconstructed"].append(run.reconstruct(ten) if "reconstruct" in can else blank)
        panels["completed"].append(run.complete(ten, mask, seed=1) if "complete" in can else blank)
        panels["sampled"].append(run.sample(10, seed=1) if "sample" in can else blank)
    scaled = {  # grey levels and binary draws of grey data are integers above 1
        title: np.stack([row / max(1, row.max()) for row in rows]) for title, rows in panels.items()
    }
    return plots.panels_of_images(scaled, ["data", *runs])


through(large, ten, mnist.train["x"][:10])

# %% [markdown]
# One completion does not tell how sure a model is. Below, each pixel is the mean of 20 completions:
# sharp where the upper half decides, and grey where several digits remain possible. The mixture has
# only as many answers as it has components. The FVSBN draws from its exact conditional
# distribution, as the PixelCNN does, and still its halves hold together less.


# %%
def mean_completions(runs, ten):
    """Draw the mean of several completions of the lower halves, a row for each model."""
    mask = occlusion_mask("lower", ten.shape[1:], seed=0)
    repeated = np.repeat(
        ten.astype(np.float32), COMPLETIONS, axis=0
    )  # equal rows are drawn independently
    rows = {"test digits": ten.astype(np.float32)}
    for name, run in runs.items():
        if "complete" in run.abilities:
            drawn = run.complete(repeated, mask)
            drawn = (drawn / max(1, drawn.max())).reshape(10, COMPLETIONS, *ten.shape[1:])
            rows[name] = drawn.mean(axis=1)
    return plots.grid(np.concatenate(list(rows.values())), 10, list(rows))


mean_completions(large, ten)

# %% [markdown]
# ### Likelihoods, and which of them can be compared
#
# The models of black and white pixels may stand in one table, by $-\log p(x)$ in nats per image.
# But the numbers are of different *kinds*:
#
# - **exact**: computed without approximation;
# - **upper bound**: the true value is at most this.
#
# A bound of 85 may belong to a better model than an exact 84, because the true value behind the
# bound is lower. The autoencoder and the GAN have no likelihood at all and are not in the table.
#
# The FVSBN was trained on MNIST binarised anew in each step, and the others on the fixed images that
# the test is made of. Its value is therefore not strictly comparable.


# %%
def likelihoods(runs, x):
    """Return −log p(x) of the models that have it, or a bound on it, by name."""
    found = {}
    for name, run in runs.items():
        if run.model.density in ("tractable", "approximate"):
            found[name] = estimate.evaluate(run.model, run.state, {"x": x}, jax.random.key(0))[
                "nll"
            ]
    return found


vae = large["VAE"]  # ten draws of z for each image in its bound, in place of 500
bounded = replace(vae, model=replace(vae.model, bound_samples=10))
found = likelihoods({**large, "VAE": bounded}, x_test[:TEST_IMAGES].astype(np.float32))
for name, nll in sorted(found.items(), key=lambda item: item[1].value):
    print(f"{name:12s} {nll}")

# %% [markdown]
# ## Every family, on 8 × 8 pixels
#
# The second half takes the digits of scikit-learn, with their grey values drawn as black or white.
# The ten test digits are the clearest ones for a classifier. Four models are published. An
# autoencoder, a GAN, a mixture and a hidden Markov model, which reads an image row by row, are
# trained here.

# %%
digits = data.load("digits")
black_or_white = jax.jit(lambda batch, key: digits.format.decode(batch, key, "dynamic"))
train = black_or_white(dict(digits.train), jax.random.key(0))
test = black_or_white(dict(digits.test), jax.random.key(1))
x_small, labels = np.asarray(test["x"]), np.asarray(test["label"])
classifier = gen.load("classifier_digits")
certainty = predict(classifier.model, classifier.state, x_small).probabilities
where = [int(np.argmax(certainty[:, c] * (labels == c))) for c in range(10)]  # the clearest ones
ten_small = x_small[where]


def trained(name, model, steps, batch_size):
    """Train a model on the small digits, and wrap it for NumPy in and out.

    Args:
      name: the name of the model.
      model: the model.
      steps: training steps, before they are multiplied by `SHARE`.
      batch_size: images in a step.
    """
    steps = max(1, round(SHARE * steps))
    x = {"x": train["x"]}
    result = gen.fit(
        model, x, steps=steps, batch_size=batch_size, steps_per_dispatch=20, show=False
    )
    return gen.Trained(name, model, result.state, steps, {}, Format(1))


shape, rows = digits.shape, len(train["x"])
small = {
    "autoencoder": trained(
        "autoencoder",
        Autoencoder(shape=shape, encoder=MLP((48, 24), "relu"), decoder=MLP((48,), "relu")),
        3_000,
        64,
    ),
    "VAE": gen.load("vae_digits"),
    "GAN": trained(
        "GAN",
        GAN(
            shape=shape,
            generator=MLP((128, 256), "relu"),
            discriminator=MLP((256, 128), "relu", dropout=0.3),
            latent=32,
        ),
        10_000,
        100,
    ),
    "mixture": trained("mixture", Mixture(shape=shape, components=40), 100, rows),
    "PixelCNN": gen.load("pixelcnn_digits"),
    "RBM": gen.load("rbm_tempered_digits"),
    "HMM": trained("HMM", HMM(shape=shape, states=40, start="examples"), 60, rows),
    "diffusion": gen.load("discrete_diffusion_digits"),
}
for name, run in small.items():
    count = sum(leaf.size for leaf in jax.tree.leaves(run.model.parameters(run.state)))
    print(f"{name:12s} {run.model.density:12s} {count:9,d} parameters")

# %% [markdown]
# This picture sums up the chapter: the same ten digits go through every family.

# %%
through(small, ten_small, np.asarray(train["x"][:10]))

# %%
mean_completions(small, ten_small)

# %% [markdown]
# The next cell has the likelihoods of the test digits. The RBM has only 16 hidden units, so that
# its $\log Z$ is a sum over $2^{16}$ states and its value is exact. The published models were
# trained on images binarised anew in each step, and the others on one fixed draw.

# %%
found = likelihoods(small, x_small)
for name, nll in sorted(found.items(), key=lambda item: item[1].value):
    print(f"{name:12s} {nll}")

# %% [markdown]
# The numbers lie close together: between neighbours in the list the differences are hardly larger
# than the standard errors. But the images are the same for all models, so we may take the
# differences *image by image*. Their errors are smaller. A model with a negative difference is
# better than the PixelCNN. A difference of two values of different kinds says less: the VAE and the
# diffusion model may be better than shown.

# %%
figure, axis = plt.subplots(figsize=(7, 2.6), layout="constrained")
names = sorted(found, key=lambda name: found[name].value)
for i, nll in enumerate(found[name] for name in names):
    difference = nll.per_example - found["PixelCNN"].per_example
    # The values of single images may lack a constant, such as log Z, which the mean has.
    difference += nll.value - found["PixelCNN"].value - difference.mean()
    error = difference.std() / np.sqrt(len(difference))
    axis.errorbar(difference.mean(), i, xerr=2 * error, marker="o", capsize=3, color=f"C{i}")
axis.axvline(0, color="black", linewidth=0.8)
axis.set_yticks(range(len(names)), [f"{name}, {found[name].kind}" for name in names])
axis.invert_yaxis()
axis.set(xlabel="nats above the PixelCNN, with two standard errors")
plt.show()

# %% [markdown]
# The next table has the same numbers for each of the ten digits. The families mostly agree on which
# digits are cheap.

# %%
each = {name: e.per_example - e.per_example.mean() + e.value for name, e in found.items()}
table = np.stack([values[where] for values in each.values()])
figure, axis = plt.subplots(figsize=(8, 2.8), layout="constrained")
axis.imshow(table, cmap="viridis_r", aspect="auto")
for (i, j), value in np.ndenumerate(table):
    dark = value > (table.min() + table.max()) / 2
    axis.text(j, i, f"{value:.0f}", ha="center", va="center", color="white" if dark else "black")
axis.set_yticks(range(len(each)), list(each))
axis.set(xticks=range(10), xlabel="digit", title="−log p(x), nats")
plt.show()

# %% [markdown]
# ## What does each family find strange?
#
# Every model has a `score` that is higher for stranger images: $-\log p(x)$ or its bound, the error
# of a reconstruction, the free energy, or the discriminator's doubt. Units differ, so we compare
# ranks. The AUROC is the probability that a strange image scores higher than a normal one: ½ is
# chance and 1 is perfect. The strange images are of three kinds: test digits that are mirrored,
# test digits with four inverted pixels, and test digits whose pixels are shuffled within blocks of
# 2 × 2.

# %%
rng = np.random.default_rng(0)
half = len(x_small) // 2
usual, other = x_small[:half], x_small[half:]
flipped = other.reshape(len(other), -1).copy()
for image in flipped:
    chosen = rng.choice(64, 4, replace=False)
    image[chosen] = 1 - image[chosen]
blocks = other.reshape(-1, 4, 2, 4, 2).transpose(0, 1, 3, 2, 4).reshape(-1, 4, 4, 4)
shuffled = rng.permuted(blocks, axis=-1).reshape(-1, 4, 4, 2, 2).transpose(0, 1, 3, 2, 4)
strange = {
    "mirrored": other[:, :, ::-1],
    "four pixels": flipped.reshape(other.shape),
    "shuffled": shuffled.reshape(other.shape),
}
plots.grid(np.concatenate([x[:10] for x in (other, *strange.values())]), 10, ["normal", *strange])

# %%
print(f"{'AUROC':12s}" + "".join(f"{kind:>14s}" for kind in strange))
for name, run in small.items():
    normal, values = run.score(usual), []
    for x in strange.values():
        scores = np.concatenate([normal, run.score(x)])
        values.append(anomaly.auroc(scores, np.arange(len(scores)) >= half).value)
    print(f"{name:12s}" + "".join(f"{value:14.2f}" for value in values))

# %% [markdown]
# The models with a likelihood, or a bound on it, agree: inverted pixels are easy to notice, and
# mirrored digits are hard, since many of them are still plausible strokes. The reconstruction error
# of the autoencoder notices less of inverted and of shuffled pixels. The discriminator of the GAN
# is near chance. It was trained to find the faults of its own generator, and says nothing about
# others.
#
# ## Which family for which purpose?
#
# | you want | take |
# |---|---|
# | an exact likelihood, and a coder | a fully visible belief net |
# | codes, a map of the data, quick samples | a VAE |
# | sharp samples in one pass, and no likelihood | a GAN |
# | samples of high quality, and time to draw them | a diffusion model |
# | any part given any other part, exactly | a mixture or a hidden Markov model |
# | sequences with regimes | a hidden Markov model |
# | which things belong to which | a Boltzmann machine |
# | a reconstruction, or features for a classifier | an autoencoder |
#
# ## Questions to try
#
# 1. Hide a box in the middle, `occlusion_mask("box", digits.shape, seed=0)`. Which families still
#    draw from their exact conditional distribution? `gen.core.facts(run.model).completion` tells.
# 2. The diffusion model has the lowest number here. May you call it the best model of the table?
# 3. Which of your ten digits is the strangest by each family? Do they agree?
# 4. Judge the samples: `gen.uses.judge` has distances, precision and recall by the features of
#    `gen.load("classifier_digits")`. Which family wins, and does it have the best likelihood?
# 5. A grid of 8 × 8 black and white pixels has $2^{64}$ images. How many bits does the best model
#    need for one, and how many would you need without a model?
