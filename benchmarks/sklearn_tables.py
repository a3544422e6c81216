"""Test error and CPU seconds of self-tuning estimators beside scikit-learn's on many tables.

    OPENBLAS_NUM_THREADS=1 OMP_NUM_THREADS=1 python -m benchmarks.sklearn_tables \
        [--only diabetes mnist] [--limit 60]

Every table with its columns as they are and, unless it is sparse, standardised on the training
rows. A fifth of the rows, at most 5000, test. Folds of scikit-learn's default for both; theirs
search their default grids (RidgeCV 60 penalties by leave-one-out). CPU seconds of one whole fit,
each in a process of its own that is ended after ``--limit`` of them. ``error``: mean
squared error or log-loss on the test rows; ``ratio``: ours over theirs. Tables named ``made`` are
generated; those whose file is absent are left out.
"""

import argparse
import multiprocessing
import resource
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from scipy import sparse
from sklearn import datasets
from sklearn.linear_model import ElasticNetCV, LassoCV, LogisticRegressionCV, RidgeCV
from sklearn.metrics import log_loss, mean_squared_error
from sklearn.model_selection import train_test_split
from sklearn.preprocessing import StandardScaler

from benchmarks.sklearn_logistic import SHARED, load_news
from bilevel.sklearn import (
    HypergradElasticNet,
    HypergradLasso,
    HypergradLogisticRegression,
    HypergradRidge,
    HypergradSparseLogisticRegression,
)

Table = tuple[Any, np.ndarray]
NEW: Any = {"scoring": "neg_log_loss", "use_legacy_attributes": False}
L2: Any = {**NEW, "l1_ratios": (0,), "max_iter": 1000}
L1: Any = {**NEW, "l1_ratios": (1,), "solver": "liblinear", "random_state": 0}
NET: Any = {"l1_ratio": [0.1, 0.5, 0.7, 0.9, 0.95, 0.99, 1]}
REGRESSION: dict[str, tuple[Callable[[], Any], Callable[[], Any]]] = {
    "ridge": (lambda: RidgeCV(np.logspace(-4, 5, 60)), HypergradRidge),
    "lasso": (LassoCV, HypergradLasso),
    "elastic net": (
        lambda: ElasticNetCV(**NET),
        HypergradElasticNet,
    ),
}
CLASSIFICATION: dict[str, tuple[Callable[[], Any], Callable[[], Any]]] = {
    "logistic": (lambda: LogisticRegressionCV(**L2), HypergradLogisticRegression),
    "logistic, l1": (lambda: LogisticRegressionCV(**L1), HypergradSparseLogisticRegression),
}


def make_linear(n: int, d: int, useful: int, correlation: float = 0.0) -> Callable[[], Table]:
    """Return a maker of ``n x d`` rows whose ``useful`` first columns matter, and noise."""

    def make() -> Table:
        rng = np.random.default_rng(0)
        X = rng.normal(size=(n, d))
        if correlation:  # with the column before, and columns of different size
            for j in range(1, d):
                X[:, j] = correlation * X[:, j - 1] + np.sqrt(1 - correlation**2) * X[:, j]
            X *= 10.0 ** rng.uniform(-1.5, 1.5, d)
        score = X[:, :useful] / X[:, :useful].std(0) @ rng.normal(size=useful)
        return X, score + score.std() * rng.normal(size=n)

    return make


def make_sparse() -> Table:
    """Make 2000 x 20 000 rows, one entry of a hundred not 0."""
    rng = np.random.default_rng(0)
    X = sparse.random_array((2000, 20_000), density=0.01, rng=rng, format="csr")
    return X, X[:, :200] @ rng.normal(size=200) + 0.3 * rng.normal(size=2000)


def load_file(name: str, rows: str = "X", target: str = "y", most: int = 10**9) -> Any:
    """Return a loader of a file of the shared data, which returns nothing where it is absent."""

    def load() -> Table | None:
        if not (SHARED / f"{name}.npz").exists():
            return None
        found = np.load(SHARED / f"{name}.npz")
        X, y = found[rows][:most].astype(float), found[target][:most]
        return X.reshape(len(X), -1), np.log(y) if name == "ames_housing" else y

    return load


