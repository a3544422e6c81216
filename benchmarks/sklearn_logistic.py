"""Logistic regression that tunes itself beside LogisticRegressionCV: seconds and what they buy.

    OMP_NUM_THREADS=1 python -m benchmarks.sklearn_logistic [--fine] [--lasso] [--only digits khan]

CPU seconds of a whole fit, ours first cold and then warm. ``gap``: how far the loss on the same
folds, solved to 1e-10 at the penalty that each chose, is above the best of a refined search. With
``--fine`` LogisticRegressionCV takes as many ``Cs`` (doubled from 10) as bring its gap below 1e-4.
``--lasso``: HypergradLasso beside LassoCV on wide tables, dense and sparse.
"""

import argparse
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from scipy import sparse
from sklearn.datasets import load_breast_cancer, load_digits
from sklearn.linear_model import LassoCV, LogisticRegression, LogisticRegressionCV
from sklearn.metrics import log_loss
from sklearn.model_selection import StratifiedKFold
from sklearn.preprocessing import StandardScaler, normalize

from bilevel.sklearn import HypergradLasso, HypergradLogisticRegression

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"
Table = tuple[Any, np.ndarray]


def make_binary(rng: np.random.Generator) -> Table:
    """Make 2000 x 123 columns of 0 and 1, two classes, as of census data."""
    X = (rng.uniform(size=(2000, 123)) < rng.uniform(0.02, 0.5, 123)).astype(float)
    score = X @ rng.normal(size=123) * 0.5
    return X, (score - np.median(score) + rng.logistic(size=2000) > 0).astype(int)


def make_classes(rng: np.random.Generator) -> Table:
    """Make 500 x 16, ten classes about their own means."""
    labels = rng.integers(0, 10, 500)
    return 1.2 * rng.normal(size=(10, 16))[labels] + rng.normal(size=(500, 16)), labels


def make_scores(rng: np.random.Generator) -> Table:
    """Make 1000 x 54, seven classes by noisy linear scores."""
    X = rng.normal(size=(1000, 54))
    scores = X @ rng.normal(size=(54, 7)) * 0.4
    return X, (scores + rng.gumbel(size=(1000, 7))).argmax(1)


def make_wide(rng: np.random.Generator, n: int, d: int, classes: int) -> Table:
    """Make ``n x d`` rows of which a fiftieth of the columns differ by class."""
    labels = np.arange(n) % classes
    means = rng.normal(size=(classes, d)) * (rng.uniform(size=d) < 0.02)
    return means[labels] + rng.normal(size=(n, d)), labels


def load_khan() -> Table | None:
    """Gene expression, 63 x 2308, four classes; nothing where the file is absent."""
    if not (SHARED / "khan_srbct.npz").exists():
        return None
    found = np.load(SHARED / "khan_srbct.npz")
    return StandardScaler().fit_transform(found["X_train"].astype(float)), found["y_train"]


def load_news(least: int, rows: int, classes: int) -> Table | None:
    """Words of newsgroups, sparse; ``least`` texts for a word; nothing where the file is absent."""
    if not (SHARED / "newsgroups20_counts.npz").exists():
        return None
    z = np.load(SHARED / "newsgroups20_counts.npz")
    parts = (z["X_train_data"].astype(float), z["X_train_indices"].astype("int32"))
    X: Any = sparse.csr_matrix((*parts, z["X_train_indptr"]), shape=tuple(z["X_train_shape"]))
    chosen = np.flatnonzero((z["y_train"] >= 1) & (z["y_train"] <= classes))[:rows]
    X, y = X[chosen], z["y_train"][chosen]
    used = np.flatnonzero(np.asarray((X > 0).sum(0)).ravel() >= least)
    rows: Any = normalize(X[:, used].log1p())
    return rows.tocsr(), y if classes > 4 else (y > 2).astype(int)


