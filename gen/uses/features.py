"""Judge what a model has learned by how well labels are predicted from it.

    estimates = probe(model, state, splits, "test", seed=0)
    errors = label_errors(model, [state], splits, [100, 1_000])

`splits` maps `"train"`, `"validation"` and the evaluated split to decoded examples with labels.
`probe` takes all labels: a linear probe, nearest-neighbour retrieval and fine-tuning.
`label_errors` takes few labels, and compares with raw pixels, PCA and an untrained model.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.typing import ArrayLike

from gen import checks, estimate, nets, train
from gen.core import Batch, capabilities, facts, require
from gen.estimate import Estimate
from gen.nets import MLP
from gen.optimize import Optimizer
from gen.uses import classifier
from gen.uses.classifier import Classifier

INVERSE_PENALTIES = (0.01, 0.1, 1.0, 10.0, 100.0, 1_000.0, 10_000.0)
"""Candidates for C, the inverse of the L2 penalty of logistic regression."""
SELECTION_ROWS = 10_000
"""Largest number of training rows on which C is selected."""
QUERIES = 2_000
"""Largest number of rows that retrieval asks for."""
DATABASE = 20_000
"""Largest number of training rows that retrieval searches."""
NEIGHBOURS = 10
"""Number of nearest neighbours that retrieval returns."""
ROUND_STEPS = 300
"""Smallest number of fine-tuning steps between two validations."""
FINE_TUNING_ROUNDS = 40
"""Number of rounds of fine-tuning on all labels."""
FINE_TUNING_RATE = 2e-3
"""Adam's learning rate at the start of fine-tuning."""
DROPOUT_RATES = ((0.0, 0.0), (0.2, 0.5))
"""Candidates for the dropout rates of inputs and of hidden units in fine-tuning.

The second pair is the one of Srivastava et al. 2014,
https://jmlr.org/papers/v15/srivastava14a.html, which is too strong for codes of few units.
"""

Network = tuple[nn.Module, Any]
"""A network of x and its variables, as `encoder_network` of a model returns them."""

DRAWS = 5
"""Number of draws of the labelled set."""
FOLDS = 5
"""Number of folds of a labelled set in cross-validation."""
ALL_FOLDS = 500
"""Largest labelled set of which every fold is held out once; of a larger set the first one is."""
CHOICE_ROWS = 3_000
"""Largest number of labelled rows on which a layer, or the number of components, is chosen."""
CHOICE_PENALTY = 0.1
"""Inverse penalty of the logistic regression that chooses a layer."""
SCALED_PENALTIES = (1e-4, 1e-3, 1e-2, 0.1, 1.0, 10.0)
"""Candidates for C, the inverse of the L2 penalty, with inputs scaled to a mean variance of 1."""
SCALINGS = ("shared", "each")
"""Candidates for the scaling of the inputs of logistic regression: by one factor for all variables,
or by one for each."""
DAMPING = 0.1
"""Part of the shared scale that is added to the scale of each variable."""
METRICS = ("euclidean", "cosine")
"""Candidates for the distance of nearest neighbours."""
NUMBERS_OF_NEIGHBOURS = (1, 3, 5, 10)
"""Candidates for the number of nearest neighbours that vote."""
COMPONENTS = (10, 20, 50, 100, 200)
"""Candidates for the number of principal components."""
CELLS = 7
"""Largest height and width of a layer's activations; larger ones are averaged over cells."""
TUNING_STEPS = 1_000
"""Smallest number of fine-tuning steps on few labels."""
TUNING_EPOCHS = 20
"""Number of epochs of fine-tuning where they take more steps than `TUNING_STEPS`."""
TUNING_BATCH = 100
"""Labelled rows in a fine-tuning step."""


