"""The lasso tasks that the tests take, and their rows picked by index."""

from functools import cache
from typing import Any

import jax
import numpy as np

import bilevel as bl
from tasks.base import Task
from tasks.datasets.design import Design, prepare
from tasks.datasets.tabular import Tabular
from tasks.lasso import lasso

GROUPS = {"body": ["age*", "sex", "bmi*", "bp*"], "blood": ["s?", "s?^2"], "rest": ["*"]}
KINDS = [
    ("lasso", "global"),
    ("lasso", "per_feature"),
    ("elastic_net", "global"),
    ("elastic_net", "by_degree"),
    ("group_lasso", "global"),
    ("group_lasso", "per_group"),
]


def table(outer: str = "holdout", seed: int = 1) -> Tabular:
    return Tabular("diabetes", outer, degree=2, folds=3, seed=seed)


def make(kind: str, penalty: str = "global", outer: str = "holdout", seed: int = 1) -> Task:
    groups = GROUPS if kind == "group_lasso" else None
    return lasso(table(outer, seed), kind, penalty, groups=groups)


@cache
def design(outer: str = "holdout") -> Design:
    return prepare(table(outer), "regression")


def folds(outer: str) -> list[tuple]:
    """Training and validation rows of each fold, picked by index, in units of the target."""
    made, pairs = design(outer), []
    X, y, train = (np.atleast_2d(a.T).T for a in (made.X, made.y, made.train))
    unit = made.y[made.train].std()
    for f in range(train.shape[1]):
        columns, used = made.X if outer == "holdout" else X[:, f], train[:, f]
        target = (y[:, f] - y[used, f].mean()) / unit
        pairs.append((columns[used], target[used], columns[~used], target[~used]))
    return pairs


def at(made: Task, hyper: Any) -> tuple[bl.Estimate, Any]:
    """FISTA run to its end, and the implicit hypergradient there."""
    X = np.asarray(made.data.inner[0])
    solver = bl.FISTA(0.9 / np.linalg.eigvalsh(X.T @ X / len(X))[-1])
    return bl.hypergradient(
        made.problem,
        bl.Implicit(solver, steps=3000),
        hyper,
        made.params,
        made.data,
        jax.random.key(0),
    )
