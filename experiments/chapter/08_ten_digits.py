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
# The chapter ends with a comparison. Ten test digits, one of each class, go through every family of the
# chapter: they are reconstructed, completed from their upper halves, and scored. Beside them stand
# samples of the same models.
#
# Most models come with published weights. Three are trained here, for a minute or two each, so they are
# not at their best: a restricted Boltzmann machine, a hidden Markov model that reads an image row by
# row, and a diffusion model of black and white pixels.

# %% tags=["parameters"] quick={"STEPS_RBM": 50, "STEPS_HMM": 2, "STEPS_DIFFUSION": 5, "TEST_IMAGES": 20}
STEPS_RBM = 6_000
STEPS_HMM = 40
STEPS_DIFFUSION = 2_000
TEST_IMAGES = 1_000

# %%
import json
from dataclasses import replace

import jax
import matplotlib.pyplot as plt
import numpy as np

import gen
from gen import data, estimate, plots
from gen.models.boltzmann import RBM
from gen.models.boltzmann.partition import AIS
from gen.models.diffusion import DiscreteDiffusion, UNet
from gen.models.hmm import HMM
from gen.optimize import Optimizer
from gen.trained import PUBLISHED
from gen.uses import anomaly
from gen.uses.classifier import predict
from gen.uses.completion import occlusion_mask

# %% [markdown]
# ## The digits
#
# The test images of MNIST, made black or white once and for all. These data have no labels, so we let a
# published classifier of grey digits find the first clear example of each class.

# %%
mnist = data.load("binarized_mnist")
x_test = mnist.test["x"]
classifier = gen.load("classifier_mnist")
prediction = predict(classifier.model, classifier.state, x_test[:300].astype(np.float32))
clear = prediction.probabilities.max(axis=1) > 0.95
ten = np.array([x_test[:300][(prediction.labels == c) & clear][0] for c in range(10)])
mask = occlusion_mask("lower", mnist.shape, seed=0)  # 1 where a pixel is shown
plots.grid(np.concatenate([ten, np.where(mask == 1, ten, 0.5)]), 10, ["test digits", "shown"])

# %% [markdown]
# ## Three models, trained here


# %%
def train(name, model, steps, batch_size, **options):
    """Train a model, and wrap it with the format of its data, for NumPy in and out."""
    result = gen.fit(model, mnist.train, steps=steps, batch_size=batch_size, **options)
    return gen.Trained(name, model, result.state, steps, {}, mnist.format)


rbm = train(
    "RBM",
    RBM(
        hidden=300,
        burn_in=1_000,
        optimizer=Optimizer("sgd", learning_rate=0.1, schedule="cosine"),
        ais=AIS(temperatures=1_000, chains=100, warn_above=1e9),
    ),
    STEPS_RBM,
    100,
    steps_per_dispatch=10,
)

# %%
hmm = train(
    "HMM",
    HMM(states=64, start="examples", rate=0.2, smoothing=1e-5),
    STEPS_HMM,
    5_000,
    report_every=1,
)

# %%
diffusion = train(
    "diffusion",
    DiscreteDiffusion(
        UNet((64,), blocks=1, patch=4),
        time_draws=10,
        ema_decay=0.995,
        optimizer=Optimizer(learning_rate=2e-3, schedule="cosine"),
    ),
    STEPS_DIFFUSION,
    64,
)

# %%
runs = {
    "autoencoder": gen.load("ae_mnist"),
    "VAE": gen.load("vae_conv_binarized_mnist"),
    "GAN": gen.load("gan_conv_mnist"),
    "mixture": gen.load("mixture_binarized_mnist"),
    "PixelCNN": gen.load("gated_pixelcnn_binarized_mnist"),
    "RBM": rbm,
    "HMM": hmm,
    "diffusion": diffusion,
}
for name, run in runs.items():
    able = [
        method
        for method in ("sample", "reconstruct", "complete", "log_prob")
        if method in run.abilities
    ]
    print(f"{name:12s} {run.model.density:12s} {', '.join(able)}")