def probe(
    model: Any,
    state: Any,
    splits: Mapping[str, Batch],
    split: str,
    seed: int,
    rounds: int = FINE_TUNING_ROUNDS,
) -> dict[str, Estimate]:
    """Estimate how well labels are predicted from a model's codes and from the raw variables.

    Hyperparameters are selected on the validation split, so errors on that split are too low.
    Errors on the training split are too low as well, because each row retrieves itself.

    Args:
      model: a model with `encode` and without classes.
      state: a trained state of it.
      splits: decoded examples with labels; the splits train, validation and `split`.
      split: the name of the split to evaluate on.
      seed: the seed of fine-tuning, which shuffles the rows and draws the dropout.
      rounds: the number of rounds of fine-tuning (`tuned_error`).

    Returns:
      Estimates by name. A name that ends in `_raw` is for the raw variables.

      - `probe_error`, `probe_error_raw`: error rate of a linear classifier (`linear_error`).
      - `retrieval_precision`, `retrieval_precision_raw`: precision of the nearest training rows
        (`retrieval_precision`).
      - `tuned_error`: error rate of the model's encoder under a softmax layer, all trained on the
        labels (`tuned_error`). Only for a model whose `encoder_network` is an `MLP`: fine-tuning
        convolutions on all labels takes hours on a CPU, and `label_errors` does it on few.

    Raises:
      UserError: the model has no codes, or is given the labels.
    """
    checks.check_probe(model)
    labels = {name: np.asarray(rows["label"]) for name, rows in splits.items()}
    raw = {name: vectors_of(rows["x"]) for name, rows in splits.items()}
    codes = {name: encode_all(model, state, rows) for name, rows in splits.items()}
    estimates = {}
    for suffix, x in (("", codes), ("_raw", raw)):
        estimates[f"probe_error{suffix}"] = linear_error(x, labels, split)
        estimates[f"retrieval_precision{suffix}"] = retrieval_precision(
            x["train"], labels["train"], x[split], labels[split]
        )
    if "encoder_network" in capabilities(model):
        network = model.encoder_network(state)
        if isinstance(network[0], MLP):
            estimates["tuned_error"] = tuned_error(network, raw, labels, split, seed, rounds)
    return estimates


def encode_all(model: Any, state: Any, data: Mapping[str, Any], block: int = 1_000) -> np.ndarray:
    """Return the codes of all examples as vectors, [N, H].

    Args:
      model: a model with `encode`.
      state: a state of it.
      data: decoded examples, arrays [N, ...] by name.
      block: examples at a time, which bounds the memory.
    """
    encode = _encode_program(model)
    starts = range(0, len(data["x"]), block)
    with jax.default_matmul_precision("highest"):  # a GPU may otherwise round to TF32
        blocks = [
            encode(state, {name: values[i : i + block] for name, values in data.items()})
            for i in starts
        ]
    return np.concatenate([vectors_of(codes) for codes in blocks])


@train.keep_programs
def _encode_program(model: Any) -> Callable[..., jax.Array]:
    """Return the compiled `encode`."""
    return jax.jit(model.encode)


def linear_error(
    x: Mapping[str, np.ndarray], labels: Mapping[str, np.ndarray], split: str
) -> Estimate:
    """Return the error rate of multinomial logistic regression, which minimises

        ½ |V|² + C Σ_n −log softmax(V x_n + b)[label_n]

    over V and b. C is the candidate of `INVERSE_PENALTIES` with the lowest validation error after
    training on at most `SELECTION_ROWS` rows. The classifier is then trained on all rows.

    Args:
      x: inputs [N, D] of the splits train, validation and `split`.
      labels: labels [N] of the same splits.
      split: the name of the split to evaluate on.
    """
    # The intercept takes up the mean, so the minimum stays. L-BFGS gets there in far fewer steps.
    mean = x["train"].mean(axis=0)
    x = {name: rows - mean for name, rows in x.items()}

    def wrong(inverse_penalty, training_rows, name):
        rows = x["train"][training_rows], labels["train"][training_rows]
        classifier = logistic_regression(*rows, inverse_penalty)
        return np.not_equal(classifier.predict(x[name]), labels[name])

    some = _evenly_spaced(len(x["train"]), SELECTION_ROWS)
    best = min(INVERSE_PENALTIES, key=lambda c: wrong(c, some, "validation").mean())
    return estimate.mean(wrong(best, slice(None), split), "exact", C=best)


