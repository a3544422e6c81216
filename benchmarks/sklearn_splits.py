"""Log-loss of classifiers that tune themselves beside LogisticRegressionCV, over many splits.

    OPENBLAS_NUM_THREADS=1 python -m benchmarks.sklearn_splits [--splits 20] [--only wine colon]

Small tables whose folds a plane can separate, where one split says little. A fifth of the rows
test, drawn anew for each split; all models see the same rows. ``theirs``: LogisticRegressionCV
with its default grid, ``liblinear`` for l1; ``difference`` of the mean log-losses, ours less
theirs, with its standard error over splits; ``accuracy``: ours, theirs; ``alpha``: geometric means.
"""

import argparse
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
from sklearn.metrics import log_loss
from sklearn.model_selection import train_test_split
from sklearn.preprocessing import StandardScaler

from benchmarks.sklearn_tables import CLASSIFICATION, list_tables
from bilevel.sklearn import HypergradLogisticRegression, HypergradSparseLogisticRegression

TABLES = "wine", "breast cancer", "colon", "leukemia", "khan"
OURS: dict[str, tuple[Callable[..., Any], dict[str, Any]]] = {
    "logistic": (HypergradLogisticRegression, {}),
    "logistic, one standard error": (
        HypergradLogisticRegression,
        {"choose": "one_standard_error"},
    ),
    "logistic, l1": (HypergradSparseLogisticRegression, {}),
    "logistic, l1, one standard error": (
        HypergradSparseLogisticRegression,
        {"choose": "one_standard_error"},
    ),
}


def score_split(models: dict[str, Any], parts: list[Any]) -> dict[str, tuple[float, float, float]]:
    """Return log-loss, accuracy and penalty of each model on one split."""
    A, B, y, truth = parts
    scores = {}
    for name, model in models.items():
        model.fit(A, y)
        loss = log_loss(truth, model.predict_proba(B), labels=model.classes_)
        accuracy = float(np.mean(model.predict(B) == truth))
        scores[name] = loss, accuracy, float(1 / np.ravel(model.C_)[0])
    return scores


def compare_splits(name: str, X: Any, y: np.ndarray, splits: int, scaled: bool) -> None:
    """Print the rows of one table."""
    kinds = ["logistic", "logistic, l1"][: 1 if len(np.unique(y)) > 2 else 2]
    found: dict[str, list[tuple[float, float, float]]] = {}
    for seed in range(splits):
        kept: Any = {"random_state": seed, "test_size": len(y) // 5, "stratify": y}
        parts = train_test_split(X, y, **kept)
        if scaled:
            scaler = StandardScaler().fit(parts[0])
            parts = [scaler.transform(parts[0]), scaler.transform(parts[1]), *parts[2:]]
        models = {f"theirs, {kind}": CLASSIFICATION[kind][0]() for kind in kinds}
        for kind, (make, options) in OURS.items():
            if any(kind in (k, f"{k}, one standard error") for k in kinds):
                models[kind] = make(**options)
        for kind, score in score_split(models, parts).items():
            found.setdefault(kind, []).append(score)
    for kind in OURS:
        if kind not in found:
            continue
        ours = np.array(found[kind])
        theirs = np.array(found["theirs, " + kind.replace(", one standard error", "")])
        gap = ours[:, 0] - theirs[:, 0]
        error = gap.std(ddof=1) / np.sqrt(len(gap))
        cells = [name, "scaled" if scaled else "raw", kind]
        cells += [f"{ours[:, 0].mean():.4f}", f"{theirs[:, 0].mean():.4f}"]
        cells += [f"{gap.mean():.4f} ± {error:.4f}", f"{(gap > 0).sum()} of {len(gap)}"]
        cells += [f"{ours[:, 1].mean():.3f}, {theirs[:, 1].mean():.3f}"]
        cells += [f"{np.exp(np.log(part[:, 2]).mean()):.2g}" for part in (ours, theirs)]
        print("| " + " | ".join(cells) + " |", flush=True)


def main() -> None:
    """Print one row for each table, kind of columns and model."""
    parser = argparse.ArgumentParser(description="Log-loss over many splits of small tables.")
    parser.add_argument("--splits", type=int, default=20)
    parser.add_argument("--only", nargs="*", default=TABLES)
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    print(
        "| table | columns | model | log-loss | theirs | difference | worse | accuracy | alpha "
        "| theirs |\n|---|---|---|---:|---:|---:|---:|---:|---:|---:|"
    )
    tables = list_tables()
    for name in args.only:
        if (table := tables[name][1]()) is None:
            continue
        for scaled in (False, True):
            compare_splits(name, *table, args.splits, scaled)


if __name__ == "__main__":
    main()
