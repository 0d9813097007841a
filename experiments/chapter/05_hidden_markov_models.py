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
# # 5. Hidden Markov models
#
# A taxi driver moves between three places of a city. First we see the places: this is a Markov
# chain. Then the places are hidden, and all that we see are the fares: this is a hidden Markov
# model. We infer the places from the fares, learn the model from fares alone, and then do the same
# with a century of earthquakes. It takes one to two minutes.

# %% tags=["parameters"] quick={"DAYS": 50, "STEPS_TAXI": 10, "STEPS_EARTHQUAKES": 50, "MOST_STATES": 3}
DAYS = 200
STEPS_TAXI = 100
STEPS_EARTHQUAKES = 400
MOST_STATES = 4

# %%
import itertools
from functools import partial

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from scipy.special import logsumexp
from scipy.stats import norm, poisson

import gen
from gen import data
from gen.models.hmm import HMM, Categorical, Gaussian, Poisson, inference
from gen.models.hmm.emissions import Logits, Normal
from gen.models.hmm.model import Params

# %% [markdown]
# ## The observed chain
#
# Let $z_t$ be the place at which ride $t$ begins. The driver takes the next customer where the last
# one got off, so the next place depends on the present one and on nothing before it. This is the
# *Markov property*,
#
# $$p(z_t \mid z_{t-1}, z_{t-2}, …, z_1) = p(z_t \mid z_{t-1}) = A_{z_{t-1} z_t}.$$
#
# The matrix $A$ has a row for each place, and each row sums to 1. Together with the distribution
# $π$ of the first place it determines the probability of a whole day,
#
# $$p(z_1, …, z_T) = π_{z_1} \prod_{t=2}^{T} A_{z_{t-1} z_t}.$$

# %%
places = ("centre", "suburb", "airport")
colours = ("tab:blue", "tab:orange", "tab:green")
rides = 30  # of a day

initial = np.array([0.5, 0.4, 0.1])
transition = np.array(
    [
        [0.75, 0.15, 0.10],  # from the centre
        [0.20, 0.70, 0.10],  # from the suburb
        [0.50, 0.10, 0.40],  # from the airport
    ]
)


def show_matrices(matrices):
    """Draw transition matrices side by side, with their numbers."""
    size = (2.6 * len(matrices), 2.5)
    _, axes = plt.subplots(1, len(matrices), figsize=size, layout="constrained")
    for axis, (title, matrix) in zip(np.ravel(axes), matrices.items(), strict=True):
        axis.imshow(matrix, cmap="Blues", vmin=0, vmax=1)
        for (i, j), p in np.ndenumerate(matrix):
            axis.text(j, i, f"{p:.2f}", ha="center", va="center", color="white" if p > 0.5 else "k")
        axis.set(xticks=range(3), yticks=range(3), title=title)
        axis.set_xticklabels(places, fontsize=8)
        axis.set_yticklabels(places if axis is np.ravel(axes)[0] else [], fontsize=8)
    plt.show()


show_matrices({"A": transition})

# %% [markdown]
# A hidden Markov model whose observation *is* the state is a Markov chain. So we write the chain as
# an `HMM` with three states and three symbols, where state $k$ always shows symbol $k$. The model
# holds logarithms of probabilities, and $10^{-12}$ takes the place of a probability of 0.


# %%
def log(p):
    """Return log p, with 1e-12 in place of 0."""
    return jnp.log(jnp.maximum(jnp.asarray(p), 1e-12))


chain = HMM(shape=(rides, 1), states=3, emission=Categorical(levels=3))
chain_params = Params(log(initial), log(transition), Logits(log(np.eye(3))[:, None]))
chain_state = chain.init(jax.random.key(0))._replace(params=chain_params)

values = chain.sample(chain_state, jax.random.key(1), DAYS)  # 0, ½, 1 for the three symbols
z = np.rint(2 * np.asarray(values)[:, :, 0]).astype(int)

figure, axis = plt.subplots(figsize=(9, 2.4), layout="constrained")
for day in range(3):
    axis.plot(np.arange(1, rides + 1), z[day] + 0.08 * (day - 1), "o-", markersize=3, linewidth=0.8)
axis.set(yticks=range(3), xlabel="ride", title="three days")
axis.set_yticklabels(places)
plt.show()

