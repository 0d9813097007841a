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
# # 1. Autoencoders
#
# An autoencoder is a pair of networks. The **encoder** $f$ maps an example $x$ to a code
# $z = f(x)$, which is usually shorter than $x$, and the **decoder** $g$ maps the code back to a
# reconstruction $\hat x = g(z)$. Both are trained together to minimise the squared error per pixel,
# averaged over the examples,
#
# $$ L(f, g) = \frac{1}{N} \sum_{n=1}^{N} \frac{1}{D}
#    \left\lVert x_n - g(f(x_n)) \right\rVert^2 , $$
#
# where $D$ is the number of pixels. No labels are needed. Since the code has fewer numbers than the
# image has pixels, the encoder must find out which properties of the digits matter and which pixels
# follow from others.
#
# This notebook trains the chapter's autoencoder on MNIST, looks at its codes, and then uses
# autoencoders for three things: removing noise, predicting labels when few examples have one, and
# finding defects in images. It takes about five minutes on two cores.

# %%
import jax
import numpy as np

import gen
from gen import data, estimate, plots
from gen.models.autoencoder import Autoencoder, corrupt
from gen.nets import MLP, ConvDecoder, ConvEncoder
from gen.optimize import Optimizer
from gen.uses import anomaly, defects, features, latent

# %% [markdown]
# The next cell sets how long the models train. Change the numbers and run the notebook again to see
# what more or less training does.

# %% tags=["parameters"] quick={"STEPS": 20, "VARIANT_STEPS": 20, "CLOTH_STEPS": 10, "MAPPED": 200, "LABELS": [20]}
STEPS = 1_000  # training steps of the chapter's autoencoder
VARIANT_STEPS = 2_000  # training steps of the denoising and of the sparse autoencoder
CLOTH_STEPS = 1_000  # training steps of the autoencoder that finds defects
MAPPED = 2_000  # test images on the map of the codes
LABELS = [100, 1_000]  # numbers of labelled images

# %% [markdown]
# ## The data and the model
#
# MNIST has 28 × 28 grey images of handwritten digits. `mnist.train["x"]` holds bytes from 0 to 255,
# and `mnist.decoded("test")` the test images with values in $[0, 1]$.
#
# The default model is the chapter's network: an encoder 784 → 784 → 256 → 128 and a decoder
# 128 → 128 → 256 → 784, with ReLU after every layer. A model is a frozen dataclass of
# hyperparameters. It holds no weights: these are in a *state*, which `gen.fit` returns.

# %%
mnist = data.load("mnist")
decode = mnist.format.decode  # scales a batch of bytes to [0, 1] in each training step
test = mnist.decoded("test")

model = Autoencoder()
trained = gen.fit(model, mnist.train, steps=STEPS, batch_size=256, decode=decode, report_every=50)

# %% [markdown]
# ## Originals and reconstructions
#
# The first row has test images, which the model has not seen in training. The second row has their
# reconstructions from 128 numbers each. They are blurred, and small irregularities of the strokes
# are lost.

# %%
shown = test["x"][:12]
reconstructed = model.reconstruct(trained.state, {"x": shown})
plots.grid(
    np.concatenate([shown, reconstructed]), columns=12, labels=["original", "reconstruction"]
)

# %% [markdown]
# `estimate.evaluate` measures the squared error per pixel over all test images, with its standard
# error over the images. In the output, `exact` says that the value is computed without
# approximation, and `n` is the number of images. Principal component analysis (PCA) is the best
# *linear* autoencoder, so it is a natural yardstick. Here it has as many components as the code has
# numbers.

# %%
training = mnist.decoded("train")


def pca_error(components):
    maps = defects.pca_maps(training["x"][:10_000], test["x"], components, seed=0)
    return estimate.mean(maps.mean(axis=(1, 2)), "exact")


error = estimate.evaluate(model, trained.state, test, jax.random.key(0))["mse"]
print("autoencoder, 128 numbers:", error)
print("PCA, 128 components:", pca_error(128))

# %% [markdown]
# The linear method is far ahead. A code of 128 numbers is so long that a linear map needs little
# more, while the network was trained for seconds, and its ReLU outputs leave some pixels black
# forever. The advantage of a deep network shows when the code is short, as below.
#
# ## Codes as a map
#
# A code has 128 numbers. Two ways lead to a picture of the codes: project them to the plane, or
# train an autoencoder whose code has two numbers only. `latent.plane` projects by principal
# components or by t-SNE, which keeps neighbours together and gives up distances. No label was used
# in training. The colours show the digits afterwards, and most digits have a region of their own.

