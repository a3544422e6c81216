"""Cross-validated search for the hyperparameters of a bilevel problem of the user's own."""

import dataclasses
from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array
from sklearn.base import BaseEstimator
from sklearn.utils import check_random_state
from sklearn.utils.validation import _check_sample_weight, check_is_fitted, validate_data

from bilevel.core import Data, Estimate, Loss, Problem
from bilevel.estimators import Auto, hypergradient
from bilevel.sklearn.base import FLOATS
from bilevel.sklearn.losses import make_folds, make_splits
from bilevel.tuning import Record, Result
from bilevel.tuning.tune import tune
from bilevel.utils import PyTree


class BilevelSearchCV(BaseEstimator):
    r"""Cross-validated descent for a :class:`bilevel.Problem`, as ``GridSearchCV`` for a grid.

    All folds are one problem, each with its own copy of the inner params, all with the same
    hyperparameters; the outer loss is the mean over folds of the loss on the held-out rows.

    Parameters
    ----------
    problem : losses ``(params, hyper, (X, y))`` that are means over rows, the penalty beside them.
    hyper : float pytree to start from.
    params : float pytree to start from, or a function of ``(X, y)``.
    predict_fn : ``(params, X) -> predictions``, for :meth:`predict`.
    estimator : of the hypergradient, :class:`bilevel.Auto` by default.
    outer : an optax transformation, ``optax.adam(0.1)`` by default.
    steps : outer steps, one row of ``cv_results_`` each.
    cv : as in scikit-learn.
    refit : solve on all rows with the best hyperparameters.
    random_state : of stochastic solvers, and of the folds where it is given and ``cv`` is a number.

    Attributes
    ----------
    best_params_ : the best hyperparameters; ``best_index_``, their row, ``best_score_``, minus
        their loss.
    cv_results_ : ``params``, ``mean_test_score``, ``rank_test_score`` and what ``tune`` records.
    best_estimator_ : refitted; ``evidence_`` of the last step, ``result_`` of ``tune``.

    Examples
    --------
    >>> import jax.numpy as jnp, bilevel as bl
    >>> from sklearn.datasets import load_diabetes
    >>> def loss(w, log_penalty, batch):
    ...     return jnp.mean((batch[0] @ w - batch[1]) ** 2) / 2
    >>> def inner(w, log_penalty, batch):
    ...     return loss(w, log_penalty, batch) + jnp.exp(log_penalty) * jnp.sum(w**2) / 2
    >>> X, y = load_diabetes(return_X_y=True)
    >>> problem = bl.Problem(inner, loss, quadratic=True)
    >>> search = BilevelSearchCV(problem, 0.0, jnp.zeros(10), steps=3).fit(X, y - y.mean())
    >>> len(search.cv_results_["params"])
    3
    """

    def __init__(
        self,
        problem,
        hyper,
        params,
        *,
        predict_fn=None,
        estimator=None,
        outer=None,
        steps=50,
        cv=None,
        refit=True,
        random_state=None,
    ):
        self.problem = problem
        self.hyper = hyper
        self.params = params
        self.predict_fn = predict_fn
        self.estimator = estimator
        self.outer = outer
        self.steps = steps
        self.cv = cv
        self.refit = refit
        self.random_state = random_state

    def fit(self, X, y, sample_weight=None, groups=None):
        """Descend on the folds; arguments as for :class:`HypergradRidge`, y numeric."""
        checked: Any = validate_data(self, X, y, dtype=FLOATS, y_numeric=True, multi_output=True)
        X, y = checked
        weight = _check_sample_weight(sample_weight, X, dtype=X.dtype, ensure_non_negative=True)
        train, held = make_splits(
            self.cv, X, y, groups, classifier=False, random_state=self.random_state
        )
        folds = make_folds(train, held, weight)
        used = folds.share > 0
        inside, outside = (_unit(side[used] * weight) for side in (folds.train, folds.held))
        seed = check_random_state(self.random_state).randint(2**31)
        estimator = Auto() if self.estimator is None else self.estimator
        outer = optax.adam(0.1) if self.outer is None else self.outer
        # One copy of the params per fold; weights with the rows, so that minibatches share them.
        with jax.enable_x64(X.dtype == np.float64):
            as_floats = partial(jax.tree.map, lambda x: jnp.asarray(x, X.dtype))
            one = self.params(X, y) if callable(self.params) else self.params
            hyper, one = as_floats(self.hyper), as_floats(one)
            stacked = jax.tree.map(lambda x: jnp.stack([x] * len(inside)), one)
            rows = X, np.asarray(y, X.dtype)
            data = Data(inner=as_floats((*rows, inside.T)), outer=as_floats((*rows, outside.T)))
            self.result_ = tune(
                _fold_problem(self.problem),
                estimator,
                outer,
                hyper,
                stacked,
                data,
                steps=self.steps,
                key=jax.random.key(seed),
                hooks=[Record(_record)],
            )
            self._report(self.result_)
            # All rows as one fold, at the best hyperparameters.
            if self.refit:
                whole = as_floats((*rows, _unit(weight[None]).T))
                _, lower = hypergradient(
                    _fold_problem(self.problem),
                    estimator,
                    as_floats(self.best_params_),
                    jax.tree.map(lambda x: x[None], one),
                    Data(inner=whole, outer=whole),
                    jax.random.key(seed),
                )
                fitted = jax.tree.map(lambda x: np.asarray(x[0]), lower.params)
                self.best_estimator_ = FittedParams(fitted, self.best_params_, self.predict_fn)
        return self

    def _report(self, result: Result) -> None:
        """Set the attributes that say what the run did."""
        history = jax.tree.map(np.asarray, result.history)
        value = history["value"]
        loss = np.where(np.isfinite(value), value, np.inf)
        # The first of those that are equal to rounding: what is larger is not known of any hyper.
        rounding = (
            64 * np.finfo(loss.dtype).eps * np.max(np.abs(value[np.isfinite(value)]), initial=0)
        )
        self.best_index_ = int(np.argmax(loss <= np.min(loss) + rounding))
        hyper = history.pop("hyper")
        points = [jax.tree.map(lambda x, t=t: x[t], hyper) for t in range(len(loss))]
        self.cv_results_ = {
            "params": points,
            "mean_test_score": -loss,
            "rank_test_score": 1 + np.argsort(np.argsort(loss, kind="stable")),
            **{name: rows for name, rows in history.items() if name != "value"},
        }
        self.best_params_, self.best_score_ = points[self.best_index_], -loss[self.best_index_]
        self.evidence_ = jax.tree.map(np.asarray, result.estimate.evidence)
        self.n_iter_ = len(loss)

    def predict(self, X):
        """Predict by the refitted params and ``predict_fn``."""
        check_is_fitted(self, "best_estimator_")
        X = np.asarray(validate_data(self, X, dtype=FLOATS, reset=False))
        return self.best_estimator_.predict(X)

    def score(self, X, y):
        """Return minus the outer loss of the refitted params on these rows."""
        check_is_fitted(self, "best_estimator_")
        checked: Any = validate_data(self, X, y, dtype=FLOATS, y_numeric=True, reset=False)
        X, y = checked
        best = self.best_estimator_
        with jax.enable_x64(X.dtype == np.float64):
            return -float(self.problem.outer(best.params_, best.hyper_, (X, y)))