# %% [markdown]
# **Learning** an observed chain is counting: the most likely $A$ has the relative frequencies of
# the transitions.
#
# **Many steps.** After $n$ rides the probabilities are the rows of $A^n$. They soon forget where
# the driver began, and every row tends to the *stationary distribution* $π^*$, which a further ride
# does not change: $π^* A = π^*$. It is the left eigenvector of $A$ with the eigenvalue 1. Over a
# long time it is also the share of rides that begin at each place.

# %%
counts = np.zeros((3, 3))
np.add.at(counts, (z[:, :-1], z[:, 1:]), 1)
counted = counts / counts.sum(axis=1, keepdims=True)
powers = {f"A^{n}": np.linalg.matrix_power(transition, n) for n in (2, 5, 20)}
show_matrices({"A": transition, "A, counted": counted, **powers})

eigenvalues, vectors = np.linalg.eig(transition.T)
stationary = np.real(vectors[:, np.argmax(np.real(eigenvalues))])
stationary /= stationary.sum()
print("stationary distribution", stationary.round(3))
print("share of the rides     ", (np.bincount(z.ravel(), minlength=3) / z.size).round(3))
print("eigenvalues            ", np.sort(np.real(eigenvalues))[::-1].round(3))

# %% [markdown]
# The second eigenvalue tells how fast the chain forgets: in the long run the influence of the first
# place shrinks by that factor with each ride, here 0.55.
#
# ## The hidden chain
#
# The driver's notebook has only the fares $x_t$. A fare depends on the place where the ride began,
#
# $$p(x_t \mid z_t = k) = \mathcal N(x_t;\, μ_k, σ_k^2),$$
#
# and the joint distribution of places and fares is
#
# $$p(x, z) = p(z_1)\, p(x_1 \mid z_1) \prod_{t=2}^{T} p(z_t \mid z_{t-1})\, p(x_t \mid z_t).$$
#
# The fares of the places overlap, so a single fare often leaves its place open.

# %%
means, deviations = np.array([10.0, 16.0, 30.0]), np.array([3.0, 4.5, 8.0])

taxi = HMM(shape=(rides, 1), states=3, emission=Gaussian())
emission_params = Normal(
    jnp.asarray(means)[:, None], jnp.log(jnp.asarray(deviations)[:, None] ** 2)
)
taxi_params = Params(log(initial), log(transition), emission_params)
taxi_state = taxi.init(jax.random.key(0))._replace(params=taxi_params)

fares = taxi.emission.sample(emission_params, jax.random.key(2), z.reshape(-1))
fares = np.asarray(fares).reshape(DAYS, rides, 1)

figure, (left, right) = plt.subplots(
    1, 2, figsize=(9, 2.8), layout="constrained", width_ratios=(2, 3)
)
grid = np.linspace(0, 55, 300)
left.hist(fares.ravel(), 60, density=True, color="0.85")
for k in range(3):
    left.plot(
        grid, stationary[k] * norm.pdf(grid, means[k], deviations[k]), colours[k], label=places[k]
    )
left.set(xlabel="fare, €", ylabel="density", xlim=(0, 55))
left.legend(frameon=False)
right.plot(np.arange(1, rides + 1), fares[0, :, 0], color="0.6", linewidth=0.8)
right.scatter(np.arange(1, rides + 1), fares[0, :, 0], c=[colours[k] for k in z[0]], s=20, zorder=2)
right.set(xlabel="ride", ylabel="fare, €", title="one day; the colours are hidden")
plt.show()

# %% [markdown]
# ### Three questions to a hidden Markov model
#
# 1. How likely are the fares? $p(x) = \sum_z p(x, z)$ is a sum over $3^T$ paths. The **forward
#    algorithm** takes $T$ steps of $3 × 3$ operations instead. It carries $p(z_t \mid x_1, …, x_t)$
#    along, the belief about the present place, and multiplies the normalisers.
# 2. Where was the driver at ride $t$? The **forward–backward algorithm** gives
#    $p(z_t \mid x_1, …, x_T)$, also by the fares that came *later*.
# 3. Which path is the most likely as a whole? The **Viterbi algorithm** gives
#    $\arg\max_z p(z \mid x)$.
#
# For six rides there are only 729 paths, so we can enumerate them and check all three answers.

# %%
x = fares[:1, :6]
paths = np.array(list(itertools.product(range(3), repeat=6)))
log_joint = np.log(initial[paths[:, 0]]) + np.log(transition[paths[:, :-1], paths[:, 1:]]).sum(
    axis=1
)
log_joint += norm.logpdf(x[0, :, 0], means[paths], deviations[paths]).sum(axis=1)
posterior = np.exp(log_joint - logsumexp(log_joint))
by_sum = np.stack([posterior @ (paths == k) for k in range(3)], axis=1)

