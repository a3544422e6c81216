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
from tasks.models.estimators import KernelCore, LinearCore, TabularClassifier, TabularRegressor

Model = TabularRegressor | TabularClassifier
FORMAT = 1
ABOUT, ARRAYS = "model.json", "arrays.npz"
_CORES: dict[str, type[LinearCore] | type[KernelCore]] = {
    "linear": LinearCore,
    "kernel": KernelCore,
}


def save_model(model: Model, folder: Path) -> None:
    """Write the model into ``folder``, which is made where it is absent."""
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
    folder.mkdir(parents=True, exist_ok=True)
    np.savez(folder / ARRAYS, kept=features.kept, powers=features.powers, **arrays)
    text = json.dumps(about, indent=2, allow_nan=False) + "\n"
    (folder / ABOUT).write_text(text, encoding="utf-8")


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
        return _rebuild(about, read_arrays(folder / ARRAYS, compressed=False))
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError) as error:
        raise ValueError(f"{folder}: this is no model of this program: {error!r}.") from error


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
    classes = tuple(about["classes"])
    if not all(isinstance(label, str | int | float) for label in classes) or len(classes) < 2:
        raise ValueError(f"its classes are {classes!r}")
    return TabularClassifier(columns, features, core, target, classes, bool(about["log_odds"]))
