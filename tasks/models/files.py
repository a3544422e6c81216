"""A model as two files, ``model.json`` and ``arrays.npz``: numbers and texts, no pickle."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.preprocessing import PolynomialFeatures

from tasks.datasets.archives import read_arrays
from tasks.datasets.columns import Column
from tasks.datasets.features import Features, Scale
from tasks.datasets.images import Pixels
from tasks.datasets.sparse import WEIGHTINGS, Words
from tasks.models.estimators import KernelCore, LinearCore, TabularClassifier, TabularRegressor
from tasks.models.rows import RowsClassifier

Model = TabularRegressor | TabularClassifier | RowsClassifier
Written = tuple[dict[str, Any], dict[str, np.ndarray]]
FORMAT = 1
_ODD = (ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RecursionError)
ABOUT, ARRAYS = "model.json", "arrays.npz"
_CORES: dict[str, type[LinearCore] | type[KernelCore]] = {
    "linear": LinearCore,
    "kernel": KernelCore,
}


def save_model(model: Model, folder: Path) -> None:
    """Write the model into ``folder``, which is made where it is absent."""
    about, arrays = _rows(model) if isinstance(model, RowsClassifier) else _table(model)
    folder.mkdir(parents=True, exist_ok=True)
    np.savez(folder / ARRAYS, **arrays)  # pyright: ignore[reportArgumentType]
    text = json.dumps(about, indent=2, allow_nan=False) + "\n"
    (folder / ABOUT).write_text(text, encoding="utf-8")


def _rows(model: RowsClassifier) -> Written:
    prepare = model.prepare
    about = {"format": FORMAT, "kind": "rows", "classes": list(model.classes)}
    about |= {"log_odds": model.log_odds, "layers": len(model.layers)}
    arrays = {f"W{i}": W for i, (W, _) in enumerate(model.layers)}
    arrays |= {f"b{i}": b for i, (_, b) in enumerate(model.layers)}
    if isinstance(prepare, Pixels):
        return about | {"pixels": dataclasses.asdict(prepare)}, arrays
    words = {name: getattr(prepare, name) for name in ("how", "width", "inputs")}
    return about | {"words": words}, arrays | {"kept": prepare.kept, "factors": prepare.factors}


def _table(model: TabularRegressor | TabularClassifier) -> Written:
    features, core = model.features, model.core
    about = {
        "format": FORMAT,
        "kind": "classification" if isinstance(model, TabularClassifier) else "regression",
        "target": model.target,
        "classes": list(model.classes) if isinstance(model, TabularClassifier) else [],
        "log_odds": getattr(model, "log_odds", False),
        "columns": [dataclasses.asdict(column) for column in model.columns],
        "degree": int(features.expansion.degree),
        "clip": None if np.isinf(features.clip) else float(features.clip),
        "names": list(features.names),
        "dropped": list(features.dropped),
        "core": next(name for name, kind in _CORES.items() if isinstance(core, kind)),
    }
    arrays = {f"core_{f.name}": getattr(core, f.name) for f in dataclasses.fields(core)}
    for name in ("raw", "scale"):
        scale = getattr(features, name)
        arrays |= {f"{name}_mean": scale.mean, f"{name}_spread": scale.spread}
    return about, arrays | {"kept": features.kept, "powers": features.powers}


def load_model(folder: str | Path) -> Model:
    """Return the fitted estimator in the folder ``model/`` of a run, with ``predict``.

    Raises
    ------
    ValueError : there is none, or its files are not what was written.

    Examples
    --------
    >>> import tempfile
    >>> from tasks.models import load_model, save_model
    >>> from tasks.ridge import ridge
    >>> task = ridge({"degree": 1})
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save_model(task.model(task.hyper, task.params), Path(folder))
    ...     load_model(folder).n_features_in_
    10
    """
    folder = Path(folder)
    place = folder / ABOUT
    if not place.is_file():
        raise ValueError(f"{folder}: there is no model here, {ABOUT} is missing.")
    try:
        about = json.loads(place.read_text(encoding="utf-8"))
        if about["format"] != FORMAT:
            raise ValueError(f"it has format {about['format']}, this version reads {FORMAT}")
        rebuild = _rebuild_rows if about["kind"] == "rows" else _rebuild
        return rebuild(about, read_arrays(folder / ARRAYS, compressed=False))
    except _ODD as error:
        raise ValueError(f"{folder}: this is no model of this program: {error!r}.") from error


def _rebuild_rows(about: dict[str, Any], arrays: dict[str, np.ndarray]) -> RowsClassifier:
    if "pixels" in about:
        prepare: Pixels | Words = Pixels(**about["pixels"])
        width = (int(prepare.side) // int(prepare.pool)) ** 2
    else:
        prepare = Words(arrays["kept"], arrays["factors"], **about["words"])
        width = len(prepare.kept)
        if prepare.how not in WEIGHTINGS or prepare.factors.shape != prepare.kept.shape:
            raise ValueError(f"its weighting is {prepare.how!r}")
    layers = tuple((arrays[f"W{i}"], arrays[f"b{i}"]) for i in range(int(about["layers"])))
    for W, b in layers:
        if W.ndim != 2 or b.shape != W.shape[1:] or W.shape[0] != width:
            raise ValueError(f"its layers do not fit together: {[W.shape for W, _ in layers]}")
        width = W.shape[1]
    classes = _classes(about)
    if width not in (len(classes), 1 if len(classes) == 2 else len(classes)) or not layers:
        raise ValueError(f"it has {width} scores of {len(classes)} classes")
    return RowsClassifier(prepare, layers, classes, bool(about["log_odds"]))


def _classes(about: dict[str, Any]) -> tuple[Any, ...]:
    classes = tuple(about["classes"])
    if not all(isinstance(label, str | int | float) for label in classes) or len(classes) < 2:
        raise ValueError(f"its classes are {classes!r}")
    return classes


def _rebuild(about: dict[str, Any], arrays: dict[str, np.ndarray]) -> Model:
    columns = tuple(
        Column(**{**column, "levels": tuple(map(str, column["levels"]))})
        for column in about["columns"]
    )
    width = sum(len(column.names) for column in columns)
    if about["degree"] not in (1, 2):
        raise ValueError(f"its degree is {about['degree']!r}")
    expansion = PolynomialFeatures(about["degree"], include_bias=False)
    features = Features(
        Scale(arrays["raw_mean"], arrays["raw_spread"]),
        np.inf if about["clip"] is None else float(about["clip"]),
        expansion.fit(np.zeros((1, width))),
        arrays["kept"],
        Scale(arrays["scale_mean"], arrays["scale_spread"]),
        tuple(map(str, about["names"])),
        arrays["powers"],
        tuple(map(str, about["dropped"])),
    )
    kind = _CORES[about["core"]]
    core = kind(**{f.name: arrays[f"core_{f.name}"] for f in dataclasses.fields(kind)})
    inputs = core.weights if isinstance(core, LinearCore) else core.scales
    shapes = len(features.raw.mean), len(features.names), len(inputs), len(features.kept)
    if shapes != (width, *[len(features.scale.mean)] * 3):
        raise ValueError(f"its arrays do not fit together: {shapes}")
    target = str(about["target"])
    if about["kind"] == "regression":
        return TabularRegressor(columns, features, core, target)
    labels, odds = _classes(about), bool(about["log_odds"])
    return TabularClassifier(columns, features, core, target, labels, odds)