batch = {"x": x}
log_p, beliefs = taxi.log_prob(taxi_state, batch)[0], taxi.encode(taxi_state, batch)[0]
viterbi = taxi.most_probable_path(taxi_state, batch)[0]
print(f"log p(x):   enumeration {logsumexp(log_joint):.5f}, forward algorithm {log_p:.5f}")
print("p(z_3 | x): enumeration", by_sum[2].round(4), "forward-backward", beliefs[2].round(4))
print("best path:  enumeration", paths[log_joint.argmax()], "Viterbi", viterbi)

# %% [markdown]
# A whole day has $3^{30} ≈ 2 · 10^{14}$ paths, and the same three calls answer for it. The upper
# panel is the belief *during* the day (filtering), the lower one the belief *after* the day
# (smoothing): later fares make many of the doubtful rides clear.


# %%
def filtered(x):
    """Return p(z_t | x_1 … x_t) of each step of sequences [N, T, 1], [N, T, 3]."""
    rows = jnp.asarray(x).reshape(-1, 1)
    log_likelihood = taxi.emission.log_prob(emission_params, rows, ~jnp.isnan(rows))
    forward = partial(inference.filter, log(initial), log(transition))
    return np.asarray(jax.vmap(forward)(log_likelihood.reshape(*x.shape[:2], 3)).state)


during, after = filtered(fares), np.asarray(taxi.encode(taxi_state, {"x": fares}))
best = np.asarray(taxi.most_probable_path(taxi_state, {"x": fares}))

figure, axes = plt.subplots(2, 1, figsize=(9, 4), layout="constrained", sharex=True)
for axis, belief, title in zip(
    axes, (during, after), ("during the day", "after the day"), strict=True
):
    axis.stackplot(np.arange(1, rides + 1), belief[0].T, colors=colours, alpha=0.6, labels=places)
    axis.scatter(np.arange(1, rides + 1), np.full(rides, 1.06), c=[colours[k] for k in z[0]], s=16)
    axis.set(title=title, ylim=(0, 1.12), xlim=(0.5, rides + 0.5), ylabel="probability")
axes[1].set(xlabel="ride; the dots above are the true places")
axes[0].legend(loc="upper left", bbox_to_anchor=(1, 1), fontsize=8)
plt.show()

# %%
alone = stationary * norm.pdf(fares, means, deviations)  # Bayes' rule for each fare by itself
guesses = {
    "each fare by itself": alone.argmax(axis=2),
    "filtering": during.argmax(axis=2),
    "smoothing": after.argmax(axis=2),
    "Viterbi": best,
}
for name, guess in guesses.items():
    right_places, right_days = (guess == z).mean(), (guess == z)[:, :10].all(axis=1).mean()
    print(
        f"{name:20s} right places {right_places:6.1%}   first ten rides all right {right_days:6.1%}"
    )

# %% [markdown]
# Few days are right in all 30 rides, so the table counts the days whose first ten are. Smoothing
# maximises the expected number of right places. Viterbi maximises the probability that the whole
# path is right, and its places always form a path that is possible under $A$.
#
# ## Learning from fares alone: Baum–Welch
#
# Now the model is unknown, too. The Baum–Welch algorithm is expectation maximisation (EM). Each
# step infers the places under the present parameters (*E-step*, forward–backward), and then counts
# as if these soft places had been seen (*M-step*):
#
# $$A_{ij} ← \frac{\sum_t p(z_{t-1} = i, z_t = j \mid x)}{\sum_t p(z_{t-1} = i \mid x)}, \qquad
#   μ_k ← \frac{\sum_t p(z_t = k \mid x)\, x_t}{\sum_t p(z_t = k \mid x)}.$$
#
# The likelihood of the data never falls. `loss` is $-\log p(x)$ for each ride.

# %%
model = HMM(shape=(rides, 1), states=3, emission=Gaussian())
result = gen.fit(model, {"x": fares}, steps=STEPS_TAXI, batch_size=DAYS, report_every=1)

# %% [markdown]
# The model cannot know the *names* of the places, so its states come in any order. We sort them by
# their mean fare.

