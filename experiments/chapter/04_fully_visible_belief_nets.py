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
# # 4. The taxonomy, and fully visible belief nets
#
# A generative model describes a probability distribution $p(x)$ over examples $x$, such as images.
# Models differ in whether they can *evaluate* this distribution, or only *draw* from it:
#
# | density | how it is handled | families in `gen` |
# |---|---|---|
# | **explicit, tractable** | $\log p(x)$ is computed exactly | belief nets, mixtures, HMMs |
# | **explicit, approximate** | by a bound on $\log p(x)$ | VAEs, diffusion models |
# |  | by Markov chains, up to a constant $\log Z$ | Boltzmann machines |
# | **implicit** | there is no $\log p(x)$, only samples | generative adversarial networks |
# | **none** | the model has no distribution of $x$ | autoencoders |
#
# This notebook is about the first row. Its models are trained on the likelihood itself, and two of
# them can be compared by one number that means the same for both. It takes about two minutes.

# %% tags=["parameters"] quick={"STEPS_FVSBN": 20, "STEPS_MADE": 10, "STEPS_NADE": 5, "TEST_IMAGES": 100, "COMPLETIONS": 2}
STEPS_FVSBN = 4_000
STEPS_MADE = 2_000
STEPS_NADE = 1_500
TEST_IMAGES = 1_000
COMPLETIONS = 20

# %%
import jax
import matplotlib.pyplot as plt
import numpy as np

import gen
from gen import data, plots
from gen.models.autoencoder import Autoencoder
from gen.models.autoregressive import FVSBN, MADE, NADE, Autoregressive
from gen.models.boltzmann import RBM
from gen.models.diffusion import GaussianDiffusion
from gen.models.gan import GAN
from gen.models.hmm import HMM
from gen.models.mixture import Mixture
from gen.models.vae import VAE
from gen.optimize import Optimizer
from gen.uses import completion

# %% [markdown]
# Every model of the package states its place in this table, as the attribute `density`.

# %%
for kind in (Autoregressive, Mixture, HMM, VAE, GaussianDiffusion, RBM, GAN, Autoencoder):
    print(f"{kind.family:24s} {kind.density}")

# %% [markdown]
# ## The chain rule
#
# An image has $D$ pixels $x_1, …, x_D$, here $28 × 28 = 784$ of them, each black or white. A table
# with the probability of every image would have $2^{784}$ rows. The chain rule of probability
# replaces the table by $D$ small questions:
#
# $$p(x) = \prod_{i=1}^{D} p(x_i \mid x_1, …, x_{i-1}) = \prod_{i=1}^{D} p(x_i \mid x_{<i}).$$
#
# The rule holds for every distribution and for every order of the pixels. We take the order in
# which one reads: from left to right, and the rows from top to bottom. A *fully visible belief net*
# (FVBN) answers each of the questions by a model with parameters $θ$. Nothing is hidden and nothing
# needs to be integrated, so the log-likelihood is a sum that we compute exactly,
#
# $$\log p_θ(x) = \sum_{i=1}^{D} \log p_θ(x_i \mid x_{<i}),$$
#
# and training maximises it by gradient steps. The networks below differ only in how they compute
# the probability of the next pixel, where $σ(a) = 1 / (1 + e^{-a})$ is the logistic function:
#
# - **FVSBN** (fully visible sigmoid belief net, Frey 1998; see [Gan et al.
#   2015](https://proceedings.mlr.press/v38/gan15.html)): a logistic regression on the earlier
#   pixels, $σ(b_i + \sum_{k<i} W_{ki} x_k)$.
# - **NADE** ([2011](https://proceedings.mlr.press/v15/larochelle11a.html)): one hidden layer for
#   each pixel, all with the same weights, $h_i = σ(c + \sum_{k<i} W_k x_k)$ and $σ(b_i + V_i h_i)$.
# - **MADE** ([2015](https://arxiv.org/abs/1502.03509)): an autoencoder with masked weights, so that
#   output $i$ sees only the inputs before $i$. All outputs take a single pass.
# - **PixelCNN** ([2016](https://arxiv.org/abs/1601.06759)): a convolutional network with masked
#   kernels. Its weights are the same at every place of the image.
#
# ## Train three of them
#
# The data are MNIST digits whose pixels have been made black or white once and for all. Each
# network is the field `net` of the same model, `Autoregressive`. The MADE also has direct
# connections from the earlier pixels to each output, so that it contains the FVSBN.

# %%
mnist = data.load("binarized_mnist")
x_test = mnist.test["x"][:TEST_IMAGES]
print(mnist.train["x"].shape, mnist.train["x"].dtype, "values", np.unique(mnist.train["x"]))
plots.grid(x_test[:20].astype(float), 10)