def logistic_regression(x: np.ndarray, labels: np.ndarray, c: float, max_iter: int = 1_000) -> Any:
    """Return scikit-learn's classifier, fitted to vectors and their labels.

    Args:
      x: vectors, [N, D].
      labels: their labels, [N].
      c: the inverse of the L2 penalty.
      max_iter: the largest number of steps of L-BFGS, after which no warning is given.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return LogisticRegression(C=c, max_iter=max_iter).fit(x, labels)


def retrieval_precision(
    x: np.ndarray, labels: np.ndarray, queries: np.ndarray, query_labels: np.ndarray
) -> Estimate:
    """Return the precision of nearest-neighbour retrieval by cosine similarity.

    The precision of a query is the share of its `NEIGHBOURS` nearest rows of x that have its label.
    Rows that tie for the last places share these places evenly. At most `QUERIES` queries and
    `DATABASE` rows are used, evenly spaced.

    Args:
      x: rows to search, [N, D].
      labels: their labels, [N].
      queries: rows to find neighbours of, [Q, D].
      query_labels: their labels, [Q].
    """
    asked, rows = _evenly_spaced(len(queries), QUERIES), _evenly_spaced(len(x), DATABASE)
    database, database_labels = _directions(x[rows]), labels[rows]
    nearest = min(NEIGHBOURS, len(rows))
    precisions = []
    for block in np.array_split(asked, -(-len(asked) // 500)):
        # Rounded, so that rows which are equally near have equal similarities.
        similarity = np.round(_directions(queries[block]) @ database.T, 6)
        last = np.partition(similarity, -nearest, axis=1)[:, -nearest, None]
        inside, tied = similarity > last, similarity == last
        places = nearest - inside.sum(axis=1, keepdims=True)
        weight = inside + tied * (places / tied.sum(axis=1, keepdims=True))
        relevant = query_labels[block, None] == database_labels
        precisions.append((weight * relevant).sum(axis=1) / nearest)
    settings = {"neighbours": nearest, "rows": len(rows)}
    return estimate.mean(np.concatenate(precisions), "exact", **settings)


def tuned_error(
    network: Network,
    x: Mapping[str, np.ndarray],
    labels: Mapping[str, np.ndarray],
    split: str,
    seed: int,
    rounds: int = FINE_TUNING_ROUNDS,
    batch_size: int = 100,
) -> Estimate:
    """Return the error rate of a `Classifier` that is fine-tuned from a model's encoder.

    Early stopping keeps the state with the lowest validation error, which is taken after every
    round: after an epoch, or after `ROUND_STEPS` steps where an epoch is shorter. The dropout rates
    are the pair of `DROPOUT_RATES` with the lowest validation error. The learning rate falls from
    `FINE_TUNING_RATE` to 0 over all rounds.

    Args:
      network: the encoder, and its variables.
      x: inputs [N, ...] of the splits train, validation and `split`.
      labels: labels [N] of the same splits.
      split: the name of the split to evaluate on.
      seed: the seed that shuffles the rows and draws the dropout.
      rounds: the number of rounds of training.
      batch_size: training rows in a step.
    """
    data = {name: {"x": x[name], "label": labels[name]} for name in x}
    batch_size = min(batch_size, len(x["train"]))
    round_steps = max(len(x["train"]) // batch_size, ROUND_STEPS)
    steps = rounds * round_steps
    encoder, variables = network
    undropped = Classifier(
        shape=x["train"].shape[1:],
        classes=1 + max(int(of_split.max()) for of_split in labels.values()),
        encoder=encoder,
        optimizer=Optimizer("adam", FINE_TUNING_RATE, schedule="cosine", decay_steps=steps),
    )

    def fine_tune(dropout):
        of_inputs, of_units = dropout
        dropped = nets.with_dropout(encoder, of_units)
        model = replace(undropped, encoder=dropped, input_dropout=of_inputs)
        carry = train.begin(model, data["train"], batch_size, seed, validated=True)
        carry = carry._replace(state=jax.jit(with_encoder)(carry.state, variables))
        for progress in train.fit(
            model,
            data["train"],
            steps=steps,
            batch_size=batch_size,
            seed=seed,
            report_every=round_steps,
            start=(0, carry),
            validation=data["validation"],
            validate_every=round_steps,
        ):
            carry = progress.carry
        assert isinstance(carry.best, train.Best)
        return carry.best

    results = {dropout: fine_tune(dropout) for dropout in DROPOUT_RATES}
    dropout = min(results, key=lambda rates: float(results[rates].validation))
    best = results[dropout]
    # The error rate is taken without dropout and needs no key.
    error = undropped.evaluate(best.state, data[split], jax.random.key(0))["error"]
    return replace(error, settings={"steps": int(best.step), "dropout": list(dropout)})


def with_encoder(state: classifier.State, variables: Mapping[str, Any]) -> classifier.State:
    """Return the first state of a classifier with copies of a model's encoder as its network."""
    collections = dict(jax.tree.map(jnp.array, variables))
    params = {**state.params, "encoder": collections.pop("params")}
    return state._replace(params=params, stats=collections)


class Labelled(NamedTuple):
    """Examples with labels."""

    x: np.ndarray  # [N, *shape], decoded, or vectors [N, D]
    labels: np.ndarray  # [N]

    def at(self, rows: np.ndarray) -> Labelled:
        """Return some of the rows."""
        return Labelled(self.x[rows], self.labels[rows])