# %%
tables = model.tables(result.state)
order = np.argsort(np.asarray(tables["emission"])[:, 0])
learned = np.asarray(tables["transition"])[np.ix_(order, order)]
spread = (
    np.exp(0.5 * np.asarray(result.state.params.emission.spread)) * result.state.scaling.deviation
)
print("mean fares  true", means, "  learned", np.asarray(tables["emission"])[order, 0].round(2))
print("deviations  true", deviations, "  learned", np.asarray(spread)[order, 0].round(2))
true_nll, learned_nll = (
    -float(m.log_prob(s, {"x": fares}).sum())
    for m, s in ((taxi, taxi_state), (model, result.state))
)
print(f"−log p(all fares)  true parameters {true_nll:.1f}   learned {learned_nll:.1f}")
show_matrices({"true A": transition, "A, places seen": counted, "A, fares alone": learned})

# %% [markdown]
# The learned parameters explain the training fares slightly *better* than the true ones do: maximum
# likelihood fits the chance of this sample, too.
#
# EM finds a maximum near its start, and not always the global one. Eight starts at random
# parameters, in one compiled program, show how much the start matters when there are only five days
# of fares. The dashed line is the likelihood of these fares under the true parameters: all runs end
# below it, since they adapt to few data, and they end at different heights.

# %%
few = fares[:5]
model_random = HMM(shape=(rides, 1), states=3, emission=Gaussian(), start="random")
starts = gen.fit(
    model_random,
    {"x": few},
    steps=STEPS_TAXI,
    batch_size=len(few),
    seed=list(range(8)),
    report_every=1,
    show=False,
)
figure, axis = plt.subplots(figsize=(6, 3), layout="constrained")
axis.plot(starts.history["step"], starts.history["loss"], linewidth=1)
true_loss = -float(taxi.log_prob(taxi_state, {"x": few}).sum()) / few.size
axis.axhline(true_loss, color="black", linestyle="--", linewidth=1)
low = starts.history["loss"].min()
axis.set(xlabel="steps of EM", ylabel="−log p, nats per ride", ylim=(low - 0.02, low + 0.3))
print("at the end:", np.sort(starts.history["loss"][-1]).round(4))
plt.show()

# %% [markdown]
# ## A century of earthquakes
#
# The series has the world's number of earthquakes of magnitude 7 and more in each year from 1900 to
# 2006 (Zucchini & MacDonald 2009, table 1.1). If earthquakes came at one constant rate, the counts
# would be Poisson distributed, with a variance equal to the mean.

# %%
earthquakes = data.load("earthquakes")
count = earthquakes.train["x"][0, :, 0]
years = 1900 + np.arange(len(count))
print(f"{len(count)} years, mean {count.mean():.1f}, variance {count.var(ddof=1):.1f}")

# %% [markdown]
# The variance is far too large, and high years come together. So we let a hidden chain change the
# rate, $p(x_t \mid z_t = k) = \text{Poisson}(λ_k)$, and ask how many states the data support. With
# $K$ states there are $p = K + K (K - 1) + (K - 1) = K^2 + K - 1$ parameters. More states always
# fit the training data better, so a criterion has to penalise them. Two common criteria are
#
# $$\text{AIC} = -2 \log L + 2 p, \qquad \text{BIC} = -2 \log L + p \log T,$$
#
# where $L$ is the maximised likelihood. We take the best of five starts for each $K$.

# %%
batch = {"x": count[None, :, None].astype(np.float32)}
fits = {}
for k in range(1, MOST_STATES + 1):
    quakes = HMM(states=k, shape=earthquakes.shape, emission=Poisson(prior=0.0), smoothing=0.0)
    found = gen.fit(
        quakes,
        earthquakes.train,
        steps=STEPS_EARTHQUAKES,
        batch_size=1,
        seed=list(range(5)),
        decode=earthquakes.format.decode,
        levels=earthquakes.format.levels,
        steps_per_dispatch=50,
        show=False,
    )
    nll = -np.asarray(jax.jit(jax.vmap(quakes.log_prob, (0, None)))(found.state, batch))[:, 0]
    best_start = int(nll.argmin())
    state = jax.tree.map(lambda leaf, i=best_start: leaf[i], found.state)
    fits[k] = float(nll.min()), quakes, state

print("states  parameters  −log L     AIC     BIC   rates")
criteria = {}
for k, (nll, quakes, state) in fits.items():
    p = k**2 + k - 1
    criteria[k] = 2 * nll + 2 * p, 2 * nll + p * np.log(len(count))
    rates = np.sort(np.asarray(quakes.tables(state)["emission"])[:, 0])
    print(f"{k:6d}{p:12d}{nll:8.2f}{criteria[k][0]:8.1f}{criteria[k][1]:8.1f}   {rates.round(1)}")