def list_tables() -> dict[str, Callable[[], Table | None]]:
    """Name to table."""

    def rng() -> np.random.Generator:
        return np.random.default_rng(0)

    loaded: list[Any] = [load_digits(return_X_y=True), load_breast_cancer(return_X_y=True)]
    (digits, labels), (cancer, kind) = loaded
    scale = StandardScaler().fit_transform
    return {
        "binary": lambda: make_binary(rng()),
        "classes": lambda: make_classes(rng()),
        "scores": lambda: make_scores(rng()),
        "wide, 4 classes": lambda: make_wide(rng(), 40, 4434, 4),
        "wide, 2 classes": lambda: make_wide(rng(), 81, 5966, 2),
        "khan": load_khan,
        "breast cancer": lambda: (scale(cancer), kind),
        "digits": lambda: (scale(digits[:300]), labels[:300]),
        "news": lambda: load_news(3, 2000, 4),
        "news, 19 classes": lambda: load_news(5, 4000, 19),
    }


def find_loss(X: Any, y: np.ndarray, C: float) -> float:
    """Return the log-loss over five folds of scikit-learn's fits, solved to 1e-10."""
    losses = []
    for train, held in StratifiedKFold(5).split(X, y):
        solver = "newton-cg"  # lbfgs ends early where folds are all but separable
        fit = LogisticRegression(C=C, tol=1e-10, max_iter=10**4, solver=solver)
        fit.fit(X[train], y[train])
        losses.append(log_loss(y[held], fit.predict_proba(X[held]), labels=fit.classes_))
    return float(np.mean(losses))


def time_fit(model: Any, X: Any, y: np.ndarray) -> tuple[Any, float]:
    """Fit; the model and its CPU seconds."""
    start = time.process_time()
    return model.fit(X, y), time.process_time() - start


def compare_lasso() -> None:
    """Print HypergradLasso beside LassoCV on wide tables."""
    rng = np.random.default_rng(0)
    found = SHARED / "leukemia_allaml.npz"
    tables: dict[str, Table] = {}
    if found.exists():
        z = np.load(found)
        matrix = next(z[k] for k in z if z[k].ndim == 2 and z[k].shape[1] == 7129)
        labels = next(z[k] for k in z if z[k].shape == (len(matrix),))
        tables["leukemia 38"] = matrix[:38].astype(float), labels[:38].astype(float)
    A = sparse.random_array((200, 30_000), density=0.01, rng=rng, format="csr")
    tables["sparse 200 x 30 000"] = A, A[:, :20] @ rng.normal(size=20) + 0.1 * rng.normal(size=200)
    print("| table | HypergradLasso, s | loss | LassoCV, s | loss |\n|---|---:|---:|---:|---:|")
    for name, (X, y) in tables.items():
        model, ours = time_fit(HypergradLasso(), X, y)
        other, theirs = time_fit(LassoCV(), X, y)
        loss = other.mse_path_.mean(1).min()
        print(f"| {name} | {ours:.2f} | {model.cv_loss_:.5g} | {theirs:.2f} | {loss:.5g} |")


def main() -> None:
    parser = argparse.ArgumentParser(description="Seconds beside LogisticRegressionCV and LassoCV.")
    parser.add_argument("--only", nargs="*")
    parser.add_argument("--fine", action="store_true")
    parser.add_argument("--lasso", action="store_true")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    if args.lasso:
        compare_lasso()
        return
    print(
        "| table | shape | classes | cold, s | warm, s | gap | Cs | LogisticRegressionCV, s | gap |"
    )
    print("|---|---|---:|---:|---:|---:|---:|---:|---:|")
    for name, load in list_tables().items():
        if (args.only and name not in args.only) or (table := load()) is None:
            continue
        X, y = table
        model, cold = time_fit(HypergradLogisticRegression(), X, y)
        _, warm = time_fit(HypergradLogisticRegression(), X, y)
        own = find_loss(X, y, model.C_)
        options: Any = {"scoring": "neg_log_loss", "use_legacy_attributes": False}
        options["l1_ratios"], count = (0,), 10
        while True:
            other: Any = LogisticRegressionCV(Cs=count, max_iter=10**4, **options)
            other, seconds = time_fit(other, X, y)
            gap = find_loss(X, y, float(np.ravel(other.C_)[0])) / min(own, model.cv_loss_) - 1
            if not args.fine or gap < 1e-4 or count > 100:
                break
            count *= 2
        row = f"| {name} | {X.shape[0]} x {X.shape[1]} | {len(np.unique(y))} | {cold:.2f} "
        row += f"| {warm:.2f} | {own / min(own, model.cv_loss_) - 1:.1e} "
        print(row + f"| {count} | {seconds:.2f} | {gap:.1e} |", flush=True)


if __name__ == "__main__":
    main()