class Representation(NamedTuple):
    """Vectors that stand for examples, in one or several versions to choose from."""

    versions: tuple[str, ...]
    vectors: Callable[[np.ndarray, Sequence[str]], list[np.ndarray]]
    # maps x [N, *shape] and the names of versions to their vectors, [N, F] each


class Result(NamedTuple):
    """The test errors of one method for one number of labels."""

    features: str  # pixels, PCA, codes, layers, encoder; "untrained ..." of the first state
    classifier: str  # logistic regression, k-NN, fine-tuned
    labels: int
    errors: tuple[float, ...]  # of each draw that differs from the others
    settings: tuple[Mapping[str, Any], ...]  # the choices of each of them
    test_examples: int

    @property
    def method(self) -> str:
        """Return the names of the features and of the classifier."""
        return f"{self.features}, {self.classifier}"

    @property
    def estimate(self) -> Estimate:
        """Return the mean over the draws.

        Its standard error is s / √draws. All draws share the test examples, whose own error over
        examples is not contained. A single draw has no error over draws: its standard error is over
        test examples, √(e (1 − e) / (N − 1)). The setting `stderr_over` says which one it is.
        """
        settings = {"draws": len(self.errors), "labels": self.labels}
        errors = np.asarray(self.errors)
        if len(errors) > 1:
            return estimate.mean(errors, "exact", stderr_over="draws", **settings)
        wrong = np.arange(self.test_examples) < round(errors[0] * self.test_examples)
        return estimate.mean(wrong, "exact", stderr_over="test examples", **settings)


def label_errors(
    model: Any,
    states: Sequence[Any],
    splits: Mapping[str, Batch],
    budgets: Sequence[int],
    *,
    draws: int = DRAWS,
    tune: bool = True,
    report: Callable[[Result], None] = lambda result: None,
) -> list[Result]:
    """Return the test errors of predicted labels, by the features and the number of labels.

    Logistic regression and k nearest neighbours take

    - the `pixels`, or other raw variables;
    - principal components of all training rows, `PCA`;
    - the model's `codes`, if they are features and no noise;
    - one of the model's hidden `layers`, of a diffusion model at one time of its noise;
    - the same of the `untrained` model, the state that `init` returns.

    The model's `encoder` and the untrained one are also fine-tuned under a softmax layer.

    A draw takes labelled rows in equal numbers of each class (`draw_labelled`). Every other label
    stays unknown, also in the validation split. Cross-validation among the labelled rows therefore
    makes every choice: of the layer, the number of components and all hyperparameters.

    Draw i takes the i-th state, the states in turn, and i as the seed of the untrained model and of
    fine-tuning. Draws of all rows differ in the states and seeds alone. Of draws that have all rows
    and the same features only one is kept, so that a result can have fewer draws.

    Args:
      model: a model with features, and without classes.
      states: trained states of it, one for each seed.
      splits: decoded examples with labels, the splits train and test.
      budgets: numbers of labels. A number beyond the training rows takes all of them.
      draws: the number of draws for each number of labels.
      tune: whether encoders are fine-tuned, which takes most of the time.
      report: is called with each result when it is there.

    Raises:
      UserError: the model has no features, or is given the labels, or a number of labels is below
        two for each class.
    """
    check_features(model)
    training, test = (
        Labelled(np.asarray(splits[name]["x"]), np.asarray(splits[name]["label"]))
        for name in ("train", "test")
    )
    budgets = [min(budget, len(training.labels)) for budget in budgets]
    for n in budgets:  # before the first of them is computed, which can take hours
        check_budget(training.labels, n)
    untrained = [jax.jit(model.init)(jax.random.key(draw)) for draw in range(draws)]
    raw, pca = raw_variables(), principal_components(training.x)
    methods: dict[str, list[Representation]] = {"pixels": [raw], "PCA": [pca]}
    for prefix, of_draws in (("", states), ("untrained ", untrained)):
        represented = [features_of(model, state) for state in of_draws]
        for name in represented[0]:
            methods[prefix + name] = [each[name] for each in represented]

    results = []

    def add(features, classifier, n, errors_and_settings):
        errors, settings = zip(*errors_and_settings, strict=True)
        results.append(Result(features, classifier, n, errors, settings, len(test.labels)))
        report(results[-1])

    for n in budgets:
        labelled = [training.at(draw_labelled(training.labels, n, draw)) for draw in range(draws)]
        all_rows = n == len(training.labels)
        for name, representations in methods.items():
            # Equal rows and features give equal errors, of which one is kept.
            different = min(draws, len(representations)) if all_rows else draws
            on_test: list[dict[str, np.ndarray]] = [{} for _ in representations]
            errors = []
            for draw, rows in enumerate(labelled[:different]):
                i = draw % len(representations)
                errors.append(representation_errors(representations[i], rows, test, on_test[i]))
            add(name, "logistic regression", n, [linear for linear, _ in errors])
            add(name, "k-NN", n, [nearest for _, nearest in errors])
        if tune and "encoder_network" in capabilities(model):
            for name, of_draws in (("encoder", states), ("untrained encoder", untrained)):
                encoders = [model.encoder_network(state) for state in of_draws]
                tuned = [
                    few_labels_tuned_error(encoders[draw % len(encoders)], rows, test, draw)
                    for draw, rows in enumerate(labelled)
                ]
                add(name, "fine-tuned", n, tuned)
    return results


