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
# # 6. Boltzmann machines
#
# A Boltzmann machine is a network of units that are 0 or 1 and that influence each other in both
# directions. It has an *energy* for every state of all units, and states of low energy are likely.
# We begin with a machine that is small enough to write down all of its states. Then we restrict its
# connections so that it can learn images, apply it to documents, and monitor a simulated plant with
# it. The notebook takes about two minutes.

# %% tags=["parameters"] quick={"STEPS_PARITY": 100, "STEPS_RBM": 50, "STEPS_NEWS": 100, "STEPS_PLANT": 100, "AIS_TEMPERATURES": 20, "LONG_CHAIN": 60}
STEPS_PARITY = 2_000
STEPS_RBM = 8_000
STEPS_NEWS = 16_000
STEPS_PLANT = 6_000
AIS_TEMPERATURES = 4_000
LONG_CHAIN = 1_000

# %%
import itertools
import warnings
from functools import partial

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from scipy.cluster import hierarchy
from scipy.spatial.distance import squareform

import gen
from gen import data, estimate, plots
from gen.models.boltzmann import RBM, BoltzmannMachine
from gen.models.boltzmann.general import Params
from gen.models.boltzmann.partition import AIS
from gen.optimize import Optimizer
from gen.uses import documents, onset

# %% [markdown]
# ## Energy
#
# The units $x_i \in \{0, 1\}$ have biases $b_i$, and every two of them a weight $U_{ij}$:
#
# $$E(x) = -\sum_i b_i x_i - \sum_{i<j} U_{ij}\, x_i x_j, \qquad p(x) = \frac{e^{-E(x)}}{Z}, \qquad
#   Z = \sum_x e^{-E(x)}.$$
#
# A positive weight lets two units prefer to be on together, a negative one lets them avoid each
# other. The sum $Z$ over all $2^N$ states is the difficulty of the whole family.
#
# Three friends vote yes or no. Ann and Ben like to agree, Ben and Cem to disagree, and Cem tends to
# no. With three units we can list the eight states.

# %%
names = ("Ann", "Ben", "Cem")
weights = np.array([[0, 2.5, 0], [0, 0, -2.0], [0, 0, 0]])
biases = np.array([-1.0, 0.0, -0.5])

votes = BoltzmannMachine(shape=(3,), hidden=0)
votes_state = votes.init(jax.random.key(0))._replace(
    params=Params(jnp.asarray(weights, jnp.float32), jnp.asarray(biases, jnp.float32))
)
states = np.array(list(itertools.product([0.0, 1.0], repeat=3)), np.float32)
labels = ["".join(str(int(bit)) for bit in row) for row in states]

energy = np.asarray(votes.free_energy(votes_state, {"x": states}))  # no hidden units to sum out
log_z = votes.log_partition(votes_state)
exact = np.exp(-energy - log_z)
print("votes   energy   p")
for row, e, p in zip(labels, energy, exact, strict=True):
    print(f"{row:6s}{e + 0.0:8.2f}{p:7.3f}")
print(f"log Z = {log_z:.4f}, probabilities sum to {exact.sum():.4f}")

# %% [markdown]
# ## Gibbs sampling
#
# Given all the others, one unit is a logistic regression on them, and $Z$ cancels. With the
# logistic function $σ(a) = 1 / (1 + e^{-a})$,
#
# $$p(x_i = 1 \mid x_{-i}) = σ\Big(b_i + \sum_{j \ne i} U_{ij} x_j\Big).$$
#
# So we can draw from $p(x)$ without $Z$: draw one unit after another, again and again. After many
# such *sweeps* the states have the distribution $p(x)$. The figure has the frequencies of 5,000
# chains after 0 and after 20 sweeps, beside the exact probabilities. The chains start at 100 random
# states, each of them 50 times, so that the bars of 0 sweeps are not equal.


# %%
def frequencies(x):
    """Return the share of each of the eight states among rows [n, 3]."""
    index = np.asarray(x).astype(int) @ [4, 2, 1]
    return np.bincount(index, minlength=8) / len(index)


figure, axis = plt.subplots(figsize=(7, 2.6), layout="constrained")
axis.bar(np.arange(8) - 0.27, exact, 0.27, label="exact")
for i, sweeps in enumerate((0, 20)):
    drawn = votes.chains(votes_state, jax.random.key(1), 5_000, sweeps)
    axis.bar(np.arange(8) + 0.27 * i, frequencies(drawn), 0.27, label=f"{sweeps} sweeps")