# %% [markdown]
# ## One picture
#
# A row for each family, and three panels:
#
# - **Reconstructed**: the digit is encoded and decoded again. It takes a model with a code: an
#   autoencoder, a VAE, or the hidden units of an RBM.
# - **Completed**: the model sees the upper half and draws the lower one. Mixtures, hidden Markov models
#   and the PixelCNN draw from their exact conditional distribution. The RBM and the VAE run a Markov
#   chain, and the diffusion model fills in masked pixels step by step.
# - **Sampled**: nothing is given. The autoencoder has no distribution to draw from.
#
# Grey squares are what a family cannot do.

# %%
blank = np.full_like(ten, 0.5, dtype=np.float32)
panels = {
    "reconstructed": [ten / 1.0],
    "completed": [np.where(mask == 1, ten, 0.5)],
    "sampled": [mnist.train["x"][:10] / 1.0],
}
for run in runs.values():
    can = run.abilities
    panels["reconstructed"].append(run.reconstruct(ten) if "reconstruct" in can else blank)
    panels["completed"].append(run.complete(ten, mask, seed=1) if "complete" in can else blank)
    samples = run.sample(10, seed=1) if "sample" in can else blank
    panels["sampled"].append(samples / (255 if samples.max() > 1 else 1))

stacked = {title: np.stack(rows).astype(np.float32) for title, rows in panels.items()}
plots.panels_of_images(stacked, ["data", *runs])

# %% [markdown]
# The uncertainty of a completion is part of the answer. Below, each pixel is the mean of 20
# completions: the PixelCNN and the diffusion model commit themselves where the upper half decides, and
# stay grey where it does not. The mixture has only as many answers as it has components.

# %%
means = []
for name, run in runs.items():
    if "complete" in run.abilities:
        repeated = np.repeat(ten, 20, axis=0)  # equal rows are drawn independently
        means.append(run.complete(repeated, mask).reshape(10, 20, 28, 28, 1).mean(axis=1))
able = [name for name, run in runs.items() if "complete" in run.abilities]
plots.grid(np.concatenate([ten, *means]), 10, ["test digits", *able])

# %% [markdown]
# ## Likelihoods, and which of them can be compared
#
# All of these models describe the same black and white pixels, so their $-\log p(x)$ may stand in one
# table, in nats per image. But the numbers are of different *kinds*:
#
# - **exact**: computed without approximation (mixture, PixelCNN, HMM);
# - **upper bound**: the true value is at most this (VAE, diffusion);
# - **AIS**: the normaliser $\log Z$ is estimated (RBM).
#
# A bound of 85 may belong to a better model than an exact 84, because the true value behind the bound is
# lower. The autoencoder and the GAN have no likelihood at all, and a table without them is the honest
# one. The second column is the published result of the family's full training run, on 10,000 images.

# %%
full_runs = {
    "VAE": "vae_conv_binarized_mnist",
    "mixture": "mixture_binarized_mnist",
    "PixelCNN": "gated_pixelcnn_binarized_mnist",
    "RBM": "rbm_binarized_mnist",
    "HMM": "hmm_binarized_mnist",
    "diffusion": "discrete_diffusion_binarized_mnist",
}
x = np.concatenate([ten, x_test[:TEST_IMAGES]])
found = {}
for name in full_runs:
    model = runs[name].model
    if name == "VAE":
        model = replace(model, bound_samples=10)  # draws of z in the importance-weighted bound
    found[name] = estimate.evaluate(model, runs[name].state, {"x": x}, jax.random.key(0))["nll"]

print(f"{'family':10s}{'here':>42s}{'full run':>46s}")
for name, here in sorted(found.items(), key=lambda item: item[1].value):
    published = json.loads((PUBLISHED / f"{full_runs[name]}.json").read_text())
    print(f"{name:10s}{here!s:>42s}{estimate.from_json(published['estimates']['nll'])!s:>46s}")