# %%
def train(name, net, steps, learning_rate):
    """Train a network, and wrap it with the format of its data, for NumPy in and out.

    Args:
      name: the name of the model.
      net: the causal network.
      steps: training steps.
      learning_rate: the first learning rate of Adam.
    """
    optimizer = Optimizer("adam", learning_rate=learning_rate, schedule="cosine")
    model = Autoregressive(net, optimizer=optimizer)
    result = gen.fit(model, mnist.train, steps=steps, batch_size=100)
    return gen.Trained(name, model, result.state, steps, {}, mnist.format)


fvsbn = train("FVSBN", FVSBN(), STEPS_FVSBN, 3e-3)

# %%
made = train("MADE", MADE((1_000,), direct=True), STEPS_MADE, 3e-3)

# %%
nade = train("NADE", NADE(200), STEPS_NADE, 1e-2)

# %% [markdown]
# The weights of the FVSBN can be looked at. Each panel belongs to one pixel, marked in green: red
# pixels make it more likely to be white, blue ones less. Weights of pixels that are hardly ever
# white, at the edges, mean little. All pixels that come later have weight zero. Most of the
# knowledge lies in the neighbours, and this is the idea behind the PixelCNN.

# %%
weight = np.asarray(fvsbn.state.params["W"])[:, :, 0]  # from pixel k to pixel i
figure, axes = plt.subplots(1, 5, figsize=(9, 2), layout="constrained")
for axis, (row, column) in zip(axes, [(6, 14), (10, 9), (14, 14), (18, 18), (22, 12)], strict=True):
    i = 28 * row + column
    picture = np.where(np.arange(784) < i, weight[:, i], 0).reshape(28, 28)
    image = axis.imshow(picture, cmap="RdBu_r", vmin=-1.5, vmax=1.5)
    axis.plot(column, row, "s", color="limegreen", markersize=5)
    axis.set(xticks=[], yticks=[], title=f"pixel ({row}, {column})")
figure.colorbar(image, ax=axes, label="weight")
plt.show()

# %% [markdown]
# ## Exact log-likelihoods, compared
#
# A PixelCNN takes longer to train on a CPU, so we load two with published weights: a PixelCNN, and
# a gated PixelCNN ([2016](https://arxiv.org/abs/1606.05328)). The masked kernels of a PixelCNN
# leave a *blind spot*: some earlier pixels, above to the right, that no layer sees. The gated
# PixelCNN has none.
#
# We compute $-\log p(x)$ of the same test images under all five, in nats. The mean over $n$ images
# has the standard error $s / \sqrt{n}$, where $s$ is the standard deviation over images. Divided by
# $\log 2$ the mean is a number of bits: a coder that uses the model needs this number for an image,
# where the plain image needs 784 bits.

# %%
runs = {
    "FVSBN": fvsbn,
    "MADE": made,
    "NADE": nade,
    "PixelCNN": gen.load("pixelcnn_binarized_mnist"),
    "gated PixelCNN": gen.load("gated_pixelcnn_binarized_mnist"),
}
nll = {name: -run.log_prob(x_test) for name, run in runs.items()}

print(f"{'network':16s}{'parameters':>12s}{'nats':>9s}{'error':>7s}{'bits':>7s}")
for name, run in runs.items():
    parameters = sum(leaf.size for leaf in jax.tree.leaves(run.model.parameters(run.state)))
    mean, error = nll[name].mean(), nll[name].std() / np.sqrt(len(x_test))
    print(f"{name:16s}{parameters:12,d}{mean:9.2f}{error:7.2f}{mean / np.log(2):7.1f}")

# %% [markdown]
# Each of the first three networks was trained for about a minute or less here, and the two
# PixelCNNs were trained to the end. Part of the differences is therefore training time: an FVSBN
# that is trained on the same images for 60 epochs, with weight decay, reaches 97.5 nats
# (`fvsbn_binarized_mnist`).
#
# The error bars of the left panel are large, because some digits are harder than others for *every*
# model. The models saw the same images, so their differences image by image vary far less. The
# right panel has the differences from the best model, with their own standard errors.

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3), layout="constrained")
best = min(nll, key=lambda name: nll[name].mean())
for axis, values in ((left, nll), (right, {name: nll[name] - nll[best] for name in nll})):
    means = [each.mean() for each in values.values()]
    errors = [each.std() / np.sqrt(len(each)) for each in values.values()]
    axis.barh(list(values), means, xerr=errors, capsize=3, color=[f"C{i}" for i in range(5)])
    axis.invert_yaxis()
left.set(xlabel="−log p(x), nats per image", xlim=(60, None))
right.set(xlabel=f"nats above the {best}", yticks=[])
plt.show()