axis.set(
    xticks=range(8), xticklabels=labels, xlabel="votes of Ann, Ben and Cem", ylabel="probability"
)
axis.legend(frameon=False)
plt.show()

# %% [markdown]
# ## Learning
#
# The gradient of the log-likelihood compares two averages. What the units do *together* under the
# data is strengthened, and what they do together when the machine runs freely is weakened:
#
# $$\frac{\partial}{\partial U_{ij}} \mathbb E_\text{data} \log p(x) =
#   \mathbb E_\text{data}[x_i x_j] - \mathbb E_\text{model}[x_i x_j].$$
#
# The first is called the positive phase and the second the negative phase. At the optimum the
# machine has the same pairwise averages as the data. Is that enough? Take three bits with *even
# parity*: 000, 011, 101 and 110, each with probability ¼. Every pair of bits looks like two fair
# coins, so pairwise weights see nothing at all. **Hidden units** help: their states are summed out,
# and they let the visible units interact in groups. One of them is enough here. In the figure,
# green bars are the states of even parity and red ones the states of odd parity. The dashed line is
# ¼.

# %%
even = {"x": states[states.sum(axis=1) % 2 == 0]}
probabilities = {}
for hidden in (0, 1):
    machine = BoltzmannMachine(
        shape=(3,),
        hidden=hidden,
        persistent_chains=500,
        optimizer=Optimizer("adam", learning_rate=0.05, schedule="cosine"),
    )
    result = gen.fit(
        machine, even, steps=STEPS_PARITY, batch_size=4, steps_per_dispatch=50, show=False
    )
    free_energy = np.asarray(machine.free_energy(result.state, {"x": states}))
    probabilities[hidden] = np.exp(-free_energy - machine.log_partition(result.state))

figure, axes = plt.subplots(1, 2, figsize=(7, 2.4), layout="constrained", sharey=True)
for axis, (hidden, p) in zip(axes, probabilities.items(), strict=True):
    axis.bar(labels, p, color=["tab:green" if row.sum() % 2 == 0 else "tab:red" for row in states])
    axis.axhline(0.25, color="black", linewidth=0.8, linestyle="--")
    axis.set(title="one hidden unit" if hidden else "no hidden unit")
axes[0].set(ylabel="probability")
plt.show()

# %% [markdown]
# ## Restricted Boltzmann machines
#
# If hidden units are connected with each other, even the normaliser of $p(h \mid v)$ is a sum over
# $2^H$ states. The *restricted* machine (RBM) keeps only the weights $W$ between visible units $v$
# and hidden units $h$. With their biases $b$ and $c$ its energy is
#
# $$E(v, h) = -b \cdot v - c \cdot h - v^\top W h.$$
#
# Given $v$, the hidden units are independent, and given $h$ the visible ones. A sweep of Gibbs
# sampling is then two matrix products, $h \sim σ(c + W^\top v)$ and $v \sim σ(b + W h)$. The hidden
# units can be summed out by hand, which leaves the *free energy* of an image,
#
# $$F(v) = -\log \sum_h e^{-E(v, h)} = -b \cdot v - \sum_j \log\big(1 + e^{c_j + (W^\top v)_j}\big),
#   \qquad p(v) = e^{-F(v)} / Z.$$
#
# The negative phase needs draws of the model. **Contrastive divergence** (CD-1) starts a chain at
# each training image and takes a single sweep. **Persistent** contrastive divergence (PCD) keeps
# 100 chains that move on from step to step, so that they can wander away from the data. We train
# one machine by each.

# %%
mnist = data.load("binarized_mnist")
machines = {}
for training in ("cd", "pcd"):
    model = RBM(
        hidden=200,
        training=training,
        optimizer=Optimizer("sgd", learning_rate=0.1, schedule="cosine", weight_decay=5e-4),
        ais=AIS(temperatures=AIS_TEMPERATURES, chains=100, warn_above=1e9),
        burn_in=LONG_CHAIN,
    )
    result = gen.fit(
        model, mnist.train, steps=STEPS_RBM, batch_size=100, steps_per_dispatch=10, show=False
    )
    machines[training] = model, result.state

# %% [markdown]
# The weights of a hidden unit are an image: its *filter*, white where the unit wants ink and black
# where it wants none. Some filters are a stroke or an edge at one place. Others are patterns over
# the whole area of the digits.