def error_lines(results: Sequence[Result]) -> dict[tuple[str, str], list[tuple[int, float, float]]]:
    """Return the lines of the figure of errors by the number of labels, for `gen.plots.by_labels`.

    A line has the names of the features and of the classifier, and points (number of labels, error
    rate, standard error).
    """
    lines: dict[tuple[str, str], list[tuple[int, float, float]]] = {}
    for result in results:
        value, stderr = result.estimate.value, result.estimate.stderr
        points = lines.setdefault((result.features, result.classifier), [])
        points.append((result.labels, value, stderr))
    return lines


def check_features(model: Any) -> None:
    """Raise `UserError` unless a model has features from which labels can be predicted."""
    name, known = type(model).__name__, facts(model)
    require(
        "layers" in capabilities(model) or has_codes(model),
        f"{name} has no hidden layers and no codes, from which labels could be predicted: take a "
        "model with encode, such as a VAE",
    )
    require(
        not known.classes,
        f"{name} is given the labels, which its features can then contain: take a model without "
        "classes",
    )


def has_codes(model: Any) -> bool:
    """Return whether the model encodes examples to features, and not to noise."""
    return "encode" in capabilities(model) and facts(model).codes == "features"


def draw_labelled(labels: np.ndarray, n: int, seed: int) -> np.ndarray:
    """Draw n rows with as equal numbers of each class as the rows allow.

    The classes take turns, in an order that each turn draws anew. A class that has no rows left is
    passed over.

    Args:
      labels: the label of every row, [N].
      n: the number of rows to draw; N draws all.
      seed: the seed of the draw.

    Raises:
      UserError: n is below two for each class.
    """
    check_budget(labels, n)
    position = np.random.default_rng(seed).random(len(labels))
    return np.lexsort((position, rank_in_class(labels, position)))[:n]


def check_budget(labels: np.ndarray, n: int) -> None:
    """Raise `UserError` unless n rows can be drawn, two or more of each class.

    Args:
      labels: the label of every row, [N].
      n: the number of rows to draw.
    """
    classes = len(np.unique(labels))
    require(
        2 * classes <= n <= len(labels),
        f"{n} labels of {classes} classes: take {2 * classes} … {len(labels)}",
    )


def rank_in_class(labels: np.ndarray, position: np.ndarray) -> np.ndarray:
    """Return the rank of each row among the rows of its label, ordered by `position`: [N]."""
    rank = np.empty(len(labels), int)
    for label in np.unique(labels):
        rows = np.flatnonzero(labels == label)
        rank[rows[np.argsort(position[rows], kind="stable")]] = np.arange(len(rows))
    return rank


def folds(labelled: Labelled) -> list[tuple[Labelled, Labelled]]:
    """Return pairs of rows to fit and rows held out, `FOLDS` of them for cross-validation.

    Each fold has every `FOLDS`-th row of each class. Of more than `ALL_FOLDS` rows the first fold
    alone is held out, which has then enough rows.
    """
    rank = rank_in_class(labelled.labels, np.arange(len(labelled.labels)))
    count = FOLDS if len(rank) <= ALL_FOLDS else 1
    held = [rank % FOLDS == fold for fold in range(count)]
    return [(labelled.at(~rows), labelled.at(rows)) for rows in held if rows.any()]


def cross_validated(
    labelled: Labelled, wrong: Callable[[Labelled, Labelled], Sequence[int]]
) -> int:
    """Return the index of the candidate with the fewest errors on held-out rows, the first of them.

    Args:
      labelled: the labelled rows.
      wrong: maps the rows to fit and the rows held out to each candidate's number of errors.
    """
    errors = [wrong(fitted, held) for fitted, held in folds(labelled)]
    return int(np.argmin(np.sum(errors, axis=0)))


