"""A scikit-learn estimator around any model.

    search = GridSearchCV(Estimator(VAE(), steps=500), {"model__latent": [2, 5, 10]})
    search.fit(X)  # [n, features]

An estimator has the methods that its model supports: `transform` needs `encode`, `score_samples`
needs `score`, and so on. A method that the model does not support is absent.
"""

from __future__ import annotations

import math
from collections import defaultdict, deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import is_dataclass, replace
from numbers import Integral, Real
from typing import Any

import jax
import numpy as np
from sklearn.base import BaseEstimator
from sklearn.utils import TransformerTags, check_array, check_random_state
from sklearn.utils.metaestimators import available_if
from sklearn.utils.validation import check_is_fitted, validate_data

from gen import blocks, train
from gen.checks import check_data, check_integer, check_labels, check_seeds
from gen.config import stored_fields
from gen.core import UserError, capabilities, facts, require
from gen.levels import as_values


class ArgumentError(UserError, ValueError):
    """A `UserError` of an estimator, which scikit-learn's tools take as the `ValueError` it is.

    `UserError` itself is no `ValueError`: the parser of the command line would catch it.
    """


@contextmanager
def _argument_errors() -> Iterator[None]:
    """Raise `ArgumentError` in place of `UserError`."""
    try:
        yield
    except UserError as error:
        raise ArgumentError(str(error)) from error


def _can(*methods: str) -> Callable[[Estimator], bool]:
    """Return whether the model of an estimator has any of these methods, as a function of it."""
    return lambda estimator: not {*methods}.isdisjoint(capabilities(estimator.model))


def _detects(estimator: Estimator) -> bool:
    """Return whether an estimator tells outliers from inliers."""
    return estimator.contamination is not None and _can("score")(estimator)