# %% [markdown]
# ## Sample pixel by pixel
#
# To draw an image we follow the chain rule: draw $x_1$, then $x_2$ given $x_1$, and so on. Each
# pixel takes one evaluation of the network, and the pixels cannot be drawn in parallel. The picture
# stops the drawing after a quarter, a half, three quarters and all of the pixels; grey is not drawn
# yet.

# %%
samples = runs["gated PixelCNN"].sample(10, seed=1).reshape(10, 784)
stages = [np.where(np.arange(784) < count, samples, 0.5) for count in (196, 392, 588, 784)]
plots.grid(np.concatenate(stages).reshape(-1, 28, 28, 1), 10, ["¼", "½", "¾", "all pixels"])

# %% [markdown]
# The next figure has ten samples of every network. Better likelihoods come with better strokes: a
# logistic regression cannot tell which strokes belong together.

# %%
rows = np.concatenate([run.sample(10, seed=2) for run in runs.values()])
plots.grid(rows.astype(float), 10, list(runs))

# %% [markdown]
# ## The next pixel
#
# At each place the model states how likely the next pixel is to be white, given the pixels *before*
# it in this image. These probabilities are the second and the third row; bright is likely. Where
# the image surprises the model, it pays: the last row is $-\log_2 p(x_i \mid x_{<i})$, where black
# is 0 bits and the brightest colour 8 bits or more. Its sum over the pixels is the code length of
# the image. The surprises lie where strokes begin and end.


# %%
def next_pixel(run, x):
    """Return p(x_i = 1 | x_<i) at each place, and the surprise in bits."""
    x = x.astype(np.float32)
    log_p = np.asarray(run.model.log_conditionals(run.state, {"x": x}))
    return np.where(x == 1, np.exp(log_p), 1 - np.exp(log_p)), -log_p / np.log(2)


def coloured(values):
    """Return values in [0, 1] in the colours of a heat map, [N, H, W, 3]."""
    return plt.cm.magma(values[..., 0])[..., :3]


x = x_test[[2, 7, 42, 20, 4, 1, 3, 32, 9, 0]]  # one of each digit
p_linear, _ = next_pixel(fvsbn, x)
p_deep, bits = next_pixel(runs["gated PixelCNN"], x)
images = np.concatenate(
    [np.repeat(x, 3, axis=-1), coloured(p_linear), coloured(p_deep), coloured(bits / 8)]
)
print("bits for each image:", bits.sum(axis=(1, 2, 3)).round().astype(int))
plots.grid(images, 10, ["image", "next, FVSBN", "next, gated", "surprise"])

# %% [markdown]
# ## Complete half digits
#
# The order of the pixels makes one question easy: given the upper half, draw the lower half. The
# model simply continues. These are draws from the exact conditional distribution
# $p(\text{lower} \mid \text{upper})$ of the model. The last row is the mean of many draws, the
# probability of each pixel to be white: sharp where the upper half decides, and grey where several
# digits remain possible.

# %%
gated = runs["gated PixelCNN"]
mask = completion.occlusion_mask("lower", mnist.shape, seed=0)
drawn = np.stack([gated.complete(x, mask, seed=seed) for seed in range(COMPLETIONS)])
hidden = np.where(mask == 1, x, 0.5)
rows = np.concatenate([x, hidden, *drawn[:4], drawn.mean(axis=0)])
plots.grid(rows, 10, ["test image", "shown", *["drawn"] * 4, f"mean of {COMPLETIONS}"])

# %% [markdown]
# The likelihood of the true lower half given the upper one is exact, too. It tells how much of the
# image the upper half leaves open.

# %%
log_p = gated.model.conditional_log_prob(gated.state, x.astype(np.float32), mask)
for name, values in (
    ("whole image", bits.sum(axis=(1, 2, 3))),
    ("lower | upper", -log_p / np.log(2)),
):
    print(f"{name:14s} bits: {np.asarray(values).round().astype(int)}")

# %% [markdown]
# ## Questions to try
#
# 1. Replace `FVSBN()` by `FVSBN(raster=False)`, which takes the pixels in a random order. The chain
#    rule holds for every order. Does the likelihood change? Can you still complete a lower half?
# 2. Give MADE two hidden layers, `MADE((500, 500))`, or several orders, `MADE((500,), masks=8,
#    raster=False)`. Which helps more after the same number of steps?
# 3. Build a mask that hides the *upper* half instead. Why do the completions now ignore the shown
#    half? `gen.core.facts(gated.model).completion` says which masks it can take.
# 4. Feed the models a test image upside down. How many bits does it cost more?
# 5. Compress the test images with `zlib` (after `np.packbits`) and compare the bits for each image.