def representation_errors(
    representation: Representation,
    labelled: Labelled,
    test: Labelled,
    on_test: dict[str, np.ndarray],
) -> tuple[tuple[float, dict[str, Any]], ...]:
    """Return the test error and the choices of logistic regression, and of nearest neighbours.

    Args:
      representation: the vectors that stand for examples.
      labelled: labelled rows, the classes in turn.
      test: the test examples.
      on_test: the vectors of the test examples by version, to which missing ones are added.
    """
    version = choose(representation, labelled)
    chosen = {"version": version} if len(representation.versions) > 1 else {}
    if version not in on_test:
        on_test[version] = representation.vectors(test.x, [version])[0]
    labelled = labelled._replace(x=representation.vectors(labelled.x, [version])[0])
    test = test._replace(x=on_test[version])
    linear, c = logistic_error(labelled, test)
    nearest, neighbours = nearest_error(labelled, test)
    return (linear, chosen | c), (nearest, chosen | neighbours)


def choose(representation: Representation, labelled: Labelled) -> str:
    """Return the version on which logistic regression has the fewest errors on held-out rows.

    It is fitted with C = `CHOICE_PENALTY` to at most the first `CHOICE_ROWS` rows.
    """
    versions = representation.versions
    if len(versions) == 1:
        return versions[0]
    some = labelled.at(np.arange(min(len(labelled.labels), CHOICE_ROWS)))
    errors = [
        sum(
            logistic_wrong(*fold, "shared", CHOICE_PENALTY).sum()
            for fold in folds(some._replace(x=vectors))
        )
        for vectors in representation.vectors(some.x, versions)
    ]
    return versions[int(np.argmin(errors))]


def logistic_error(labelled: Labelled, test: Labelled) -> tuple[float, dict[str, Any]]:
    """Return the test error of logistic regression, and the scaling and C that were chosen.

    They are chosen on at most the first `SELECTION_ROWS` rows.

    Args:
      labelled: vectors and labels to fit.
      test: vectors and labels to predict.
    """
    candidates = [(scaling, c) for scaling in SCALINGS for c in SCALED_PENALTIES]
    chosen = cross_validated(
        labelled.at(np.arange(min(len(labelled.labels), SELECTION_ROWS))),
        lambda fitted, held: [logistic_wrong(fitted, held, *each).sum() for each in candidates],
    )
    scaling, c = candidates[chosen]
    error = float(logistic_wrong(labelled, test, scaling, c).mean())
    return error, {"scaling": scaling, "C": c}


def logistic_wrong(fitted: Labelled, held: Labelled, scaling: str, c: float) -> np.ndarray:
    """Return where logistic regression errs, [N]; its objective is the one of `linear_error`.

    Args:
      fitted: vectors and labels to fit.
      held: vectors and labels to predict.
      scaling: as in `scaled`.
      c: the inverse penalty.
    """
    x, queries = scaled(fitted.x, held.x, scaling)
    classifier = logistic_regression(x, fitted.labels, c, max_iter=300)  # settles the error
    return classifier.predict(queries) != held.labels


def scaled(x: np.ndarray, queries: np.ndarray, scaling: str) -> tuple[np.ndarray, np.ndarray]:
    """Return both arrays, shifted and scaled so that x has the mean 0 and the mean variance 1.

    Args:
      x: vectors, [N, D].
      queries: vectors, [Q, D].
      scaling: `shared` divides by one number, the root of the mean variance s². `each` divides
        variable j by σ_j + `DAMPING` s before that, so that a variable that hardly varies does not
        become noise of full size.
    """
    mean, deviation = x.mean(axis=0), x.std(axis=0)
    shared = max(float(np.sqrt((deviation**2).mean())), 1e-12)
    divisor = shared if scaling == "shared" else deviation + DAMPING * shared
    x, queries = (x - mean) / divisor, (queries - mean) / divisor
    again = max(float(np.sqrt(x.var(axis=0).mean())), 1e-12)
    return x / again, queries / again