class Estimator(BaseEstimator):
    """Train a model on the rows of X and apply it to rows, as scikit-learn's estimators do.

    X is [n, features]. The model gets examples of its own `shape` where that has as many variables
    as X has columns, such as (28, 28, 1) for 784 columns. Otherwise its shape becomes (features,).
    For a model of sequences each row is a whole sequence. A model with levels takes integers as
    the indices of levels, and floats as their values in [0, 1] (`gen.levels`). Columns are taken as
    they are: put `StandardScaler` before an estimator of measurements. y is ignored unless the
    model has classes. It then holds the labels 0 … classes − 1.

    | method | the model's | |
    |---|---|---|
    | `sample` | `sample` | draws, [n_samples, features] |
    | `transform` | `encode` | codes, [n, codes] |
    | `inverse_transform` | `decode` | examples, [n, features] |
    | `score_samples` | −`score` | [n], higher is more normal: log p(x) where it is exact |
    | `score` | −`score` | the mean of `score_samples`, for model selection |
    | `decision_function` | −`score` | `score_samples` − `offset_`, negative for outliers |
    | `predict` | `score` | [n], −1 for outliers and 1 for inliers |

    Where a model's method is random, such as the score of a diffusion model, its draws depend on
    the seed and on the values of the row alone. A row has the same score in any order of rows and
    in any subset of them.

    The free energies of Boltzmann machines share an unknown normaliser. Their `score` therefore
    compares rows and not models, so a search over them needs `scoring` of its own.

    Fields of the model and of its parts are parameters: `model__latent`,
    `model__optimizer__learning_rate`. `set_params` and a grid search replace them.

    Args:
      model: any model of `gen`.
      steps: the number of training steps.
      batch_size: rows of a step; n where X has fewer rows. None takes all rows, as EM does.
      random_state: seed of 32 bits, which is `gen.train.fit`'s, or a RandomState or None, which
        draw a seed.
      levels: 0 if X are measurements, so that a model of a density takes them although they are
        integers or rounded to few values. None infers the number of levels.
      contamination: share of the training rows below the threshold of `predict`, above 0 and at
        most 0.5. With None there is no threshold and no `predict`, and `fit` scores no rows.

    Attributes:
      model_: the model with its shape.
      state_: its trained state.
      seed_: the seed of the run.
      code_shape_: the shape of one code, if the model has `encode`.
      offset_: the threshold of `score_samples` below which rows are outliers.
      n_features_in_: the number of columns of X.
      feature_names_in_: the names of the columns, if X has names.
    """

    def __init__(
        self,
        model: Any,
        *,
        steps: int = 1000,
        batch_size: int | None = 100,
        random_state: int | np.random.RandomState | None = None,
        levels: int | None = None,
        contamination: float | None = 0.1,
    ):
        self.model = model
        self.steps = steps
        self.batch_size = batch_size
        self.random_state = random_state
        self.levels = levels
        self.contamination = contamination

    @_argument_errors()
    def fit(self, X: Any, y: Any = None) -> Estimator:
        """Train the model on the rows of X.

        Args:
          X: examples, [n, features].
          y: labels [n] for a model with classes; otherwise ignored.

        Returns:
          The estimator itself.

        Raises:
          ArgumentError: the model does not take the data, or a parameter is out of its range.
        """
        for of_earlier_fit in ("code_shape_", "offset_"):
            self.__dict__.pop(of_earlier_fit, None)
        share = self.contamination
        if not is_dataclass(self.model) or isinstance(self.model, type):
            raise UserError(f"Estimator: model is {self.model!r}, must be a model, such as VAE()")
        if share is not None and not (isinstance(share, Real) and 0 < share <= 0.5):
            raise UserError(f"Estimator: contamination is {share!r}, must be above 0, at most 0.5")
        X = self._columns(X, reset=True)
        self.model_: Any = _of_size(self.model, X.shape[1])
        self.seed_ = _seed(self.random_state)
        data = self._batch(X, y)
        if self.batch_size is not None:
            check_integer("batch_size", self.batch_size, 1)
        run = train.fit(
            self.model_,
            data,
            steps=self.steps,
            batch_size=len(X) if self.batch_size is None else min(self.batch_size, len(X)),
            seed=self.seed_,
            levels=self.levels,
        )
        self.state_ = deque(run, maxlen=1).pop().carry.state
        values = as_values(data, facts(self.model_).levels)
        if _can("encode")(self):
            row = {name: array[:1] for name, array in values.items()}
            self.code_shape_ = jax.eval_shape(self.model_.encode, self.state_, row).shape[1:]
        if share is not None and _can("score")(self):
            self.offset_ = float(np.percentile(-self._each("score", values), 100 * share))
        return self

    @available_if(_can("sample"))
    @_argument_errors()
    def sample(self, n_samples: int = 1, y: Any = None, random_state: Any = None) -> np.ndarray:
        """Draw from the model.

        Args:
          n_samples: the number of draws.
          y: one label or [n_samples], for a model with classes.
          random_state: the source of the draws, as in the constructor. With None they derive from
            the estimator's own seed, `seed_`, so that equal calls draw equal rows.

        Returns:
          [n_samples, features], floats. Draws of data with levels are values in [0, 1].
        """
        check_is_fitted(self)
        check_integer("n_samples", n_samples, 1)
        condition = {}
        if y is not None:
            require(facts(self.model_).classes > 0, "y is given, and the model has no classes")
            condition["label"] = np.broadcast_to(np.asarray(y), (n_samples,))
            check_labels(self.model_, condition)
        seed = self.seed_ if random_state is None else _seed(random_state)
        x = blocks.draws(self.model_, self.state_, n_samples, seed, condition)
        return x.reshape(n_samples, -1)

    @available_if(_can("encode"))
    def transform(self, X: Any, y: Any = None) -> np.ndarray:
        """Return the codes of the rows of X, [n, codes].

        Args:
          X: examples, [n, features].
          y: labels [n] for a model with classes.
        """
        codes = self._each("encode", self._values(X, y))
        return codes.reshape(len(codes), -1)

    @available_if(_can("encode"))
    def fit_transform(self, X: Any, y: Any = None) -> np.ndarray:
        """Train the model on X and return the codes of X, as `fit` and `transform` do."""
        return self.fit(X, y).transform(X, y)

    @available_if(_can("encode"))
    def get_feature_names_out(self, input_features: Any = None) -> np.ndarray:
        """Return the names of the columns of `transform`: `vae0`, `vae1`, … for a VAE."""
        check_is_fitted(self)
        name = type(self.model_).__name__.lower()
        return np.array([f"{name}{i}" for i in range(math.prod(self.code_shape_))], object)

    @available_if(lambda self: _can("encode")(self) and _can("decode")(self))
    @_argument_errors()
    def inverse_transform(self, X: Any) -> np.ndarray:
        """Return the examples that codes [n, codes] stand for, [n, features]."""
        check_is_fitted(self)
        X, codes = check_array(X), math.prod(self.code_shape_)
        if X.shape[1] != codes:
            raise UserError(f"X has {X.shape[1]} columns, and the codes of the model have {codes}")
        x = self._each("decode", {"z": X.reshape(-1, *self.code_shape_)})
        return x.reshape(len(X), -1)

    @available_if(_can("score"))
    def score_samples(self, X: Any, y: Any = None) -> np.ndarray:
        """Return minus the model's score of each row, [n], higher for more normal rows.

        Args:
          X: examples, [n, features].
          y: labels [n] for a model with classes.
        """
        return -self._each("score", self._values(X, y)).astype(np.float64)

    @available_if(_can("score"))
    def score(self, X: Any, y: Any = None) -> float:
        """Return the mean of `score_samples`, which is the mean of log p(x) where that is exact.

        Args:
          X: examples, [n, features].
          y: labels [n] for a model with classes.
        """
        return float(self.score_samples(X, y).mean())

    @available_if(_detects)
    def decision_function(self, X: Any, y: Any = None) -> np.ndarray:
        """Return `score_samples` − `offset_`, [n], negative for outliers."""
        return self.score_samples(X, y) - self.offset_

    @available_if(_detects)
    def predict(self, X: Any, y: Any = None) -> np.ndarray:
        """Return −1 for outliers and 1 for inliers, [n]."""
        return np.where(self.decision_function(X, y) >= 0, 1, -1)

    @available_if(_detects)
    def fit_predict(self, X: Any, y: Any = None) -> np.ndarray:
        """Train the model on X and return −1 for the outliers of X and 1 for its inliers, [n]."""
        return self.fit(X, y).predict(X, y)

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """Return the parameters, and with `deep` the fields of the model and of its parts."""
        params = super().get_params(deep=False)
        return params | (_fields("model", self.model) if deep else {})

    @_argument_errors()
    def set_params(self, **params: Any) -> Estimator:
        """Set parameters, and fields of the model and of its parts such as `model__latent`."""
        prefix = "model__"
        own = {name: value for name, value in params.items() if not name.startswith(prefix)}
        super().set_params(**own)
        if len(own) < len(params):
            changes = {name.removeprefix(prefix): params[name] for name in params.keys() - own}
            self.model = _with_fields(self.model, changes)
        return self

    def __sklearn_tags__(self) -> Any:
        tags: Any = super().__sklearn_tags__()
        known = facts(self.model)
        tags.estimator_type = "outlier_detector" if _detects(self) else None
        if _can("encode")(self):  # float32 for any type of X
            tags.transformer_tags = TransformerTags(preserves_dtype=[])
        tags.input_tags.allow_nan = known.missing
        tags.target_tags.required = known.classes > 0
        return tags

    def _columns(self, X: Any, *, reset: bool) -> Any:
        """Return X as an array of numbers, after scikit-learn's checks."""
        finite = "allow-nan" if facts(self.model).missing else True
        return validate_data(self, X, reset=reset, ensure_all_finite=finite)

    def _batch(self, X: np.ndarray, y: Any) -> dict[str, np.ndarray]:
        """Return rows as examples of the model, with their labels or lengths."""
        model = self.model_
        batch = {"x": X.reshape(-1, *model.shape)}
        if facts(model).sequences:  # zeros at the end of a row are data and no padding
            batch["length"] = np.full(len(X), model.shape[0], np.int32)
        if facts(model).classes and y is not None:
            batch["label"] = np.asarray(y)
        return batch

    @_argument_errors()
    def _values(self, X: Any, y: Any) -> Mapping[str, np.ndarray]:
        """Return rows as examples of the fitted model, checked and as floats."""
        check_is_fitted(self)
        batch = self._batch(self._columns(X, reset=False), y)
        try:
            check_data(self.model_, batch, levels=0)  # a few rows do not tell the kind of the data
        except UserError as error:
            x = batch["x"]
            if facts(self.model_).unit_interval and (np.nanmin(x) < 0 or np.nanmax(x) > 1):
                raise UserError(
                    f"{error}; in a Pipeline, MinMaxScaler(clip=True) keeps rows beyond the range "
                    "of the training rows in [0, 1]"
                ) from error
            raise
        return as_values(batch, facts(self.model_).levels)

    def _each(self, method: str, batch: Mapping[str, np.ndarray]) -> np.ndarray:
        """Return the result of a method for each row (`gen.blocks.rows`), in blocks of one size."""
        return blocks.rows(
            method, self.model_, self.state_, batch, self.seed_, smallest=blocks.BLOCK
        )