# %%
labels = test["label"][:MAPPED]
codes = features.encode_all(model, trained.state, {"x": test["x"][:MAPPED]})
points, projection = latent.plane(codes, "tsne")
plots.scatter(points, labels, f"codes of test images, {projection}")

# %% [markdown]
# The second way is a code of two numbers. It keeps too little for good reconstructions, but it can
# be drawn as it is. The loss is the cross-entropy between the pixels and the reconstruction, which
# trains a short code faster than the squared error does.

# %%
flat = Autoencoder(
    encoder=MLP((512, 256, 2), "elu"),
    decoder=MLP((256, 512), "elu"),
    output="sigmoid",
    loss="cross_entropy",
    optimizer=Optimizer(learning_rate=1e-3, schedule="cosine"),
)
flat_trained = gen.fit(
    flat, mnist.train, steps=VARIANT_STEPS, batch_size=256, decode=decode, report_every=50
)

# %%
flat_codes = features.encode_all(flat, flat_trained.state, {"x": test["x"][:MAPPED]})
print(
    "autoencoder, 2 numbers:",
    estimate.evaluate(flat, flat_trained.state, test, jax.random.key(0))["mse"],
)
print("PCA, 2 components:", pca_error(2))
plots.scatter(flat_codes, labels, "codes of two numbers")

# %% [markdown]
# The decoder can be asked for the image of any point of the plane, also of points that are the code
# of no image. The points below have equal numbers of codes between them in each direction. Between
# the regions of two digits the decoder often draws something that is neither, and in the upper left
# corner, where there are no codes, it draws no digits at all. An autoencoder gives no law for its
# codes, so nothing tells where to draw a code from. The variational autoencoder of the next
# notebook does.

# %%
right, up = np.quantile(flat_codes, np.linspace(0.02, 0.98, 12), axis=0).T
points = np.stack(np.meshgrid(right, up[::-1]), axis=-1).reshape(-1, 2)
plots.grid(flat.decode(flat_trained.state, points), columns=12)

# %% [markdown]
# ## Removing noise
#
# A **denoising** autoencoder is given a corrupted image $\tilde x$, and its reconstruction
# $g(f(\tilde x))$ is compared with the clean image $x$. It cannot copy its input, so it must know
# how digits look. Here half of the pixels are set to 0 in training (`noise="masking"`), and the
# loss is the cross-entropy between the pixels and the reconstruction.

# %%
denoising = Autoencoder(
    encoder=MLP((1_000,), "sigmoid"),
    decoder=MLP(()),
    tied=True,  # the decoder's matrix is the transposed matrix of the encoder
    output="sigmoid",
    loss="cross_entropy",
    noise="masking",
    corruption=0.5,
    optimizer=Optimizer(learning_rate=1e-3, schedule="cosine"),
)
denoising_trained = gen.fit(
    denoising, mnist.train, steps=VARIANT_STEPS, batch_size=100, decode=decode, report_every=50
)

# %%
noisy = corrupt(shown, "masking", 0.5, jax.random.key(0))
cleaned = denoising.reconstruct(denoising_trained.state, {"x": noisy})
rows = ["original", "half the pixels", "cleaned"]
plots.grid(np.concatenate([shown, noisy, cleaned]), columns=12, labels=rows)

# %% [markdown]
# ## A sparse code
#
# A code can also be longer than the image if few of its numbers are in use at a time. The
# **k-sparse** autoencoder keeps the 25 largest of 1,000 units and sets the others to 0. Each unit
# that is in use then stands for a stroke or for the rough shape of a digit. `filters` returns the
# weights of each unit as an image: bright pixels excite the unit and dark pixels inhibit it. Many
# units are never among the 25 largest and keep the noise from which their weights started. The
# figure shows the units that are in use most often.

# %%
sparse = Autoencoder(
    encoder=MLP((1_000,), "linear"),
    decoder=MLP(()),
    tied=True,
    output="linear",
    sparsity="top_k",
    active=25,
    optimizer=Optimizer(learning_rate=1e-3, schedule="cosine"),
)
sparse_trained = gen.fit(
    sparse, mnist.train, steps=VARIANT_STEPS, batch_size=100, decode=decode, report_every=50
)