def nearest_error(labelled: Labelled, test: Labelled) -> tuple[float, dict[str, Any]]:
    """Return the test error of k nearest neighbours, and the choices of scaling, distance and k.

    Args:
      labelled: vectors and labels to search.
      test: vectors and labels to predict.
    """
    fewest = min(len(fitted.labels) for fitted, _ in folds(labelled))
    ks = [k for k in NUMBERS_OF_NEIGHBOURS if k <= fewest]
    spaces = [(scaling, metric) for scaling in ("none", "each") for metric in METRICS]
    candidates = [(*space, k) for space in spaces for k in ks]

    def predicted(fitted, x, scaling, metric, ks):
        if scaling == "each":
            rows, x = scaled(fitted.x, x, "each")
            fitted = fitted._replace(x=rows)
        return nearest_labels(fitted, x, metric, ks)

    def wrong(fitted, held):
        return [
            (labels != held.labels).sum()
            for space in spaces
            for labels in predicted(fitted, held.x, *space, ks)
        ]

    scaling, metric, k = candidates[cross_validated(labelled, wrong)]
    (labels,) = predicted(labelled, test.x, scaling, metric, [k])
    error = float((labels != test.labels).mean())
    return error, {"scaling": scaling, "metric": metric, "k": k}


def nearest_labels(
    labelled: Labelled, queries: np.ndarray, metric: str, ks: Sequence[int]
) -> list[np.ndarray]:
    """Return the most frequent label of the k nearest rows, for each k: [Q] each.

    Of labels that are equally frequent the smallest is taken, as scikit-learn does.

    Args:
      labelled: vectors and labels to search.
      queries: vectors, [Q, D].
      metric: the distance, by its name in scikit-learn.
      ks: the numbers of neighbours that vote.
    """
    from sklearn.neighbors import NearestNeighbors

    search = NearestNeighbors(n_neighbors=max(ks), metric=metric, algorithm="brute")
    nearest = search.fit(labelled.x).kneighbors(queries, return_distance=False)
    votes = labelled.labels[nearest][..., None] == np.unique(labelled.labels)  # [Q, k, classes]
    winners = [votes[:, :k].sum(axis=1).argmax(axis=1) for k in ks]
    return [np.unique(labelled.labels)[winner] for winner in winners]


def raw_variables() -> Representation:
    """Return the examples themselves as vectors."""
    return Representation(("raw",), lambda x, versions: [vectors_of(x)])


def principal_components(x: np.ndarray) -> Representation:
    """Return the leading principal components of x, in the numbers of `COMPONENTS`.

    Args:
      x: examples without labels, [N, *shape].
    """
    from sklearn.decomposition import PCA

    rows = vectors_of(x)
    most = min(rows.shape)
    numbers = [n for n in COMPONENTS if n < most] or [most]
    pca = PCA(max(numbers), svd_solver="covariance_eigh").fit(rows)

    def vectors(x, versions):
        components = pca.transform(vectors_of(x))
        return [components[:, : int(version.split()[0])] for version in versions]

    return Representation(tuple(f"{n} components" for n in numbers), vectors)


def features_of(model: Any, state: Any) -> dict[str, Representation]:
    """Return the representations of a model by name: its `codes` and its `layers`.

    The activations of a layer with a height and a width are averaged over cells, of which there are
    at most `CELLS` in either direction.

    Args:
      model: a model with features.
      state: a state of it.
    """
    features = {}
    if has_codes(model):
        codes = Representation(("code",), lambda x, _: [encode_all(model, state, {"x": x})])
        features["codes"] = codes
    if "layers" not in capabilities(model):
        return features
    times = facts(model).noise_times or (None,)
    example: Any = {"x": jax.ShapeDtypeStruct((1, *model.shape), np.float32)}
    count = len(jax.eval_shape(model.layers, state, example))
    versions = {
        f"layer {layer + 1}" + ("" if t is None else f", t = {t}"): (layer, t)
        for t in times
        for layer in range(count)
    }

    def vectors(x, names):
        wanted = [versions[name] for name in names]
        activations = {}
        for t in dict.fromkeys(t for _, t in wanted):
            layers = [layer for layer, time in wanted if time == t]
            of_time = layers_all(model, state, x, layers, t)
            activations |= {(layer, t): h for layer, h in zip(layers, of_time, strict=True)}
        return [activations[each] for each in wanted]

    if len(versions) > 1 or not features:
        features["layers"] = Representation(tuple(versions), vectors)
    return features


def layers_all(
    model: Any,
    state: Any,
    x: np.ndarray,
    layers: Sequence[int],
    t: float | None = None,
    block: int = 250,
) -> list[np.ndarray]:
    """Return the activations of some hidden layers as vectors, [N, F] each, averaged over cells.

    Args:
      model: a model with `layers`.
      state: a state of it.
      x: decoded examples, [N, *shape].
      layers: the indices of the layers.
      t: the time of the noise, for a model with `noise_times`.
      block: examples at a time, which bounds the memory.
    """
    run = _layers_program(model)
    time = () if t is None else (jnp.float32(t),)
    parts = []
    with jax.default_matmul_precision("highest"):  # a GPU may otherwise round to TF32
        for first in range(0, len(x), block):
            rows = np.arange(first, first + block) % len(x)  # one shape, so it compiles once
            activations = run(state, jnp.asarray(x[rows]), *time)
            parts.append([np.asarray(activations[layer]) for layer in layers])
    return [np.concatenate(blocks)[: len(x)] for blocks in zip(*parts, strict=True)]


