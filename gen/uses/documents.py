"""Ask a model of documents which words and which group belong to a document.

A document is the set of its words, x in {0, 1}^W. A model of documents may have the group of a
document as G further variables, of which one is 1; its x are then [W + G]. All answers are
conditional probabilities, and need log p(x) only up to a constant: log Z of a Boltzmann machine
cancels.

    odds = word_log_odds(model, state, x)           # of each word, given all the others
    posterior = group_log_prob(model, state, x, 4)  # of four groups, given the words

The machine with the group among its visible units is the one of Larochelle & Bengio 2008,
"Classification using discriminative restricted Boltzmann machines",
https://doi.org/10.1145/1390156.1390224, trained on the joint probability.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from scipy.special import expit, log_expit, logsumexp

from gen import estimate, train
from gen.core import capabilities, require
from gen.estimate import Estimate
from gen.uses.features import encode_all, logistic_regression

WordLogOdds = Callable[[np.ndarray], np.ndarray]
"""Function from documents [N, W] to log p(word | others) − log p(no word | others), [N, W] nats."""

GroupLogProb = Callable[[np.ndarray], np.ndarray]
"""Function from documents [N, W] to log p(group | words), [N, G] nats."""

FIRST = 10
"""Number of words that a list of likely words has."""


def has_conditionals(model: Any) -> bool:
    """Return whether log p(x) of a model is known exactly, up to a constant."""
    return bool({"log_prob", "free_energy"} & {*capabilities(model)})


def word_log_odds(
    model: Any, state: Any, x: np.ndarray, groups: int = 0, block: int = 20
) -> np.ndarray:
    """Return log p(x_d = 1 | the other words) − log p(x_d = 0 | the other words), [N, W] nats.

    It is exact. With x' the document x in which word d is the other way,

        log odds = (2 x_d − 1) (log p(x) − log p(x')).

    If the model has the group among its variables, the group is summed out of both, and the odds
    are conditional on exactly one of the G variables being 1.

    Args:
      model: a model for which `has_conditionals` holds.
      state: a state of it.
      x: documents, [N, W].
      groups: the number G of variables of the model for the group, after the words.
      block: documents at a time, of which each is W + 1 rows of the model.
    """
    return _word_program(model, groups, block)(state, _floats(x))


@train.keep_programs
def _word_program(model: Any, groups: int, block: int) -> Callable[..., np.ndarray]:
    """Return the compiled function from (state, documents) to log odds."""

    def of_document(state, x):
        turned = jnp.abs(x - jnp.eye(x.shape[1]))  # in row d word d is the other way
        log_p = _log_joint(model, state, jnp.concatenate([x, turned]), groups)
        log_p = jax.nn.logsumexp(log_p, axis=1)
        return (2 * x - 1) * (log_p[0] - log_p[1:])[None]

    return estimate.row_program(of_document, block)


def group_log_prob(
    model: Any, state: Any, x: np.ndarray, groups: int, block: int = 500
) -> np.ndarray:
    """Return log p(group | words), [N, G] nats, of a model with the group among its variables.

    It is Bayes' rule, with the probability that the model gives to the words with each group. It is
    conditional on exactly one of the G variables being 1.

    Args:
      model: a model for which `has_conditionals` holds.
      state: a state of it.
      x: documents, [N, W].
      groups: the number G of variables of the model for the group, after the words.
      block: documents at a time.
    """
    return _group_program(model, groups, block)(state, _floats(x))


@train.keep_programs
def _group_program(model: Any, groups: int, block: int) -> Callable[..., np.ndarray]:
    """Return the compiled function from (state, documents) to log probabilities of the groups."""

    def of_document(state, x):
        return jax.nn.log_softmax(_log_joint(model, state, x, groups))

    return estimate.row_program(of_document, block)


def _log_joint(model: Any, state: Any, x: jax.Array, groups: int) -> jax.Array:
    """Return log p(words, group) of each group up to a constant, [N, G]; [N, 1] without groups."""
    count = max(groups, 1)
    rows = jnp.repeat(x, count, axis=0)
    if groups:
        rows = jnp.concatenate([rows, jnp.tile(jnp.eye(groups), (len(x), 1))], axis=1)
    batch = {"x": rows.reshape(-1, *model.shape)}
    exact = "log_prob" in capabilities(model)
    log_p = model.log_prob(state, batch) if exact else -model.free_energy(state, batch)
    return log_p.reshape(len(x), count)


def group_by_codes(
    model: Any, state: Any, x: np.ndarray, group: np.ndarray, inverse_penalty: float = 1.0
) -> GroupLogProb:
    """Return log p(group | words) by logistic regression on the codes of documents.

    It serves a model without the group among its variables, such as a machine of the words alone.

    Args:
      model: a model with `encode`.
      state: a state of it.
      x: training documents, [N, W].
      group: their groups, [N].
      inverse_penalty: the inverse C of the L2 penalty.
    """
    regression = logistic_regression(
        encode_all(model, state, {"x": _floats(x)}), group, inverse_penalty
    )
    return lambda x: regression.predict_log_proba(encode_all(model, state, {"x": _floats(x)}))


def group_by_words(
    x: np.ndarray, group: np.ndarray, inverse_penalty: float = 1.0
) -> dict[str, GroupLogProb]:
    """Return two classifiers of the words themselves, by name, with which to compare a model.

    They are naive Bayes, with Laplace smoothing, and logistic regression.

    Args:
      x: training documents, [N, W].
      group: their groups, [N].
      inverse_penalty: the inverse C of the L2 penalty of logistic regression.
    """
    from sklearn.naive_bayes import BernoulliNB

    regression = logistic_regression(_floats(x), group, inverse_penalty)
    bayes = BernoulliNB().fit(x, group)
    return {
        "naive Bayes": bayes.predict_log_proba,
        "logistic regression": lambda x: regression.predict_log_proba(_floats(x)),
    }


def words_by_words(x: np.ndarray, inverse_penalty: float = 1.0) -> dict[str, WordLogOdds]:
    """Return two models of a word given the others, by name, with which to compare a model.

    - `independent words`: the odds of the word in the training documents, with Laplace smoothing.
    - `logistic regression`: one for each word, on the other words. No joint probability needs to
      have these conditionals, unless the weight of word i for j is the one of j for i: then it is a
      Boltzmann machine without hidden units, trained by pseudo-likelihood.

    Args:
      x: training documents, [N, W].
      inverse_penalty: the inverse C of the L2 penalty.
    """
    frequency = (x.sum(axis=0) + 1) / (len(x) + 2)
    base = np.log(frequency) - np.log1p(-frequency)
    weight, bias = np.zeros((x.shape[1], x.shape[1])), base.copy()
    for d in range(x.shape[1]):
        if 0 < x[:, d].sum() < len(x):
            others = np.delete(_floats(x), d, axis=1)
            regression = logistic_regression(others, x[:, d], inverse_penalty)
            weight[:, d] = np.insert(regression.coef_[0], d, 0.0)
            bias[d] = regression.intercept_[0]
    return {
        "independent words": lambda x: np.broadcast_to(base, x.shape),
        "logistic regression": lambda x: x @ weight + bias,
    }


def word_measures(log_odds: WordLogOdds, x: np.ndarray, seed: int = 0) -> dict[str, Estimate]:
    """Return how well each word of a document follows from the others.

    - `pseudo_nll`: −Σ_d log p(x_d | the other words), in nats per document, the negative log
      pseudo-likelihood of Besag 1975, "Statistical analysis of non-lattice data",
      https://doi.org/10.2307/2987782.
    - `missing_word`: one drawn word is removed from each document, and the words that are not in
      the rest are ranked by p(rest and word). The share of documents in which the removed word is
      among the first `FIRST`.

    Args:
      log_odds: the model of a word given the others.
      x: test documents, [N, W].
      seed: the seed of the removed words.
    """
    odds = log_odds(x)
    nll = -np.where(x == 1, log_expit(odds), log_expit(-odds)).sum(axis=1)

    rows = np.flatnonzero(x.sum(axis=1) > 0)
    rng = np.random.default_rng(seed)
    removed = np.array([rng.choice(np.flatnonzero(x[row])) for row in rows])
    rest = x[rows].copy()
    rest[np.arange(len(rows)), removed] = 0
    # p(rest and word d) ∝ odds of word d given the rest.
    odds = np.where(rest == 1, -np.inf, log_odds(rest))
    rank = (odds > odds[np.arange(len(rows)), removed][:, None]).sum(axis=1)
    return {
        "pseudo_nll": estimate.mean(nll, "exact"),
        "missing_word": estimate.mean(rank < FIRST, "exact", first=FIRST, seed=seed),
    }


def group_measures(log_prob: GroupLogProb, x: np.ndarray, group: np.ndarray) -> dict[str, Estimate]:
    """Return the error rate of the most probable group, and the mean of −log p(group | words).

    Args:
      log_prob: the classifier.
      x: test documents, [N, W].
      group: their groups, [N].
    """
    log_p = log_prob(x)
    return {
        "group_error": estimate.mean(log_p.argmax(axis=1) != group, "exact"),
        "group_nll": estimate.mean(-log_p[np.arange(len(x)), group], "exact"),
    }


def evidence(log_prob: GroupLogProb, x: np.ndarray) -> np.ndarray:
    """Return how much each word of each document speaks for each group, [N, W, G] nats.

    It is the log odds log p(group | words) − log p(another group | words) of the document, less
    the log odds of the document without the word. A word that is not in a document has 0.

    Args:
      log_prob: the classifier.
      x: documents, [N, W].
    """
    row, word = np.nonzero(x)
    without = x[row]
    without[np.arange(len(row)), word] = 0
    whole, rest = (_log_odds(log_prob(documents)) for documents in (x, without))
    values = np.zeros((*x.shape, whole.shape[1]))
    values[row, word] = whole[row] - rest
    return values


def mean_evidence(log_prob: GroupLogProb, x: np.ndarray, least: int = 5) -> np.ndarray:
    """Return the mean of `evidence` over the documents that contain each word, [W, G] nats.

    Args:
      log_prob: the classifier.
      x: documents, [N, W].
      least: number of documents below which a word has NaN.
    """
    count = x.sum(axis=0)[:, None]
    return np.where(
        count >= least, evidence(log_prob, x).sum(axis=0) / np.maximum(count, 1), np.nan
    )


def _log_odds(log_p: np.ndarray) -> np.ndarray:
    """Return log p − log(1 − p) of each group, [N, G] nats, where the p of a row add up to 1."""
    others = [logsumexp(np.delete(log_p, g, axis=1), axis=1) for g in range(log_p.shape[1])]
    return log_p - np.stack(others, axis=1)


def likely_words(
    log_odds: WordLogOdds, x: np.ndarray, first: int = FIRST
) -> list[tuple[int, float]]:
    """Return the words that are not in a document with the highest p(word | the document).

    Args:
      log_odds: the model of a word given the others.
      x: one document, [W]. All words that are not in it count as absent.
      first: the number of words.

    Returns:
      The number of each word and its probability, most probable first.
    """
    p = expit(log_odds(x[None])[0])
    order = [d for d in np.argsort(-p, kind="stable") if not x[d]]
    return [(int(d), float(p[d])) for d in order[:first]]


def document_of(words: tuple[str, ...], vocabulary: tuple[str, ...]) -> np.ndarray:
    """Return the document of some words, [W] uint8. Raise `UserError` for a word not among all."""
    for word in words:
        require(
            word in vocabulary,
            f"the data have no word {word!r}: choose from {', '.join(sorted(vocabulary))}",
        )
    return np.isin(vocabulary, words).astype(np.uint8)


def _floats(x: np.ndarray) -> np.ndarray:
    """Return x as float32."""
    return np.asarray(x, np.float32)
