r"""Ridge regression with one log-penalty, one per column, or one per group of columns.

    inner(w, h) = 1/2 mean_i (x_i . w - y_i)^2 + 1/2 sum_j exp(h_g(j)) w_j^2     training rows
    outer(w)    = 1/2 mean_i (x_i . w - y_i)^2                                   validation rows

Columns are standardised, the target too; both are centred on the training rows, so there is no
intercept to fit.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from sklearn.linear_model import LinearRegression, RidgeCV

import bilevel as bl
from tasks.base import Metrics, Task
from tasks.datasets.design import Design, prepare, standardised
from tasks.datasets.splits import set_aside
from tasks.datasets.tabular import TableChoice, Tabular
from tasks.judges.pictures import penalties
from tasks.models import LinearCore, make_model
from tasks.parts.losses import Model, problem
from tasks.parts.moments import Moments, in_float64, validation_loss
from tasks.parts.penalty import Groups, Penalty, describe
from tasks.parts.stability import stability

DEFAULT = Tabular("diabetes", "kfold", degree=2)
GRID = np.logspace(-5, 3, 60)  # penalties of the mean loss; columns have variance 1


def squared_error(w: Array, X: Array, y: Array) -> Array:
    """Return half the squared residual of each row, ``[n]``."""
    return (X @ w - y) ** 2 / 2


@dataclass(frozen=True)
class Shrinkage:
    """``1/2 sum_j strength_j w_j^2``, ``()``."""

    strengths: Penalty

    def __call__(self, w: Array, hyper: Array) -> Array:
        return jnp.sum(self.strengths(hyper) * w**2) / 2


def ridge(
    table: TableChoice = DEFAULT,
    penalty: Groups = "per_input",
    *,
    second: float = 0.0,
    start: float = 0.1,
) -> Task:
    """Make the task of tuning ridge penalties for a regression data set.

    Parameters
    ----------
    table : a data set by name, or settings of :class:`tasks.datasets.tabular.Tabular`: all of them,
        or those that differ from ``DEFAULT``.
    penalty : as for :meth:`tasks.parts.penalty.Penalty.from_columns`.
    second : share of the validation rows to set aside for early stopping; ``"holdout"`` only.
    start : the penalty of every column at the start; 1 is the variance of a column.

    Notes
    -----
    The outer loss is in units of the target's variance, ``test_mse`` in squared target units.

    Raises
    ------
    ValueError : bad data, an unknown penalty or outer loss, shares that leave a part empty.

    Examples
    --------
    >>> from tasks.ridge import ridge
    >>> ridge({"outer": "holdout"}).params.shape
    (64,)
    """
    if not start > 0:
        raise ValueError(f"start={start!r} must be a positive penalty.")
    chosen = DEFAULT.changed(table)
    design = prepare(chosen, "regression")
    strengths = Penalty.from_columns(penalty, design.features)
    inner, held = design.batches(standardised(design))
    held, aside = set_aside(held, second, design.folds)
    model = Model(squared_error, Shrinkage(strengths), quadratic=True)
    dtype = jnp.result_type(float)
    hyper = jnp.full(strengths.shape, np.log(start), dtype)
    cast = partial(jax.tree.map, lambda x: jnp.asarray(x, dtype))
    levels = Moments.from_rows(*inner), Moments.from_rows(*held)
    # Each fold weighs its rows: the step sizes that are stable follow from the weighted rows.
    weighted = inner[0] if len(inner) == 2 else inner[0] * np.sqrt(inner[2])[..., None]
    task, data = problem(model, design.folds), bl.Data(inner=cast(inner), outer=cast(held))
    held_out = (task, data) if design.folds is None else None
    return Task(
        name=f"ridge {chosen.data}",
        problem=task,
        data=data,
        hyper=hyper,
        params=jnp.zeros(inner[0].shape[1:], dtype),
        metrics=lambda hyper, _: _refit(design, strengths, hyper),
        baselines=lambda: _baselines(design, levels, start),
        describe=partial(describe, strengths),
        exact=partial(in_float64(partial(_exact, strengths)), levels),
        second=None if aside is None else cast(aside),
        notes=design.notes() | stability(weighted, start) | {"penalties": list(strengths.names)},
        picture=partial(penalties, strengths.names, start, partial(_losses, levels), held_out),
        model=lambda hyper, _: make_model(design, _fit(design, strengths, hyper)),
    )


@partial(jax.jit, static_argnums=0)  # here, that tasks of the same shapes compile it once
def _exact(strengths: Penalty, levels: tuple[Moments, Moments], hyper: Array) -> Any:
    return jax.value_and_grad(_value(levels, strengths))(hyper)


def _value(levels: tuple[Moments, Moments], strengths: Penalty) -> Callable[[Array], Array]:
    return lambda hyper: validation_loss(*levels, strengths(hyper))


def _losses(levels: tuple[Moments, Moments], hypers: np.ndarray) -> np.ndarray:
    """Return the outer loss of each fold at each log-penalty, shared by all columns, ``[k, F]``."""

    def of_each(hyper: Array, inner: Moments, outer: Moments) -> Array:
        solve = jax.vmap if inner.A.ndim == 3 else lambda fn: fn
        each = solve(lambda i, o: o.loss(i.minimiser(jnp.exp(hyper))))(inner, outer)
        return jnp.atleast_1d(each)

    return in_float64(jax.vmap(of_each, (0, None, None)))(hypers, *levels)


def _fit(design: Design, strengths: Penalty, hyper: Array) -> LinearCore:
    """Return the ridge fit with these penalties on all development rows."""
    X, y = design.development
    centre, mean = X.mean(0), y.mean()
    moments = Moments.from_rows(X - centre, y - mean)
    w = np.asarray(in_float64(lambda hyper: moments.minimiser(strengths(hyper)))(hyper))
    return LinearCore(w, mean - centre @ w)


def _refit(design: Design, strengths: Penalty, hyper: Array) -> Metrics:
    return _score(_fit(design, strengths, hyper)(design.test[0]), design)


def _score(predicted: np.ndarray, design: Design) -> Metrics:
    y = design.test[1]
    mse = float(np.mean((predicted - y) ** 2))
    return {"test_mse": mse, "test_r2": 1 - mse / (float(np.var(y)) or np.nan)}


def _baselines(design: Design, levels: tuple[Moments, Moments], start: float) -> dict[str, Metrics]:
    """Score what a user would run instead; each is fitted on all development rows in the end."""
    one = Penalty(("all",))
    value = in_float64(jax.jit(_value(levels, one)))
    best = min(np.log(GRID), key=lambda hyper: float(value(hyper)))
    X, y = design.development
    # scikit-learn's penalty belongs to the sum of squares, ours to the mean.
    searched = RidgeCV(alphas=GRID * len(y)).fit(X, y)
    rows = "hold-out" if design.folds is None else "folds"
    return {
        f"RidgeCV ({GRID.size} penalties, leave-one-out)": _score(
            searched.predict(design.test[0]), design
        ),
        f"one penalty (best of {GRID.size}, same {rows})": _refit(design, one, best),
        f"no tuning (penalty {start:g})": _refit(design, one, np.log(start)),
        "least squares": _score(LinearRegression().fit(X, y).predict(design.test[0]), design),
    }