def list_tables() -> dict[str, tuple[bool, Callable[[], Table | None]]]:
    """Name to whether the target is a class, and the table."""

    def bundled(name: str) -> Callable[[], Any]:
        return lambda: getattr(datasets, f"load_{name}")(return_X_y=True)

    quantities = {
        "diabetes": bundled("diabetes"),
        "yacht": load_file("uci_yacht"),
        "energy": load_file("uci_energy"),
        "ames housing": load_file("ames_housing", "X_num"),
        "kin8nm": load_file("uci_kin8nm"),
        "power": load_file("uci_power"),
        "naval": load_file("uci_naval"),
        "california housing": load_file("california_housing"),
        "made, tall": make_linear(50_000, 100, 20),
        "made, correlated": make_linear(500, 1000, 30, 0.9),
        "made, wide": make_linear(200, 50_000, 10),
        "made, sparse": make_sparse,
    }
    classes = {
        "iris": bundled("iris"),
        "wine": bundled("wine"),
        "breast cancer": bundled("breast_cancer"),
        "digits": bundled("digits"),
        "colon": load_file("colon_discrete"),
        "leukemia": load_file("leukemia_allaml"),
        "khan": load_file("khan_srbct", "X_train", "y_train"),
        "madelon": load_file("madelon"),
        "ijcnn1": load_file("ijcnn1", "X_train", "y_train"),
        "mnist, 2000 rows": load_file("mnist", "x_train", "y_train", 2000),
        "news, 2 of 4 groups": lambda: load_news(3, 2000, 4),
    }
    made = {name: (False, load) for name, load in quantities.items()}
    return made | {name: (True, load) for name, load in classes.items()}


def measure_fit(
    limit: int, make: Callable[[], Any], parts: list[Any], classify: bool, out: Any
) -> None:
    """Send test error and CPU seconds of one fit, or end after ``limit`` of them."""
    warnings.simplefilter("ignore")
    used = int(time.process_time())
    resource.setrlimit(resource.RLIMIT_CPU, (used + limit, used + limit + 5))
    A, B, y, truth = parts
    start = time.process_time()
    model = make().fit(A, y)
    seconds = time.process_time() - start
    if classify:
        error = log_loss(truth, model.predict_proba(B), labels=model.classes_)
    else:
        error = mean_squared_error(truth, model.predict(B))
    out.send((float(error), seconds))


def run_apart(*arguments: Any) -> tuple[float, float] | None:
    """Return what :func:`measure_fit` sends, or nothing after its limit or an error."""
    context = multiprocessing.get_context("fork")
    here, there = context.Pipe(duplex=False)
    process = context.Process(target=measure_fit, args=(*arguments, there))
    process.start()
    there.close()
    try:
        return here.recv()
    except EOFError:
        return None
    finally:
        process.kill()
        process.join()


def compare_table(name: str, classify: bool, table: Table, limit: int) -> Iterator[str]:
    """Yield a row of each pair of estimators, of raw columns and of scaled ones."""
    X, y = table
    test = min(len(y) // 5, 5000)
    kept: Any = {"random_state": 0, "test_size": test, "stratify": y if classify else None}
    raw = train_test_split(X, y, **kept)
    scaler = StandardScaler(with_mean=not sparse.issparse(X)).fit(raw[0])
    scaled = [scaler.transform(raw[0]), scaler.transform(raw[1]), *raw[2:]]
    for kind, parts in {"raw": raw, "scaled": scaled}.items():
        if kind == "scaled" and sparse.issparse(X):
            continue
        for pair, makes in (CLASSIFICATION if classify else REGRESSION).items():
            if pair == "logistic, l1" and len(np.unique(y)) > 2:
                continue
            theirs, ours = (run_apart(limit, make, parts, classify) for make in makes)
            cells = [name, f"{X.shape[0]} x {X.shape[1]}", kind, pair]
            for found in (theirs, ours):
                cells += (
                    ["", f"> {limit}"]
                    if found is None
                    else [
                        f"{found[0]:.4g}",
                        f"{found[1]:.2f}",
                    ]
                )
            cells.append(f"{ours[0] / theirs[0]:.3f}" if ours and theirs else "")
            yield "| " + " | ".join(cells) + " |"


def main() -> None:
    """Print one row for each table, kind of columns and pair of estimators."""
    parser = argparse.ArgumentParser(description="Many tables, beside scikit-learn.")
    parser.add_argument("--only", nargs="*")
    parser.add_argument("--limit", type=int, default=60)
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    print("| table | shape | columns | model | error | s | ours, error | s | ratio |")
    print("|---|---|---|---|---:|---:|---:|---:|---:|")
    for name, (classify, load) in list_tables().items():
        if (args.only and name not in args.only) or (table := load()) is None:
            continue
        for row in compare_table(name, classify, table, args.limit):
            print(row, flush=True)


if __name__ == "__main__":
    main()
