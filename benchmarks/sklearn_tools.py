"""Test error and CPU seconds of the self-tuning estimators beside scikit-learn's and Optuna.

    OMP_NUM_THREADS=1 python -m benchmarks.sklearn_tools [--seeds 3] [--rows 300] [--only wine]

At most `rows` rows, and half of a table, train, up to 2000 others test; columns are standardised
on the training rows, regression tables of at most 16 columns get their squares and products.
Errors are ratios to RidgeCV's (squared error) or LogisticRegressionCV's (log-loss), means over
seeds. Cold is the first fit of a shape in the process, compilation included (no cache on disk);
warm the later.
"""

import argparse
import time
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from sklearn import datasets
from sklearn.linear_model import LassoCV, LogisticRegression, LogisticRegressionCV, Ridge, RidgeCV
from sklearn.metrics import log_loss, mean_squared_error
from sklearn.model_selection import GridSearchCV, KFold, StratifiedKFold, cross_val_score
from sklearn.preprocessing import PolynomialFeatures, StandardScaler

from bilevel.sklearn import (
    HypergradElasticNet,
    HypergradLasso,
    HypergradLogisticRegression,
    HypergradRidge,
)

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"
REGRESSION = ("diabetes", "uci_energy", "uci_yacht", "uci_kin8nm", "uci_power")
REGRESSION += ("california_housing", "ames_housing", "sparse truth")
CLASSIFICATION = ("breast_cancer", "wine", "digits", "ijcnn1")
GRID = np.logspace(-4, 5, 60)


def table(name: str, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray] | None:
    """``X, y``, or nothing where the file is absent."""
    if name == "sparse truth":  # three columns of sixty matter
        X = rng.normal(size=(3000, 60))
        return X, X[:, :3] @ [1.0, -1.0, 1.0] + rng.normal(size=3000)
    if hasattr(datasets, f"load_{name}"):
        return getattr(datasets, f"load_{name}")(return_X_y=True)
    if not (SHARED / f"{name}.npz").exists():
        return None
    found = np.load(SHARED / f"{name}.npz")
    if name == "ijcnn1":
        return found["X_train"], found["y_train"]
    y = found["y"]
    return found["X_num" if name == "ames_housing" else "X"], np.log(y) if y.min() > 1e3 else y


def prepared(name: str, seed: int, rows: int) -> Any:
    """Training and test parts, or nothing."""
    rng = np.random.default_rng(seed)
    if (found := table(name, rng)) is None:
        return None
    X, y = found
    order = rng.permutation(len(y))
    n = min(rows, len(y) // 2)
    train, test = order[:n], order[n : n + 2000]
    A, B = X[train].astype(float), X[test].astype(float)
    if name in REGRESSION and X.shape[1] <= 16:
        squares = PolynomialFeatures(2, include_bias=False).fit(A)
        A, B = squares.transform(A), squares.transform(B)
    scaler = StandardScaler().fit(A)
    A, B = (np.clip(scaler.transform(part), -5, 5) for part in (A, B))
    return A, y[train], B, y[test]


def searched(model: Callable, cv: Any, scoring: str) -> Callable:
    """Optuna, 100 trials over one penalty, then the fit."""

    def fit(X: np.ndarray, y: np.ndarray) -> Any:
        def loss(trial: Any) -> float:
            alpha = trial.suggest_float("alpha", GRID[0], GRID[-1], log=True)
            return cross_val_score(model(alpha), X, y, cv=cv, scoring=scoring).mean()

        study = optuna.create_study(
            direction="maximize", sampler=optuna.samplers.TPESampler(seed=0)
        )
        study.optimize(loss, n_trials=100)
        return model(study.best_params["alpha"]).fit(X, y)

    return fit


def tools(classify: bool) -> dict[str, Callable]:
    """Name to ``fit(X, y) -> model``; the first is the base."""
    if classify:
        cv, scoring = StratifiedKFold(5, shuffle=True, random_state=0), "neg_log_loss"

        def logistic(alpha: float) -> LogisticRegression:
            return LogisticRegression(C=1 / alpha, max_iter=1000)

        grid = {"C": np.logspace(-4, 4, 10)}
        many = {"max_iter": 1000, "scoring": scoring, "use_legacy_attributes": False}
        return {
            "LogisticRegressionCV": LogisticRegressionCV(cv=cv, l1_ratios=(0,), **many).fit,
            "LogisticRegressionCV, tol 1e-8": LogisticRegressionCV(
                cv=cv, l1_ratios=(0,), tol=1e-8, **{**many, "max_iter": 10**5}
            ).fit,
            "GridSearchCV (10)": GridSearchCV(logistic(1.0), grid, cv=cv, scoring=scoring).fit,
            "Optuna (100)": searched(logistic, cv, scoring),
            "Hypergrad, one": HypergradLogisticRegression(cv=cv).fit,
            "Hypergrad, per feature": HypergradLogisticRegression("per_feature", cv=cv).fit,
        }
    cv, scoring = KFold(5, shuffle=True, random_state=0), "neg_mean_squared_error"
    grid = {"alpha": GRID}
    return {
        "RidgeCV (60, leave-one-out)": RidgeCV(GRID).fit,
        "GridSearchCV (60)": GridSearchCV(Ridge(), grid, cv=cv, scoring=scoring).fit,
        "LassoCV (100)": LassoCV(cv=cv, max_iter=10**4).fit,
        "Optuna (100)": searched(Ridge, cv, scoring),
        "Hypergrad, one": HypergradRidge(cv=cv).fit,
        "Hypergrad, leave-one-out": HypergradRidge(cv="loo").fit,
        "Hypergrad, per feature": HypergradRidge("per_feature", cv=cv).fit,
        "Hypergrad, per feature, no guard": HypergradRidge("per_feature", cv=cv, guard=False).fit,
        "HypergradLasso": HypergradLasso(cv=cv).fit,
        "HypergradElasticNet": HypergradElasticNet(cv=cv).fit,
    }


def rows_of(name: str, seeds: int, rows: int) -> Iterator[tuple[str, float, float, float]]:
    """``(tool, error ratio, cold, warm)``, seconds of CPU."""
    classify = name in CLASSIFICATION
    errors, seconds = defaultdict(list), defaultdict(list)
    for seed in range(seeds):
        if (parts := prepared(name, seed, rows)) is None:
            return
        A, y, B, truth = parts
        for tool, fit in tools(classify).items():
            for _ in range(2 if seed == 0 else 1):
                start = time.process_time()
                model = fit(A, y)
                seconds[tool].append(time.process_time() - start)
            if classify:
                errors[tool].append(log_loss(truth, model.predict_proba(B), labels=np.unique(y)))
            else:
                errors[tool].append(mean_squared_error(truth, model.predict(B)))
    base = np.array(next(iter(errors.values())))
    for tool, found in errors.items():
        times = seconds[tool]
        yield tool, float(np.mean(found / base)), times[0], float(np.median(times[1:]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rows", type=int, default=300)
    parser.add_argument("--only", nargs="*", default=[*REGRESSION, *CLASSIFICATION])
    args = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    warnings.simplefilter("ignore")
    print("| data | tool | test error, ratio | cold, CPU s | warm, CPU s |")
    print("|---|---|---:|---:|---:|")
    for name in args.only:
        for tool, error, cold, warm in rows_of(name, args.seeds, args.rows):
            print(f"| {name} | {tool} | {error:.3f} | {cold:.2f} | {warm:.3f} |", flush=True)


if __name__ == "__main__":
    main()