# %%
active = features.encode_all(sparse, sparse_trained.state, {"x": test["x"]}) != 0
usage = active.mean(axis=0)  # the share of the test images for which a unit is in use
print(f"{(usage == 0).sum()} of {len(usage)} units are never in use")
most_used = np.argsort(-usage)[:48]
plots.grid(plots.signed(sparse.filters(sparse_trained.state)[most_used]), columns=12)

# %% [markdown]
# ## The encoder as the start of a classifier
#
# Labels cost work, and images without labels are plentiful. Suppose that only 100 or 1,000 of the
# 55,000 images have a label. `features.label_errors` draws that many images, the same number of
# each digit, trains classifiers (logistic regression and $k$ nearest neighbours, k-NN) on different
# features of them, and measures their errors on the 10,000 test images. The features are the
# pixels, principal components (PCA), the code of the denoising autoencoder, and the code of an
# untrained one. The encoder is also fine-tuned on the labels as a whole. All choices, such as the
# strength of regularisation, are made by cross-validation among the labelled images.

# %%
splits = {"train": training, "test": test}
results = features.label_errors(denoising, [denoising_trained.state], splits, LABELS, draws=1)
plots.by_labels(features.error_lines(results), "labels predicted from features")

# %% [markdown]
# With 100 and with 1,000 labels the lowest error is the fine-tuned encoder's. The line "untrained
# encoder, fine-tuned" belongs to the same network without the training on unlabelled images. The
# gap between the two lines is the gain from images without labels. The error bars are standard
# errors over the test images. Another draw of labelled images would give other errors, and
# `draws=5` averages over five draws.
#
# ## Finding defects
#
# An autoencoder that was trained on faultless images reconstructs such images well. A defect is not
# among its training images, and the reconstruction smooths it away. The squared error of each pixel
# is therefore a **heat map** of defects. The data set `textures` has patches of a woven cloth. Its
# training patches are faultless, and some of its test patches have a scratch, a blot or a piece of
# another cloth, whose pixels are known. The networks are convolutional, because a thread can lie
# anywhere in a patch.

# %%
cloth = data.load("textures")
inspector = Autoencoder(
    shape=cloth.shape,
    encoder=ConvEncoder((16, 32), (64,)),
    decoder=ConvDecoder((), (32, 16)),
    output="sigmoid",
    optimizer=Optimizer(learning_rate=2e-3, schedule="cosine"),
)
inspector_trained = gen.fit(
    inspector,
    cloth.train,
    steps=CLOTH_STEPS,
    batch_size=100,
    decode=cloth.format.decode,
    report_every=50,
)

# %% [markdown]
# A defect covers several neighbouring pixels and noise does not, so the maps are smoothed a little.
# The rows show patches with a defect, the true pixels of the defect, and two heat maps. The second
# one is of PCA, the linear autoencoder.

# %%
patches = cloth.decoded("test")
masks = cloth.test["defects"][..., 0] > 0
maps = {
    "autoencoder": defects.heat_maps(
        inspector, inspector_trained.state, {"x": patches["x"]}, "reconstruction"
    ),
    "PCA": defects.pca_maps(cloth.decoded("train")["x"], patches["x"], 32, seed=0),
}
maps = {name: defects.smoothed(values, 1.0) for name, values in maps.items()}
defective = np.flatnonzero(patches["label"] > 0)
plots.defects(patches["x"], masks, maps, defective[:9])

# %% [markdown]
# How good are the maps? The AUROC of pixels is the probability that a pixel of a defect has a
# larger error than another pixel: 1 is perfect, ½ is chance. The AUROC of images ranks whole
# patches by their largest error.

# %%
for name, values in maps.items():
    print(f"{name}, pixels: {defects.pixel_auroc(values, masks)}")
    largest = values.max(axis=(1, 2))
    print(f"{name}, images: {anomaly.auroc(largest, patches['label'] > 0)}")

# %% [markdown]
# A cloth is so regular that a linear model does even better here. It is worth having such a simple
# method beside every network.
#
# ## Questions to try
#
# 1. How do the reconstructions change if the code has 32 or 8 numbers, as in
#    `Autoencoder(encoder=MLP((784, 256, 8), "relu"))`? Which digits suffer first?
# 2. Train the denoising autoencoder with `noise="gaussian"` or `noise="salt_and_pepper"`, and clean
#    images that have another kind of noise than those in training.
# 3. What do the filters look like with `active=5` and with `active=200`?
# 4. Draw codes of the 128-number autoencoder at random and decode them. Why do the results not look
#    like digits?
# 5. A contractive autoencoder penalises the slope of the encoder (`contraction_weight`). Compare
#    its features with the others by `features.label_errors`.
