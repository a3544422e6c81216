r"""Logistic regression, of two classes or many, with log-penalties on its weights.

    inner(w, h) = mean_i loss(x_i, y_i; w) + 1/2 sum_jc exp(h_jc) w_jc^2     training rows
    outer(w)    = mean_i loss(x_i, y_i; w)                                   validation rows

The loss of a row is minus its log-likelihood. Columns are standardised on the training rows; the
intercept is not penalised.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.flatten_util import ravel_pytree
from scipy.optimize import minimize
from scipy.special import logsumexp
from sklearn.linear_model import LogisticRegression, LogisticRegressionCV
from threadpoolctl import threadpool_limits

import bilevel as bl
from tasks.base import Metrics, PyTree, Task
from tasks.datasets.design import Design, prepare
from tasks.datasets.splits import set_aside
from tasks.datasets.tabular import TableChoice, Tabular
from tasks.judges.pictures import penalties
from tasks.models import LinearCore, make_model
from tasks.parts.losses import Model, holdout, problem
from tasks.parts.moments import in_float64
from tasks.parts.penalty import Groups, Penalty, describe
from tasks.parts.stability import stability

DEFAULT = Tabular("breast_cancer", "kfold", degree=1)
GRID = np.logspace(-4, 2, 13)  # penalties of the mean loss; columns have variance 1
# L-BFGS multiplies many small matrices: on a busy machine BLAS threads made it 70 times slower.
one_thread = threadpool_limits.wrap(limits=1)


def two_classes(params: PyTree, X: Array, y: Array) -> Array:
    """Return minus the log-likelihood of each row; ``y`` is 0 or 1, weights are ``[d]``."""
    score = X @ params["weights"] + params["intercept"]
    return jax.nn.softplus(score) - y * score


def many_classes(params: PyTree, X: Array, y: Array) -> Array:
    """Return minus the log-likelihood of each row; ``y`` in ``0 .. C-1``, weights ``[d, C]``."""
    scores = X @ params["weights"] + params["intercept"]
    return -jnp.take_along_axis(jax.nn.log_softmax(scores), y[:, None], axis=-1)[:, 0]


@dataclass(frozen=True)
class Shrinkage:
    """``1/2 sum_jc strength_jc w_jc^2``, ``()``.

    ``layout`` is the shape that strengths are given before they broadcast against the weights,
    ``[d]`` or ``[d, C]``.
    """

    strengths: Penalty
    layout: tuple[int, ...]

    def __call__(self, params: PyTree, hyper: Array) -> Array:
        strengths = self.strengths(hyper).reshape(self.layout)
        return jnp.sum(strengths * params["weights"] ** 2) / 2


def logistic(
    table: TableChoice = DEFAULT,
    penalty: Groups = "per_feature",
    *,
    second: float = 0.0,
    start: float = 0.01,
) -> Task:
    """Make the task of tuning penalties of a logistic regression.

    Parameters
    ----------
    table : as for :func:`tasks.ridge.ridge`; labels may be text; parts and folds have their share
        of each class.
    penalty : as for :meth:`tasks.parts.penalty.Penalty.from_columns`, shared by all classes; or,
        for more than two classes, ``"per_class"`` or ``"per_weight"`` (every column and class its
        own).
    second, start : as for :func:`tasks.ridge.ridge`.

    Raises
    ------
    ValueError : bad data, an unknown penalty or outer loss, shares that leave a part empty.

    Examples
    --------
    >>> from tasks.logistic import logistic
    >>> logistic("wine", penalty="per_weight").hyper.shape
    (39,)
    """
    if not start > 0:
        raise ValueError(f"start={start!r} must be a positive penalty.")
    chosen = DEFAULT.changed(table)
    design = prepare(chosen, "classification")
    shrinkage = _shrinkage(penalty, design)
    loss = two_classes if len(design.table.classes) == 2 else many_classes
    model = Model(loss, shrinkage)
    inner, held = design.batches(design.y)
    held, aside = set_aside(held, second, design.folds)
    hyper = jnp.full(shrinkage.strengths.shape, np.log(start), jnp.result_type(float))
    fit = partial(_fit, design, model)
    # The loss curves at most 1/4 along a row and 1 for the intercept, for many classes 1/2.
    bound = 0.25 if loss is two_classes else 0.5
    task, data = problem(model, design.folds), bl.Data(inner=_cast(inner), outer=_cast(held))
    held_out = (task, data) if design.folds is None else None
    names = shrinkage.strengths.names
    return Task(
        name=f"logistic {chosen.data}",
        problem=task,
        data=data,
        hyper=hyper,
        params=_zeros(design, design.folds),
        metrics=lambda hyper, _: _score(fit(hyper)(design.test[0]), design),
        baselines=lambda: _baselines(design, start),
        describe=partial(describe, shrinkage.strengths),
        exact=None,
        second=None if aside is None else _cast(aside),
        notes=design.notes()
        | stability(_with_intercept(inner), start, bound)
        | {"classes": list(design.table.classes), "penalties": list(names)},
        picture=partial(penalties, names, start, partial(_losses, design), held_out),
        model=lambda hyper, _: make_model(design, fit(hyper)),
    )


def _shrinkage(penalty: Groups, design: Design) -> Shrinkage:
    features, classes = design.features, design.table.classes
    d, C = len(features.names), len(classes)
    if penalty in ("per_class", "per_weight") and C == 2:
        raise ValueError(
            f"penalty={penalty!r} needs more than two classes: with two there is one weight per "
            "column, so use 'per_feature'."
        )
    if penalty == "per_class":
        return Shrinkage(Penalty(classes), (1, C))
    if penalty == "per_weight":
        every = tuple(f"{name} for {label}" for name in features.names for label in classes)
        return Shrinkage(Penalty(every), (d, C))
    strengths = Penalty.from_columns(penalty, features)
    rows = 1 if strengths.shape == () else d
    return Shrinkage(strengths, (rows,) if C == 2 else (rows, 1))


def _cast(batch: tuple) -> tuple:
    """Convert features and weights to JAX's floating-point type; classes stay integers."""
    dtype = jnp.result_type(float)
    return tuple(jnp.asarray(x, dtype if x.dtype.kind == "f" else jnp.int32) for x in batch)