# %%
model, state = machines["pcd"]
filters = np.asarray(model.filters(state))[:40]
plots.grid(plots.signed(filters), 10)

# %% [markdown]
# Now let the chains run. The chains of the CD machine start at training images, and the chains of
# the PCD machine where training left them. Training by CD-1 only shapes the energy near the data,
# and never looks at states far away. Chains of many sweeps show the difference: under CD they may
# end at images that the training never saw and never made unlikely.

# %%
rows, titles = [], []
for name, (model, state) in machines.items():
    for sweeps in (1, 50, LONG_CHAIN):
        rows.append(np.asarray(model.chains(state, jax.random.key(5), 12, sweeps)))
        titles.append(f"{name}, {sweeps:,} sweep{'s' if sweeps > 1 else ''}")
plots.grid(np.concatenate(rows), 12, titles)

# %% [markdown]
# ### How likely are the test digits?
#
# $\log p(v) = -F(v) - \log Z$, and $\log Z$ is a sum over $2^{200}$ states. Annealed importance
# sampling (AIS) estimates it by chains that slowly cool from a machine without weights, whose $Z$
# is known. Run from both ends it brackets $\log Z$: if the two ends agree, that is a good sign,
# though no proof: both may miss the same states. An estimate of this kind is marked AIS, because it
# is neither exact nor a bound. The package also states its doubts, such as `uncertain` where few
# chains carry most of the weight.

# %%
for name, (model, state) in machines.items():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the doubts are printed
        found = estimate.evaluate(model, state, {"x": mnist.test["x"][:1_000]}, jax.random.key(0))
    low, high = found["log_z_forward"], found["log_z_reverse"]
    print(f"{name:4s} −log p(v) {found['nll']}")
    print(f"     log Z, from both ends: {low.value:.2f} ± {low.stderr:.2f}", end=", ")
    print(f"{high.value:.2f} ± {high.stderr:.2f}; doubts: {found['nll'].settings.get('doubts')}")

# %% [markdown]
# The mean of $-\log p(v)$ over the test digits is 16 nats lower for PCD than for CD. The package
# doubts the $\log Z$ of PCD, whose standard error is larger, but this error is only a quarter of a
# nat.
#
# ## Documents: which words belong together?
#
# 16,242 postings to newsgroups are stored as sets of words, out of a vocabulary of 100: unit $i$ is
# on if the posting has word $i$. An RBM with 50 hidden units learns their joint distribution. We
# load its published weights. The hidden units are topics: here are the words with the largest
# weights for some of them.

# %%
news = data.load("news")
vocabulary = news.format.words
run = gen.load("rbm_news")
filters = np.asarray(run.model.filters(run.state))  # [hidden, words]
strongest = np.argsort(-np.sort(filters, axis=1)[:, -4:].sum(axis=1))
for unit in strongest[:8]:
    print(", ".join(vocabulary[word] for word in np.argsort(-filters[unit])[:6]))

# %% [markdown]
# The machine answers questions about words exactly, because $Z$ cancels in a conditional
# probability, $p(\text{word } i \mid \text{the other words})$. Some words are frequent everywhere.
# So for a few given words we ask which other words become *more* likely, by the factor by which the
# odds of a word rise above its odds in an empty posting. All words that are not given count as
# absent.

# %%
log_odds = partial(documents.word_log_odds, run.model, run.state)
empty = log_odds(np.zeros((1, 100)))[0]
for given in (
    ("space",),
    ("god",),
    ("gun",),
    ("windows", "files"),
    ("team", "season"),
    ("disease",),
):
    x = documents.document_of(given, vocabulary)
    rise = np.where(x == 1, -np.inf, log_odds(x[None])[0] - empty)
    first = np.argsort(-rise)[:6]
    answer = ", ".join(f"{vocabulary[word]} ×{np.exp(rise[word]):.1f}" for word in first)
    print(f"{' + '.join(given):16s} {answer}")

# %% [markdown]
# Medical words are rare in these data. The 50 hidden units have learned no topic for them, and the
# answer for `disease` is hardly better than a guess.
#
# The next figure answers the same for each pair of the 60 most frequent words, as a matrix: it has
# the rise of the log odds of word $j$ in a posting that has only word $i$, averaged over both
# directions. Sorted by hierarchical clustering, the matrix falls into blocks: the groups of words
# that the machine has found without any label.

