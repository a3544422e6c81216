"""HypergradLasso beside LassoCV and sparho, whose outer loop descends a hypergradient too.

    OPENBLAS_NUM_THREADS=1 OMP_NUM_THREADS=1 python -m benchmarks.lasso_peers [--only leukemia]

CPU seconds of one search, on five shuffled folds that all share; columns and target are centred
and no model has an intercept, as sparho's has none. ``above``: how far the loss on the folds at the
penalty chosen, solved to 1e-12 by scikit-learn, is above the least of the three. sparho is no
dependency of the project: ``pip install --no-deps --target DIR sparho==0.2.0 celer==0.7.4``, and
``PYTHONPATH=DIR``. A table whose file is absent is left out.
"""

import argparse
import time
import warnings
from collections.abc import Callable
from importlib import import_module
from typing import Any

import numpy as np
from sklearn.linear_model import Lasso, LassoCV
from sklearn.model_selection import KFold

from benchmarks.sklearn_tables import Table, list_tables, make_linear
from bilevel.sklearn import HypergradLasso

FOLDS = KFold(5, shuffle=True, random_state=0)  # those of sparho's CrossVal.kfold


def load_leukemia() -> Table | None:
    """Return the 38 training rows of gene expression, or nothing where the file is absent."""
    found = list_tables()["leukemia"][1]()
    return None if found is None else (found[0][:38], found[1][:38].astype(float))


TABLES: dict[str, Callable[[], Table | None]] = {
    "diabetes": list_tables()["diabetes"][1],
    "made, correlated": make_linear(500, 1000, 30, 0.9),
    "leukemia": load_leukemia,
}


def search_sparho(X: np.ndarray, y: np.ndarray) -> float:
    """Return the penalty that sparho chooses, from a tenth of the smallest without a column."""
    sparho, celer = import_module("sparho"), import_module("sparho.adapters.celer")
    problem = sparho.Problem(sparho.SquaredLoss(), sparho.L1(), np.asfortranarray(X), y)
    found = sparho.hoag_search(
        problem,
        float(np.max(np.abs(X.T @ y))) / len(y) / 10,
        solver=celer.CelerLasso(),
        criterion=sparho.CrossVal.kfold(len(y), 5, warm_start=True),
    )
    return float(np.ravel(found.best_hyperparam)[0])


SEARCHES: dict[str, Callable[[np.ndarray, np.ndarray], float]] = {
    "HypergradLasso": lambda X, y: HypergradLasso(cv=FOLDS, fit_intercept=False).fit(X, y).alpha_,
    "LassoCV": lambda X, y: LassoCV(cv=FOLDS, fit_intercept=False).fit(X, y).alpha_,
    "sparho": search_sparho,
}


def find_loss(X: np.ndarray, y: np.ndarray, alpha: float) -> float:
    """Return the mean squared error over the folds of scikit-learn's exact fits."""
    losses = []
    for train, held in FOLDS.split(X):
        fit: Any = Lasso(alpha, fit_intercept=False, tol=1e-12, max_iter=10**6)
        losses.append(np.mean((fit.fit(X[train], y[train]).predict(X[held]) - y[held]) ** 2))
    return float(np.mean(losses))


def is_importable(name: str) -> bool:
    """Return whether a package can be imported: the import is then not part of a search."""
    try:
        import_module(name)
    except ImportError:
        return False
    return True


def main() -> None:
    """Print one row for each table and search."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--only", nargs="*", default=list(TABLES))
    names, searches = parser.parse_args().only, dict(SEARCHES)
    warnings.simplefilter("ignore")
    if not all(map(is_importable, ("sparho", "celer"))):
        del searches["sparho"]
        print(
            "sparho is left out: it or its solver celer cannot be imported. "
            "pip install --no-deps --target DIR sparho==0.2.0 celer==0.7.4, and PYTHONPATH=DIR.\n"
        )
    print("| table | shape | search | CPU s | penalty | above |\n|---|---|---|---:|---:|---:|")
    for name in names:
        if (table := TABLES[name]()) is None:
            continue
        X, y = table[0] - table[0].mean(0), table[1] - table[1].mean()
        rows = []
        for search, run in searches.items():
            start = time.process_time()
            alpha = run(X, y)
            rows.append((search, time.process_time() - start, alpha, find_loss(X, y, alpha)))
        best = min(row[-1] for row in rows)
        for search, seconds, alpha, loss in rows:
            cells = name, f"{len(X)} x {X.shape[1]}", search, f"{seconds:.2f}", f"{alpha:.5g}"
            print("| " + " | ".join([*cells, f"{loss / best - 1:.1e}"]) + " |", flush=True)


if __name__ == "__main__":
    main()
