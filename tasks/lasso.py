r"""Lasso, elastic net and group lasso, with one log-penalty or one per column or group.

    inner(w, h) = 1/2 mean_i (x_i . w - y_i)^2 + nonsmooth(w, h)                   training rows
    outer(w)    = 1/2 mean_i (x_i . w - y_i)^2                                     validation rows

    lasso          sum_j exp(h_j) |w_j|
    elastic_net    sum_j exp(h.l1_j) |w_j| + 1/2 sum_j exp(h.l2_j) w_j^2
    group_lasso    sum_g exp(h_g) sqrt(|g|) |w_g|

scikit-learn's ``alpha`` is ``exp(h)`` for the lasso; of its elastic net ``alpha l1_ratio`` is
``exp(h.l1)`` and ``alpha (1 - l1_ratio)`` is ``exp(h.l2)``. Columns and target are standardised on
the training rows, so there is no intercept to fit. Two classes are the targets -1 and 1.
"""

from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from sklearn.linear_model import ElasticNetCV, LassoCV, LinearRegression, RidgeCV

import bilevel as bl
from tasks.base import Metrics, PyTree, Task
from tasks.datasets.design import Design, prepare, standardised
from tasks.datasets.tables import BUNDLED, SHARED
from tasks.datasets.tabular import TableChoice, Tabular
from tasks.judges.exact_sparse import Exact
from tasks.judges.exact_sparse import Groups as Membership
from tasks.judges.pictures import bars
from tasks.models import LinearCore, make_model
from tasks.parts.losses import Model, problem
from tasks.parts.penalty import Groups, Penalty, describe
from tasks.parts.prox import GroupThreshold, SoftThreshold, Squares
from tasks.parts.stability import stability
from tasks.ridge import squared_error

DEFAULT = Tabular("diabetes", "holdout", degree=2)
KINDS = ("lasso", "elastic_net", "group_lasso")


def lasso(
    table: TableChoice = DEFAULT,
    kind: str = "lasso",
    penalty: Groups = "global",
    *,
    groups: Groups | None = None,
    start: float = 0.5,
) -> Task:
    """Make the task of tuning penalties that select columns.

    Parameters
    ----------
    table : as for :func:`tasks.ridge.ridge`; or a set of two classes.
    kind : ``"lasso"``, ``"elastic_net"`` or ``"group_lasso"``.
    penalty : as for :meth:`tasks.parts.penalty.Penalty.from_columns`; for the group lasso
        ``"global"`` or ``"per_group"``.
    groups : which columns are kept or dropped together, by name or pattern; group lasso only.
    start : every penalty at the start, as a share of the least one that keeps no column at all.

    Raises
    ------
    ValueError : bad data, an unknown kind, penalty, or outer loss, shares that leave a part empty.

    Examples
    --------
    >>> from tasks.lasso import lasso
    >>> lasso("diabetes", penalty="per_feature").hyper.shape
    (64,)
    """
    if kind not in KINDS:
        raise ValueError(f"kind={kind!r} must be one of {', '.join(KINDS)}.")
    if not 0 < start < 1:
        raise ValueError(f"start={start!r} must lie between 0 and 1, where no column is left.")
    chosen = DEFAULT.changed(table)
    design = _prepare(chosen)
    exact, prox = _penalties(kind, penalty, groups, design)
    inner, held = design.batches(standardised(design))
    pairs = _pairs(inner, held)
    hyper = _start(exact, pairs, start)
    squares = Squares(exact.strengths if kind == "elastic_net" else None)
    dtype = jnp.result_type(float)
    cast = partial(jax.tree.map, lambda x: jnp.asarray(x, dtype))
    weighted = inner[0] if len(inner) == 2 else inner[0] * np.sqrt(inner[2])[..., None]
    names = _names(exact, hyper)
    return Task(
        name=f"{kind.replace('_', ' ')} {chosen.data}",
        problem=replace(problem(Model(squared_error, squares), design.folds), prox=prox),
        data=bl.Data(inner=cast(inner), outer=cast(held)),
        hyper=cast(hyper),
        params=jnp.zeros(inner[0].shape[1:], dtype),
        metrics=lambda hyper, _: _refit(design, exact, hyper),
        baselines=lambda: _baselines(design, pairs),
        describe=lambda hyper: _describe(exact, design, hyper),
        exact=partial(exact.value_and_grad, pairs),
        notes=design.notes() | stability(weighted, 0.0) | {"penalties": names},
        picture=partial(_picture, design, exact),
        model=lambda hyper, _: make_model(design, _fit(design, exact, hyper), log_odds=False),
    )


def _prepare(chosen: Tabular) -> Design:
    """Prepare numbers to predict; of two classes -1 and 1."""
    kind = (BUNDLED | SHARED).get(chosen.data, "regression")
    design = prepare(chosen, kind)
    if kind == "regression":
        return design
    if len(design.table.classes) > 2:
        raise ValueError(
            f"{chosen.data!r} has {len(design.table.classes)} classes: the lasso predicts a "
            "number, or two classes as -1 and 1. Use task=multinomial."
        )
    (X, y), (X_test, y_test) = design.development, design.test
    signs = [2.0 * labels - 1 for labels in (design.y, y, y_test)]
    return replace(design, y=signs[0], development=(X, signs[1]), test=(X_test, signs[2]))