def _zeros(design: Design, folds: int | None) -> PyTree:
    d, C = len(design.features.names), len(design.table.classes)
    lead, tail = () if folds is None else (folds,), () if C == 2 else (C,)
    return {"weights": jnp.zeros((*lead, d, *tail)), "intercept": jnp.zeros((*lead, *tail))}


def _with_intercept(batch: tuple) -> np.ndarray:
    """Append the intercept's 1 to rows; with folds, times the root of their weight."""
    X, _, *weight = batch
    X = np.concatenate([X, np.ones((*X.shape[:-1], 1))], axis=-1)
    return X * np.sqrt(weight[0])[..., None] if weight else X


@one_thread
def _fit(design: Design, model: Model, hyper: Array) -> LinearCore:
    """Return the fit with these penalties on all development rows, in float64."""
    batch = design.development

    def fit(hyper: Array) -> PyTree:
        like = _zeros(design, None)
        start, unravel = ravel_pytree(like)
        limits = {"maxiter": 10_000, "maxfun": 20_000, "ftol": 0, "gtol": 1e-7}
        found = minimize(
            lambda flat: tuple(map(np.asarray, _loss(model, flat, like, hyper, batch))),
            np.asarray(start),
            jac=True,
            method="L-BFGS-B",
            options=limits,
        )
        return unravel(jnp.asarray(found.x))

    params = in_float64(fit)(hyper)
    return LinearCore(np.asarray(params["weights"]), np.asarray(params["intercept"]))


@one_thread
def _losses(design: Design, hypers: np.ndarray) -> np.ndarray:
    """Return the outer loss of each fold at each log-penalty, shared by all columns, ``[k, F]``."""
    X, y = (a if design.folds else a[:, None] for a in (design.X, design.y))
    train = design.train if design.folds else design.train[:, None]
    losses = np.empty((len(hypers), train.shape[1]))
    for f, used in enumerate(train.T):
        for k, hyper in enumerate(hypers):
            strength = np.exp(hyper) * used.sum()
            model = LogisticRegression(C=1 / strength, max_iter=5000, tol=1e-6)
            scores = model.fit(X[used, f], y[used, f]).decision_function(X[~used, f])
            losses[k, f] = _log_loss(scores, y[~used, f])
    return losses


@partial(jax.jit, static_argnums=0)  # here, that tasks of the same shapes compile it once
def _loss(model: Model, flat: Array, like: PyTree, hyper: Array, batch: tuple) -> Any:
    """Return the inner loss at the parameters ``flat``, shaped ``like``, and its slope."""
    unravel = ravel_pytree(like)[1]
    return jax.value_and_grad(lambda flat: holdout(model).inner(unravel(flat), hyper, batch))(flat)


def _score(scores: np.ndarray, design: Design) -> Metrics:
    """Score log-odds ``[n]``, or of scores ``[n, C]``."""
    y = design.test[1]
    chosen = scores > 0 if scores.ndim == 1 else np.argmax(scores, axis=1)
    return {
        "test_log_loss": _log_loss(scores, y),
        "test_accuracy": float(np.mean(chosen == y)),
    }


def _log_loss(scores: np.ndarray, y: np.ndarray) -> float:
    if scores.ndim == 1:
        scores = np.stack([np.zeros_like(scores), scores], axis=-1)
    return float(np.mean(logsumexp(scores, axis=1) - scores[np.arange(len(y)), y]))


@one_thread
def _baselines(design: Design, start: float) -> dict[str, Metrics]:
    """Score what a user would run instead; each is fitted on all development rows in the end."""
    X, y = design.development
    train = design.train if design.folds else design.train[:, None]
    ours = [(np.flatnonzero(used), np.flatnonzero(~used)) for used in train.T]
    # scikit-learn's C multiplies the sum of the losses, our penalty belongs to the mean.
    settings: dict[str, Any] = {
        "Cs": 1 / (GRID * len(y)),
        "scoring": "neg_log_loss",
        "max_iter": 10_000,
        "l1_ratios": (0.0,),
        "use_legacy_attributes": False,
    }
    search = f"LogisticRegressionCV ({GRID.size} penalties, "
    models: dict[str, Any] = {}
    if design.folds:
        models[search + "same folds)"] = LogisticRegressionCV(cv=ours, **settings)
    else:
        models[search + "5 folds)"] = LogisticRegressionCV(cv=5, **settings)
        models[search + "same hold-out)"] = LogisticRegressionCV(cv=ours, **settings)
    models[f"no tuning (penalty {start:g})"] = LogisticRegression(
        C=1 / (start * len(y)), max_iter=10_000
    )
    models["LogisticRegression (C = 1)"] = LogisticRegression(max_iter=10_000)
    return {
        name: _score(model.fit(X, y).decision_function(design.test[0]), design)
        for name, model in models.items()
    }