# %%
association = log_odds(np.eye(100)) - empty  # [given word, other word]
association = (association + association.T) / 2
frequent = np.sort(np.argsort(-news.train["x"].mean(axis=0))[:60])
part = association[np.ix_(frequent, frequent)]
distance = part[~np.eye(60, dtype=bool)].max() - part
np.fill_diagonal(distance, 0)
tree = hierarchy.linkage(squareform(distance, checks=False), "average", optimal_ordering=True)
order = hierarchy.leaves_list(tree)

figure, axis = plt.subplots(figsize=(8.4, 7.4), layout="constrained")
shown = part[np.ix_(order, order)]
np.fill_diagonal(shown, np.nan)
image = axis.imshow(shown, cmap="RdBu_r", vmin=-3, vmax=3)
words = [vocabulary[frequent[i]] for i in order]
axis.set_xticks(range(60), words, rotation=90, fontsize=6)
axis.set_yticks(range(60), words, fontsize=6)
figure.colorbar(image, label="nats that one word adds to the log odds of the other", shrink=0.6)
plt.show()

# %% [markdown]
# ### Words and groups
#
# The postings come from four groups of newsgroups: `comp` (computers), `rec` (leisure: cars and
# sports), `sci` (science) and `talk` (politics and religion). If the group is one more variable of
# the machine, as four units of which one is on, the same machine classifies:
# $p(\text{group} \mid \text{words})$ is Bayes' rule with the probability that the machine gives to
# the words with each group, and $Z$ cancels again ([Larochelle & Bengio
# 2008](https://doi.org/10.1145/1390156.1390224)).

# %%
with_groups = data.load("news_groups")
groups = with_groups.format.labels
joint = RBM(
    shape=with_groups.shape,
    hidden=50,
    sweeps=5,
    burn_in=200,
    optimizer=Optimizer("sgd", learning_rate=0.05, schedule="cosine", weight_decay=1e-3),
)
result = gen.fit(
    joint,
    with_groups.train,
    steps=STEPS_NEWS,
    batch_size=100,
    steps_per_dispatch=50,
    show=False,
)

# %%
x_words, group = news.test["x"], news.test["label"]
by_machine = partial(documents.group_log_prob, joint, result.state, groups=4)
classifiers = {"Boltzmann machine": by_machine}
classifiers |= documents.group_by_words(news.train["x"], news.train["label"])
for name, classifier in classifiers.items():
    print(f"{name:20s} error {documents.group_measures(classifier, x_words, group)['group_error']}")

evidence = documents.mean_evidence(by_machine, x_words)
print("\nwords that speak most for each group")
for g, name in enumerate(groups):
    ranked = np.argsort(-np.nan_to_num(evidence[:, g], nan=-np.inf))
    print(f"{name:6s}", ", ".join(vocabulary[word] for word in ranked[:9]))

# %% [markdown]
# The errors of the three classifiers agree within about their standard errors, although the machine
# was not trained to classify. The other direction is sampling with the group held fixed. These are
# short postings that the machine makes up for each group.

# %%
mask = np.concatenate([np.zeros(100), np.ones(4)])
x = np.concatenate([np.zeros((12, 100)), np.repeat(np.eye(4), 3, axis=0)], axis=1)
made_up = np.asarray(
    joint.complete(result.state, jnp.asarray(x), jnp.asarray(mask), jax.random.key(3))
)
for row in made_up:
    print(
        f"{groups[row[100:].argmax()]:6s}",
        " ".join(vocabulary[word] for word in np.flatnonzero(row[:100])),
    )

# %% [markdown]
# ## Anomalies in a large system
#
# A machine that has seen only normal states of a plant gives a high free energy to states that do
# not fit together. It needs no example of a fault. The data are drawn from a small simulated plant:
# six sensors that depend on two hidden causes and on three regimes (idle, load, surge). In the test
# series, a sensor starts to *drift*, or it is *decoupled*: it goes on with plausible values of its
# own that no longer agree with the other sensors. No sensor looks strange by itself in that case.
#
# The units are binary, so each sensor becomes a row of lamps: lamp $k$ is on if the value is above
# the $k$-th of 11 thresholds, which are quantiles of the training data.

# %%
plant = data.load("sensors")
training = plant.train["x"]
thresholds = np.quantile(training.reshape(-1, 6), np.linspace(0, 1, 13)[1:-1], axis=0)


def lamps(series):
    """Return the lamps of series [N, T, 6], [N, T, 6 · 11]."""
    lit = series[:, :, :, None] > thresholds.T[None, None]
    return lit.reshape(*series.shape[:2], -1).astype(np.uint8)