@train.keep_programs
def _layers_program(model: Any) -> Callable[..., list[jax.Array]]:
    """Return the compiled function from (state, x), and t where there is one, to vectors."""

    def run(state, x, *time):
        return [nets.flatten(averaged(h)) for h in model.layers(state, {"x": x}, *time)]

    return jax.jit(run)


def averaged(h: jax.Array) -> jax.Array:
    """Return activations [B, H, W, C] averaged over at most `CELLS` × `CELLS` cells.

    Activations of another number of axes are returned unchanged.
    """
    if h.ndim != 4:
        return h
    for axis in (1, 2):
        size = h.shape[axis]
        cell = jnp.arange(size) * min(CELLS, size) // size
        weight = jax.nn.one_hot(cell, min(CELLS, size))  # [size, cells]
        weight = weight / weight.sum(axis=0, keepdims=True)
        h = jnp.moveaxis(jnp.tensordot(h, weight, (axis, 0)), -1, axis)
    return h


def few_labels_tuned_error(
    network: Network, labelled: Labelled, test: Labelled, seed: int
) -> tuple[float, dict[str, Any]]:
    """Return the test error of a `Classifier` that is fine-tuned from a network on few labels.

    Training takes `TUNING_EPOCHS` epochs, or `TUNING_STEPS` steps if these are more, without early
    stopping.
    The learning rate falls from `FINE_TUNING_RATE` to 0. Cross-validation chooses the pair of
    `DROPOUT_RATES`, of which a network without dropout takes the rate of the inputs alone.

    Args:
      network: the encoder, and the variables from which it starts.
      labelled: labelled rows.
      test: the test examples.
      seed: the seed that shuffles the rows and draws the dropout.
    """
    encoder, variables = network
    classes = 1 + int(max(labelled.labels.max(), test.labels.max()))

    def wrong(fitted: Labelled, held: Labelled, dropout: tuple[float, float]) -> np.ndarray:
        of_inputs, of_units = dropout
        batch_size = min(TUNING_BATCH, len(fitted.labels))
        steps = max(TUNING_STEPS, TUNING_EPOCHS * len(fitted.labels) // batch_size)
        model = Classifier(
            shape=fitted.x.shape[1:],
            classes=classes,
            encoder=nets.with_dropout(encoder, of_units),
            input_dropout=of_inputs,
            optimizer=Optimizer("adam", FINE_TUNING_RATE, schedule="cosine", decay_steps=steps),
        )
        data = {"x": fitted.x, "label": fitted.labels}
        carry = train.begin(model, data, batch_size, seed)
        carry = carry._replace(state=jax.jit(with_encoder)(carry.state, variables))
        for progress in train.fit(
            model,
            data,
            steps=steps,
            batch_size=batch_size,
            seed=seed,
            report_every=steps,
            start=(0, carry),
        ):
            carry = progress.carry
        return classifier.predict(model, carry.state, held.x).labels != held.labels

    chosen = cross_validated(
        labelled,
        lambda fitted, held: [wrong(fitted, held, dropout).sum() for dropout in DROPOUT_RATES],
    )
    dropout = DROPOUT_RATES[chosen]
    return float(wrong(labelled, test, dropout).mean()), {"dropout": list(dropout)}


def vectors_of(x: ArrayLike, dtype: Any = None) -> np.ndarray:
    """Return examples [N, ...] as vectors, [N, D].

    Args:
      x: the examples.
      dtype: the type of the vectors (default: the type of x).
    """
    x = np.asarray(x, dtype)
    return x.reshape(len(x), -1)


def _evenly_spaced(n: int, most: int) -> np.ndarray:
    """Return the indices of at most `most` of n rows, which may be in the order of their labels."""
    return np.arange(min(n, most)) * n // min(n, most)


def _directions(x: np.ndarray) -> np.ndarray:
    """Return the rows [N, D] scaled to length 1. Rows of zeros stay."""
    length = np.linalg.norm(x, axis=1, keepdims=True)
    return x / np.where(length == 0, 1, length)
