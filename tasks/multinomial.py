r"""Multinomial logistic regression on sparse rows, with log-penalties on its weights.

    inner(w, h) = mean_i loss(x_i, y_i; w) + 1/2 sum_jc exp(h_jc) w_jc^2     training rows
    outer(w)    = mean_i loss(x_i, y_i; w)                                   validation rows

The loss of a row is minus its log-likelihood; the intercepts are not penalised. A row is its
non-zero entries and their column numbers, in both losses and all baselines: no array of
rows x columns is ever made.
"""

from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from scipy.optimize import minimize
from scipy.special import log_softmax
from sklearn.linear_model import LogisticRegression
from threadpoolctl import threadpool_limits

import bilevel as bl
from tasks.base import Metrics, PyTree, Task
from tasks.datasets import sparse
from tasks.datasets.splits import Split, split
from tasks.judges.pictures import penalties
from tasks.models.rows import RowsClassifier
from tasks.parts.losses import Model, holdout

PENALTIES = ("global", "per_feature", "per_class", "per_weight")
GRID = np.logspace(-6, -1, 11)  # penalties of the mean loss
one_thread = threadpool_limits.wrap(limits=1)


def many_classes(params: PyTree, X: tuple[Array, Array], y: Array) -> Array:
    """Return minus the log-likelihood of each row; a row has K columns and values, ``[n, K]``.

    The last class has no intercept: with one for each, a shift of all would change nothing, and
    the Hessian of the inner loss would be singular.
    """
    index, value = X
    scores = jnp.einsum("nk,nkc->nc", value, params["weights"][index])
    scores += jnp.append(params["intercept"], 0)
    return -jnp.take_along_axis(jax.nn.log_softmax(scores), y[:, None], axis=-1)[:, 0]


def shrinkage(params: PyTree, hyper: Array) -> Array:
    """Return ``1/2 sum_jc exp(h_jc) w_jc^2``; ``h`` broadcasts against ``[d, C]``."""
    w = params["weights"]
    return jnp.sum(jnp.broadcast_to(jnp.exp(hyper), w.shape) * w**2) / 2


PROBLEM = holdout(Model(many_classes, shrinkage))


@dataclass(frozen=True)
class _Design:
    """Sparse columns in common units, and which rows train and validate; ``y`` of all rows."""

    X: sparse.CSR
    y: np.ndarray
    parts: Split
    classes: tuple[str, ...]

    def fit(
        self, rows: np.ndarray, hyper: Any, start: np.ndarray | None = None, ftol: float = 1e-10
    ) -> np.ndarray:
        """Fit weights, with the intercepts as the last row, ``[d + 1, C]``, in float64."""
        X, d, C = self.X[rows], self.X.shape[1], len(self.classes)
        target = sparse.csr((np.ones(len(rows)), (np.arange(len(rows)), self.y[rows])))
        target = target.toarray()  # [n, C]
        s = np.broadcast_to(np.exp(np.asarray(hyper, float)), (d, C))
        XT = sparse.csr(X.T)

        def loss(flat: np.ndarray) -> tuple[float, np.ndarray]:
            w = flat.reshape(d + 1, C)
            logs = log_softmax(X @ w[:-1] + w[-1], axis=1)
            value = -np.sum(target * logs) / len(rows) + np.sum(s * w[:-1] ** 2) / 2
            slope = (np.exp(logs) - target) / len(rows)
            return value, np.vstack([XT @ slope + s * w[:-1], slope.sum(0)]).ravel()

        begin = np.zeros((d + 1) * C) if start is None else start.ravel()
        limits = {"maxiter": 2000, "maxfun": 4000, "ftol": ftol, "gtol": 1e-7}
        found = minimize(loss, begin, jac=True, method="L-BFGS-B", options=limits)
        return found.x.reshape(d + 1, C)

    def loss(self, rows: np.ndarray, w: np.ndarray) -> float:
        """Return the mean of minus the log-likelihood."""
        return self.score(rows, self.X[rows] @ w[:-1] + w[-1])["test_log_loss"]

    def score(self, rows: np.ndarray, scores: np.ndarray) -> Metrics:
        """Return the metrics of scores ``[n, C]``."""
        y = self.y[rows]
        logs = log_softmax(scores, axis=1)
        return {
            "test_log_loss": float(-np.mean(logs[np.arange(len(y)), y])),
            "test_accuracy": float(np.mean(np.argmax(scores, axis=1) == y)),
        }

    def tested(self, w: np.ndarray) -> Metrics:
        """Return the metrics on the test rows."""
        return self.score(self.parts.test, self.X[self.parts.test] @ w[:-1] + w[-1])