x_train = lamps(training).reshape(-1, 66)
monitor = RBM(
    shape=(66,),
    hidden=100,
    sweeps=2,
    optimizer=Optimizer("sgd", learning_rate=0.1, schedule="cosine"),
)
result = gen.fit(
    monitor, {"x": x_train}, steps=STEPS_PLANT, batch_size=100, steps_per_dispatch=50, show=False
)

# %% [markdown]
# The score of a moment is the mean free energy of the last 20 steps. Half of the normal test series
# set the threshold, such that a series without a fault raises any alarm with a probability of at
# most 5 %. Two control charts serve as a comparison: the largest deviation of a single sensor, and
# the distance of all six from their mean, with their covariance.
#
# The table has the share of the 50 series of each fault whose first alarm comes at the onset or
# later (`found`), the mean number of steps from the onset to this alarm in the series that are
# found (`delay`), and the share of the other 100 normal series with an alarm (`false`). The 5 %
# hold on average over many choices of the half that sets the threshold. With one choice the share
# can be somewhat larger.

# %%
x_test, label, begins = plant.test["x"], plant.test["label"], plant.test["onset"]
energies = np.asarray(monitor.free_energy(result.state, {"x": lamps(x_test).reshape(-1, 66) * 1.0}))
scores = {"Boltzmann machine": energies.reshape(x_test.shape[:2])}
scores |= onset.step_baselines(training, x_test)
normal = np.flatnonzero(label == 0)
held_out = normal[::2]

print(f"{'score':24s}{'fault':12s}{'found':>8s}{'delay':>8s}{'false':>8s}")
for name, values in scores.items():
    mean = onset.trailing_mean(values, 20)
    false = (onset.first_alarms(mean[normal[1::2]], mean[held_out], 0.05) < 200).mean()
    for fault, title in enumerate(plant.format.labels[1:], 1):
        rows = np.flatnonzero(label == fault)
        alarms = onset.first_alarms(mean[rows], mean[held_out], 0.05)
        measured = onset.detections(alarms, begins[rows], 200)
        delay = f"{measured['delay'].value:8.1f}" if "delay" in measured else f"{'–':>8s}"
        print(f"{name:24s}{title:12s}{measured['found'].value:8.0%}{delay}{false:8.0%}")

# %% [markdown]
# The chart of single sensors finds 8 % of the decoupled sensors and raises 9 % false alarms: each
# value is plausible by itself. The machine notices the missing agreement sooner than the chart of
# all sensors does: that chart has one covariance for all regimes, while the hidden units of the
# machine can tell the regimes apart. All three take long to notice a slow drift.
#
# The last figure follows one series with a decoupled sensor. Both scores rise after the onset, and
# the score of the machine stays high.

# %%
example = np.flatnonzero(label == 2)[2]
figure, axes = plt.subplots(2, 1, figsize=(9, 4), layout="constrained", sharex=True)
axes[0].plot(x_test[example], linewidth=0.8, color="0.7")
axes[0].plot(x_test[example][:, 4], linewidth=1, color="tab:red")  # the decoupled sensor
axes[0].set(title="six sensors; the red one is decoupled after the dashed line")
for name in ("Boltzmann machine", "all sensors together"):
    values = onset.trailing_mean(scores[name], 20)
    usual, spread = values[held_out][:, 20:].mean(), values[held_out][:, 20:].std()
    axes[1].plot(
        np.where(np.isfinite(values[example]), (values[example] - usual) / spread, np.nan),
        label=name,
    )
axes[1].set(xlabel="step", ylabel="standard deviations", title="score above its usual value")
axes[1].legend(frameon=False, loc="upper left")
for axis in axes:
    axis.axvline(begins[example], color="black", linestyle="--", linewidth=1)
plt.show()

# %% [markdown]
# ## Questions to try
#
# 1. Change the weight between Ann and Ben to −2.5 and predict the three most likely votes first.
# 2. How many hidden units do you need for the parity of *four* bits?
# 3. Train the RBM by CD with `sweeps=10` in place of 1. How much closer do its chains come to the
#    chains of PCD, and what does it cost?
# 4. Give `AIS_TEMPERATURES` the value 100 and then 10,000. How does the bracket of $\log Z$ change?
# 5. Ask for the words that follow from `("space", "god")`. Does the machine mix the topics?
# 6. The threshold allows 5 % false alarms for a whole *series*. What changes if the mean is taken
#    over 5 or over 50 steps?