@dataclasses.dataclass(frozen=True)
class FittedParams:
    """Fitted ``params_``, which minimise the inner loss of all rows at ``hyper_``."""

    params_: PyTree
    hyper_: PyTree
    predict_fn: Callable | None = None

    def predict(self, X: np.ndarray) -> np.ndarray:
        """Return ``predict_fn(params_, X)``."""
        if self.predict_fn is None:
            raise ValueError(
                "BilevelSearchCV cannot predict: it does not know how params and X make a "
                "prediction. Pass predict_fn=lambda params, X: ..."
            )
        with jax.enable_x64(X.dtype == np.float64):
            return np.asarray(self.predict_fn(self.params_, X))


def _unit(weights: np.ndarray) -> np.ndarray:
    """Scale weights to mean 1 over all rows, so that minibatches have no bias; ``[F, n]``."""
    return weights / weights.mean(1, keepdims=True)


def _record(hyper: PyTree, params: PyTree, estimate: Estimate) -> dict[str, PyTree]:
    """Record the hyperparameters of every step."""
    return {"hyper": hyper}


@lru_cache(maxsize=64)  # one problem object for each of the user's: a new one compiles again
def _fold_problem(problem: Problem) -> Problem:
    """Make one problem of all folds: batches ``(X, y, weights [n, F])``, params led by F."""

    def weighted(loss: Loss) -> Callable[..., Array]:
        def folds(params: PyTree, hyper: PyTree, batch: tuple[Array, Array, Array]) -> Array:
            X, y, weights = batch

            def fold(params: PyTree, weight: Array) -> Array:
                # A mean over rows, row by row: so a weight can be put on each.
                each = jax.vmap(lambda x, y: loss(params, hyper, (x[None], y[None])))(X, y)
                return jnp.mean(weight * each)

            return jax.vmap(fold, in_axes=(0, 1))(params, weights)

        return folds

    inner, outer = weighted(problem.inner), weighted(problem.outer)
    prox, start = problem.prox, problem.start
    return Problem(
        # The sum, so that each fold has its own step sizes and proximal steps.
        inner=lambda params, hyper, batch: jnp.sum(inner(params, hyper, batch)),
        outer=lambda params, hyper, batch: jnp.mean(outer(params, hyper, batch)),
        start=start and (lambda hyper, params: jax.vmap(lambda w: start(hyper, w))(params)),
        prox=prox and (lambda params, hyper, s: jax.vmap(lambda w: prox(w, hyper, s))(params)),
        quadratic=problem.quadratic,
    )