# %%
figure, axis = plt.subplots(figsize=(5, 2.8), layout="constrained")
axis.plot(list(fits), [2 * nll for nll, *_ in fits.values()], "o-", label="−2 log L")
axis.plot(list(criteria), [aic for aic, _ in criteria.values()], "o-", label="AIC")
axis.plot(list(criteria), [bic for _, bic in criteria.values()], "o-", label="BIC")
axis.set(xlabel="states", xticks=list(fits))
axis.legend(frameon=False)
plt.show()

# %% [markdown]
# Look for the lowest value of each. AIC prefers three states, and BIC, whose penalty for a
# parameter is larger, finds two and three nearly equal. With three states the hidden chain tells
# calm (blue), average (olive) and active (red) years: the colours are the most probable path, and
# the black line is the expected rate given all of the data.

# %%
chosen = min(3, MOST_STATES)
_, quakes, state = fits[chosen]
tables = quakes.tables(state)
rates, moves = np.asarray(tables["emission"])[:, 0], np.asarray(tables["transition"])
smoothed = np.asarray(quakes.encode(state, batch))[0]
path = np.asarray(quakes.most_probable_path(state, batch))[0]
rank = np.argsort(np.argsort(rates))

figure, axis = plt.subplots(figsize=(9, 3), layout="constrained")
shade = np.array(["tab:blue", "tab:olive", "tab:red", "tab:purple", "tab:brown"])[rank[path]]
axis.bar(years, count, color=shade, alpha=0.5, width=1)
axis.plot(years, smoothed @ rates, "k", linewidth=1.2)
axis.set(xlabel="year", ylabel="earthquakes", xlim=(1899, 2007))
plt.show()

# %% [markdown]
# ### Is the model any good?
#
# A generative model can be asked for more data. The left panel shows the distribution of a single
# year under one Poisson rate and under the mixture that the hidden chain implies. The right panel
# is a forecast. The belief about 2006 moves on by $A$ for each further year, so that the forecast
# for the next year knows the present state, and in 50 years it is the long-run distribution of the
# left panel again. The last figure has three centuries drawn from the model and the true one. Would
# you find the true one?

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(9, 2.8), layout="constrained")
n = np.arange(50)
long_run = np.linalg.matrix_power(moves, 500)[0]
left.hist(count, np.arange(-0.5, 50, 3), density=True, color="0.85", label="data")
left.plot(n, poisson.pmf(n, count.mean()), label="one rate")
left.plot(n, poisson.pmf(n[:, None], rates) @ long_run, label=f"{chosen} states")
left.set(xlabel="earthquakes of a year", ylabel="probability")
left.legend(frameon=False, fontsize=8)
for ahead in (1, 5, 50):
    belief = smoothed[-1] @ np.linalg.matrix_power(moves, ahead)
    right.plot(n, poisson.pmf(n[:, None], rates) @ belief, label=f"{2006 + ahead}")
right.set(xlabel="earthquakes of a year", ylabel="probability", title="forecast")
right.legend(frameon=False, fontsize=8)
plt.show()

# %%
drawn = np.asarray(quakes.sample(state, jax.random.key(4), 3))[:, :, 0]
series = [*drawn[:2], count, drawn[2]]
figure, axes = plt.subplots(4, 1, figsize=(9, 4.5), layout="constrained", sharex=True, sharey=True)
for axis, values in zip(axes, series, strict=True):
    axis.plot(years, values, linewidth=1)
axes[-1].set(xlabel="year")
figure.supylabel("earthquakes")
plt.show()

# %% [markdown]
# ## Questions to try
#
# 1. Make the fares of the centre and the suburb more alike, `means = np.array([10.0, 12.0, 30.0])`.
#    How far do the four ways of guessing the places fall? Which one suffers least?
# 2. Let the driver be more restless: set all entries of `transition` to $⅓$. Why are filtering and
#    smoothing then no better than each fare by itself?
# 3. Some fares got lost. Set `fares = np.where(np.arange(rides)[:, None] % 3 == 0, np.nan, fares)`
#    in a cell after the check of the three answers, and run the cells below it: the model sums
#    missing observations out. How well do filtering, smoothing and Viterbi guess the places of
#    these rides, and what does `taxi.complete` draw for them?
# 4. Learn the taxi model with two and with four states. How does BIC choose?
# 5. `gen.load("hmm_regimes")` is a model of a two-dimensional series with full covariances. Compare
#    its tables with the true ones in `gen.data.generated`.