def multinomial(
    data: str = "digits",
    penalty: str = "per_class",
    *,
    weighting: str = "scale",
    min_rows: int = 1,
    width: int | None = None,
    validation: float = 0.3,
    test: float = 0.3,
    start: float = 0.01,
    rows: int | None = None,
    root: str | None = None,
    seed: int = 0,
) -> Task:
    """Make the task of tuning penalties of a multinomial logistic regression on sparse rows.

    Parameters
    ----------
    data, root : as for :func:`tasks.datasets.sparse.read`.
    penalty : ``"global"``, ``"per_feature"``, ``"per_class"``, or ``"per_weight"`` (every column
        and class its own).
    weighting : as for :func:`tasks.datasets.sparse.weighted`.
    min_rows : leave out columns that fewer rows use.
    width : keep so many largest entries of each row; all rows take the memory of the longest, and
        one text may have twenty times the words of the next. ``None`` keeps all.
    validation, test, rows, seed : as for :func:`tasks.datasets.splits.split`.
    start : the penalty at the start, of the mean loss.

    Raises
    ------
    ValueError : bad data, an unknown penalty or weighting, shares that leave a part empty.

    Examples
    --------
    >>> from tasks.multinomial import multinomial
    >>> multinomial("digits", penalty="per_weight").hyper.shape
    (61, 10)
    """
    if penalty not in PENALTIES:
        raise ValueError(f"penalty={penalty!r} must be one of {', '.join(PENALTIES)}.")
    if not start > 0:
        raise ValueError(f"start={start!r} must be a positive penalty.")
    table = sparse.read(data, root)
    parts = split(table, validation=validation, test=test, seed=seed, rows=rows)
    counts = sparse.csr(table.X)
    # A fact of the set, not of the seed, so that all seeds are one program.
    own = () if table.test_rows is None else table.test_rows
    offered = np.setdiff1d(np.arange(len(table.y)), own)
    used = sparse.common(sparse.csr(counts[offered]), min_rows)
    words = sparse.find_units(counts, parts.train, weighting, used)
    X, longest, kept = sparse.largest(words(counts), width)
    design, (d, C) = _Design(X, table.y, parts, table.classes), (X.shape[1], len(table.classes))
    shapes = {"global": (), "per_feature": (d, 1), "per_class": (1, C), "per_weight": (d, C)}
    dtype = jnp.result_type(float)

    def batch(chosen: np.ndarray) -> Any:
        padded = sparse.Rows.from_matrix(sparse.csr(X[chosen]), longest)
        return (padded.index, jnp.asarray(padded.value, dtype)), jnp.asarray(table.y[chosen])

    names = {"global": ["all"], "per_class": list(table.classes)}.get(penalty, [])
    return Task(
        name=f"multinomial {data}",
        problem=PROBLEM,
        data=bl.Data(inner=batch(parts.train), outer=batch(parts.validation)),
        hyper=jnp.full(shapes[penalty], np.log(start), dtype),
        params={"weights": jnp.zeros((d, C), dtype), "intercept": jnp.zeros(C - 1, dtype)},
        metrics=lambda hyper, _: one_thread(_refit)(design, hyper),
        baselines=lambda: one_thread(_baselines)(design, start),
        describe=lambda hyper: _describe(names, hyper),
        notes={
            "source": table.source,
            "rows": {n: len(getattr(parts, n)) for n in ("train", "validation", "test")},
            "split": parts.digest,
            "columns": d,
            "entries": int(X.nnz),
            "width": longest,
            "share_of_squares_kept": kept,
            "classes": list(table.classes),
            "penalties": names,
            "remarks": list(table.notes),
        },
        picture=partial(penalties, names, start, None, None) if names else None,
        model=lambda hyper, _: _model(design, hyper, replace(words, width=width), table.labels),
    )


@one_thread
def _model(
    design: _Design, hyper: Array, words: sparse.Words, labels: tuple[Any, ...]
) -> RowsClassifier:
    w = design.fit(design.parts.development, hyper)
    return RowsClassifier(words, ((w[:-1], w[-1]),), labels)


def _refit(design: _Design, hyper: Array) -> Metrics:
    return design.tested(design.fit(design.parts.development, hyper))


def _describe(names: list[str], hyper: Array) -> dict[str, float]:
    values = np.exp(np.asarray(hyper, float)).ravel()
    if names:
        return {f"penalty of {n}": float(v) for n, v in zip(names, values, strict=True)}
    low, middle, high = map(float, np.quantile(values, [0, 0.5, 1]))
    return {"smallest penalty": low, "median penalty": middle, "largest penalty": high}


def _baselines(design: _Design, start: float) -> dict[str, Metrics]:
    """Score what a user would run instead; each is fitted on all development rows in the end."""
    parts, w, losses = design.parts, None, []
    for penalty in GRID[::-1]:  # from strong to weak, each from where the last one ended
        w = design.fit(parts.train, np.log(penalty), w, ftol=1e-7)
        losses.append(design.loss(parts.validation, w))
    best = GRID[::-1][int(np.argmin(losses))]
    plain = LogisticRegression(max_iter=10_000)
    plain.fit(design.X[parts.development], design.y[parts.development])
    scores = plain.decision_function(design.X[parts.test])
    if scores.ndim == 1:
        scores = np.stack([np.zeros_like(scores), scores], axis=1)
    return {
        f"one penalty (best of {GRID.size}, same hold-out)": _refit(design, np.log(best)),
        f"no tuning (penalty {start:g})": _refit(design, np.log(start)),
        "LogisticRegression (C = 1)": design.score(parts.test, scores),
    }