def _penalties(
    kind: str, penalty: Groups, groups: Groups | None, design: Design
) -> tuple[Exact, SoftThreshold | GroupThreshold]:
    if kind != "group_lasso":
        if groups is not None:
            raise ValueError(f"groups belong to kind='group_lasso', not to {kind!r}.")
        strengths = Penalty.from_columns(penalty, design.features)
        return Exact(kind, strengths, None), SoftThreshold(strengths)
    if groups is None or penalty not in ("global", "per_group"):
        raise ValueError(
            "kind='group_lasso' needs groups={NAME: [COLUMN, ...], ...}, which columns are kept or "
            f"dropped together, and penalty='global' or 'per_group'; got groups={groups!r}, "
            f"penalty={penalty!r}."
        )
    members = Penalty.from_columns(groups, design.features)
    of = members.groups or (0,) * len(design.features.names)
    if members.shape and members.groups is None:
        of = tuple(range(len(members.names)))  # every column its own
    strengths = members if penalty == "per_group" else Penalty(("all",))
    return Exact(kind, strengths, Membership(np.array(of))), GroupThreshold(of)


def _pairs(inner: tuple, held: tuple) -> list[Any]:
    """Return ``((X, y), (X, y))`` of the training and validation rows of each fold."""
    if len(inner) == 2:
        return [(inner, held)]
    X, y, weight = inner
    folds = []
    for f, used in enumerate(weight.T > 0):
        folds.append(((X[used, f], y[used, f]), (X[~used, f], y[~used, f])))
    return folds


def _start(exact: Exact, pairs: list[Any], share: float) -> PyTree:
    """Return logarithms of ``share`` of the penalty that keeps no column in any fold."""
    slopes = [np.abs(X.T @ y) / len(y) for (X, y), _ in pairs]
    if exact.groups is not None:
        slopes = [exact.groups.norms(slope) / exact.groups.roots for slope in slopes]
    start = np.full(exact.strengths.shape, np.log(share * np.max(slopes)))
    return {"l1": start, "l2": start} if exact.kind == "elastic_net" else start


def _names(exact: Exact, hyper: PyTree) -> list[str]:
    names = list(exact.strengths.names)
    if isinstance(hyper, dict):
        return [f"{level} {name}" for level in hyper for name in names]
    return names


def _describe(exact: Exact, design: Design, hyper: PyTree) -> dict[str, float]:
    """Return penalties in natural units, and how many columns the fit on development rows keeps."""
    parts = hyper if isinstance(hyper, dict) else {"": hyper}
    found = {}
    for level, part in parts.items():
        named = describe(exact.strengths, part)
        found |= {f"{level} {name}".strip(): value for name, value in named.items()}
    w, _, _ = _developed(design, exact, hyper)
    return found | {"columns kept": float(np.count_nonzero(w))}


def _developed(design: Design, exact: Exact, hyper: PyTree) -> tuple[np.ndarray, Any, float]:
    """Return ``(w, centre, mean)`` of the fit on all development rows."""
    X, y = design.development
    centre, mean, unit = X.mean(0), y.mean(), y.std()
    return exact.fit(X - centre, (y - mean) / unit, hyper) * unit, centre, mean


def _picture(design: Design, exact: Exact, figure: Any, hyper: PyTree, params: Any) -> None:
    """Draw the columns that the fit on all development rows keeps."""
    del params
    w, _, _ = _developed(design, exact, hyper)
    kept = np.flatnonzero(w)
    names = [design.features.names[j] for j in kept]
    bars(figure, names, w[kept], f"coefficients of the {len(kept)} of {len(w)} columns kept", None)


def _fit(design: Design, exact: Exact, hyper: PyTree) -> LinearCore:
    w, centre, mean = _developed(design, exact, hyper)
    return LinearCore(w, mean - centre @ w)


def _refit(design: Design, exact: Exact, hyper: PyTree) -> Metrics:
    return _score(_fit(design, exact, hyper)(design.test[0]), design)


def _score(predicted: np.ndarray, design: Design) -> Metrics:
    y = design.test[1]
    mse = float(np.mean((predicted - y) ** 2))
    if design.table.classes:
        return {"test_mse": mse, "test_accuracy": float(np.mean((predicted > 0) == (y > 0)))}
    return {"test_mse": mse, "test_r2": 1 - mse / (float(np.var(y)) or np.nan)}


def _baselines(design: Design, pairs: list[Any]) -> dict[str, Metrics]:
    """Score what a user would run instead; each is fitted on all development rows in the end."""
    X, y = design.development
    one = Exact("lasso", Penalty(("all",)), None)
    largest = float(np.exp(_start(one, pairs, 1.0)))
    grid = largest * np.logspace(-2, 0, 60)

    def held(alpha: float) -> float:
        fits = [(one.fit(X, y, np.log(alpha)), held) for (X, y), held in pairs]
        return float(np.mean([np.mean((X @ w - y) ** 2) for w, (X, y) in fits]))

    best = min(grid, key=held)
    rows = "hold-out" if design.folds is None else "folds"
    ratios: Any = [0.1, 0.5, 0.9]
    searches = {
        "LassoCV (100 penalties, 5 folds)": LassoCV(cv=5, max_iter=100_000, tol=1e-3),
        "ElasticNetCV (3 x 100, 5 folds)": ElasticNetCV(
            l1_ratio=ratios, cv=5, max_iter=100_000, tol=1e-3
        ),
        "RidgeCV (60 penalties, leave-one-out)": RidgeCV(alphas=np.logspace(-5, 3, 60) * len(y)),
        "least squares": LinearRegression(),
    }
    found = {f"one lasso penalty (best of 60, same {rows})": _refit(design, one, np.log(best))}
    for name, model in searches.items():
        found[name] = _score(model.fit(X, y).predict(design.test[0]), design)
    return found