# %% [markdown]
# The same numbers for each of the ten digits. All families agree on which digits are cheap: a 1 has few
# pixels that could be otherwise. A model is better or worse by the *differences within a column*.

# %%
each = {name: e.per_example[:10] - e.per_example.mean() + e.value for name, e in found.items()}
table = np.stack(list(each.values()))
figure, axis = plt.subplots(figsize=(9, 3), layout="constrained")
axis.imshow(table, cmap="viridis_r", aspect="auto")
for (i, j), value in np.ndenumerate(table):
    axis.text(
        j, i, f"{value:.0f}", ha="center", va="center", color="white" if value > 90 else "black"
    )
axis.set(xticks=range(10), yticks=range(len(each)), xlabel="digit", title="−log p(x), nats")
axis.set_yticklabels(list(each))
# %% [markdown]
# ## What does each family find strange?
#
# Every model has a `score` that is higher for stranger images: $-\log p(x)$ or its bound, the error of a
# reconstruction, the free energy, or the discriminator's doubt. Units differ, so we compare ranks. The
# AUROC is the probability that a strange image scores higher than a normal one: ½ is chance and 1 is
# perfect. Strange images here are test digits that are mirrored, or whose black and white is exchanged in
# a small square, or of which the pixels are shuffled within blocks of 2 × 2.

# %%
rng = np.random.default_rng(0)
usual, other = x_test[300:500], x_test[500:700]
square = other.copy()
for image, (row, column) in zip(square, rng.integers(6, 18, (len(square), 2)), strict=True):
    image[row : row + 4, column : column + 4] ^= 1
blocks = other.reshape(-1, 14, 2, 14, 2).transpose(0, 1, 3, 2, 4).reshape(-1, 14, 14, 4)
shuffled = rng.permuted(blocks, axis=-1).reshape(-1, 14, 14, 2, 2).transpose(0, 1, 3, 2, 4)
strange = {
    "mirrored": other[:, :, ::-1],
    "square": square,
    "shuffled": shuffled.reshape(other.shape),
}
plots.grid(
    np.concatenate([x[:10] for x in (other, *strange.values())]) / 1.0, 10, ["normal", *strange]
)

# %%
print(f"{'family':12s}" + "".join(f"{kind:>12s}" for kind in strange))
for name, run in runs.items():
    normal = run.score(usual)
    values = [
        anomaly.auroc(np.concatenate([normal, run.score(x)]), np.arange(400) >= 200).value
        for x in strange.values()
    ]
    print(f"{name:12s}" + "".join(f"{value:12.2f}" for value in values))

# %% [markdown]
# ## Which family for which purpose?
#
# | you want | take |
# |---|---|
# | a likelihood that is exact, and a coder | a fully visible belief net |
# | codes, a map of the data, quick samples | a VAE |
# | sharp samples in one pass, no likelihood | a GAN |
# | samples of high quality, and time | a diffusion model |
# | any part given any other part, exactly | a mixture or a hidden Markov model |
# | sequences with regimes | a hidden Markov model |
# | which things belong to which | a Boltzmann machine |
# | features for a classifier, or only a reconstruction | an autoencoder |
#
# ## Questions to try
#
# 1. Hide a box in the middle, `occlusion_mask("box", mnist.shape, seed=0)`. Which families still draw
#    from their exact conditional distribution? `gen.core.facts(run.model).completion` tells.
# 2. Train the diffusion model ten times as long. Does it pass the PixelCNN, and may you say so?
# 3. Which of your ten digits is the strangest by each family? Do they agree?
# 4. Judge the samples: `gen.uses.judge` has distances, precision and recall by the features of the
#    classifier. Which family wins, and is it the one with the best likelihood?
# 5. The published VAE was trained for half an hour, the RBM here for a minute. How would you compare
#    them fairly?