def _of_size(model: Any, size: int) -> Any:
    """Return a model of examples with that many variables, which keep its shape if that fits."""
    return model if math.prod(model.shape) == size else replace(model, shape=(size,))


def _seed(random_state: Any) -> int:
    """Return the seed of 32 bits: an integer is the seed itself, other sources draw it."""
    if not isinstance(random_state, Integral):
        return int(check_random_state(random_state).randint(2**32, dtype=np.uint32))
    check_seeds(int(random_state))
    return int(random_state)


def _field_names(part: Any) -> list[str]:
    """Return the names of the fields of a model or of a part of one, of other values none."""
    is_part = is_dataclass(part) and not isinstance(part, type)
    return stored_fields(type(part)) if is_part else []


def _fields(prefix: str, part: Any) -> dict[str, Any]:
    """Return the fields of a part, and of its own parts, by names `prefix__field`."""
    values = {f"{prefix}__{name}": getattr(part, name) for name in _field_names(part)}
    nested = [_fields(name, value) for name, value in values.items()]
    return {name: value for found in (values, *nested) for name, value in found.items()}


def _with_fields(part: Any, changes: Mapping[str, Any]) -> Any:
    """Return a model, or a part of one, with other values of fields.

    Args:
      part: a frozen dataclass.
      changes: values by field, or by `field__field` for the fields of a part.
    """
    own, nested = {}, defaultdict(dict)
    for path, value in changes.items():
        name, _, rest = path.partition("__")
        if name not in (names := _field_names(part)):
            has = f"has the parameters {', '.join(names)}" if names else "has no parameters"
            raise UserError(f"Invalid parameter {name!r}: {type(part).__name__} {has}")
        if rest:
            nested[name][rest] = value
        else:
            own[name] = value
    for name, inner in nested.items():
        own[name] = _with_fields(own.get(name, getattr(part, name)), inner)
    return replace(part, **own)
