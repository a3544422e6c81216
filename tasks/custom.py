"""A user's own problem: any importable function, or a table."""

import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

import bilevel as bl
from tasks.base import Metrics, PyTree, Task
from tasks.datasets import openml
from tasks.datasets.files import Wanted, is_file_name, read
from tasks.datasets.tables import BUNDLED, SHARED
from tasks.datasets.tabular import NAMES
from tasks.lasso import lasso
from tasks.logistic import logistic
from tasks.parts.penalty import Groups
from tasks.ridge import ridge

RETURNS = "a tasks.base.Task, or (bl.Problem, bl.Data, hyper, params)"
KINDS = {"regression": "ridge", "classification": "logistic"}
FAMILIES: dict[str, Callable[..., Task]] = {
    "ridge": ridge,
    "logistic": logistic,
    "lasso": lasso,
    "elastic_net": partial(lasso, kind="elastic_net"),
}


def custom(
    function: str | None = None,
    data: str = "diabetes",
    *,
    kind: str | None = None,
    family: str | None = None,
    penalty: Groups | None = None,
    settings: Mapping[str, Any] | None = None,
    seed: int = 0,
    **table: Any,
) -> Task:
    """Return the task of your function, or without one a linear model for your table.

    Parameters
    ----------
    function : ``package.module:name``, or ``path/to/file.py:name``; called with ``settings`` as
        keywords, and with ``seed`` if it takes one. It returns a :class:`tasks.base.Task`, or
        ``(problem, data, hyper, params)`` as for :func:`bilevel.tune`.
    data : without a function: a table as for :func:`tasks.datasets.tables.load`.
    kind : ``"regression"`` (:func:`tasks.ridge.ridge`) or ``"classification"``
        (:func:`tasks.logistic.logistic`); by default that of the set, for a csv or parquet file
        classification if the target is text or has two values.
    family : without a function: ``"ridge"``, ``"lasso"``, ``"elastic_net"`` or ``"logistic"``; by
        default that of ``kind``.
    penalty : without a function: as for the family's task; by default one per input, of classes
        one.
    settings : keywords of the function; without one, of the family's task, or of its table.
    table : without a function: what else :class:`tasks.datasets.tabular.Tabular` knows, such as
        ``target``, ``drop``, ``columns``, ``groups``, ``folds`` and ``outer``.

    Raises
    ------
    ValueError : no such function, or one that returns something else; bad data.

    Examples
    --------
    >>> from tasks.custom import custom
    >>> custom("tasks.ridge:ridge", settings={"table": {"degree": 1}}).params.shape
    (5, 10)
    """
    given = dict(settings or {})
    if function is None:
        return _linear(data, kind, family, penalty, given, table | {"seed": seed})
    make = _find(function)
    accepted = inspect.signature(make).parameters
    if "seed" in accepted:
        given.setdefault("seed", seed)
    try:
        inspect.signature(make).bind(**given)
    except TypeError as error:
        raise ValueError(f"{function} cannot be called with {given}: {error}.") from error
    made = make(**given)
    if isinstance(made, Task):
        return made
    if not (isinstance(made, tuple) and len(made) == 4 and isinstance(made[0], bl.Problem)):
        found = type(made).__name__ + (f" of {len(made)}" if isinstance(made, tuple) else "")
        raise ValueError(f"{function} returned {found}: expected {RETURNS}.")
    return _task(function, *made)


def _linear(
    data: str,
    kind: str | None,
    family: str | None,
    penalty: Groups | None,
    given: dict[str, Any],
    table: dict[str, Any],
) -> Task:
    """Return the task of a linear model of the family that was asked for, or that suits."""
    if kind is not None and kind not in KINDS:
        raise ValueError(f"kind={kind!r} must be one of {', '.join(KINDS)}.")
    if family is not None and family not in FAMILIES:
        raise ValueError(f"family={family!r} must be one of {', '.join(FAMILIES)}.")
    rows = {"data": data} | {name: value for name, value in table.items() if value is not None}
    rows |= {name: given.pop(name) for name in NAMES & given.keys()} | given.pop("table", {})
    family = family or KINDS[kind or _kind(data, table)]
    how: dict[str, Any] = {"penalty": "global" if family == "logistic" else "per_input"} | given
    return FAMILIES[family](rows, **how if penalty is None else how | {"penalty": penalty})


def _kind(data: str, table: Mapping[str, Any]) -> str:
    """Return the kind of a named set, or what the target of a table looks like."""
    if data in BUNDLED | SHARED:
        return (BUNDLED | SHARED)[data]
    if data.startswith(openml.PREFIX) or not is_file_name(data):
        return "regression"
    y = read(Path(data), Wanted(table.get("target"))).y
    if y.dtype.kind == "b":
        return "classification"
    if y.dtype.kind in "iuf":
        return (
            "classification" if len(np.unique(y[~np.isnan(y.astype(float))])) == 2 else "regression"
        )
    return "classification"


def _find(name: str) -> Callable[..., Any]:
    place, _, attribute = name.rpartition(":")
    if not place or not attribute:
        raise ValueError(
            f"function={name!r}: write package.module:name or path/to/file.py:name, the name of a "
            f"function that returns {RETURNS}."
        )
    module = _module(place, name)
    found = getattr(module, attribute, None)
    if not callable(found):
        known = [n for n, value in vars(module).items() if callable(value) and n[0] != "_"]
        raise ValueError(
            f"function={name!r}: {place} has no function {attribute!r}. It has "
            f"{', '.join(known) or 'none'}."
        )
    return found


def _module(place: str, name: str) -> Any:
    if not place.endswith(".py"):
        try:
            return importlib.import_module(place)
        except ModuleNotFoundError as error:
            raise ValueError(
                f"function={name!r}: {error}. Start the command in the folder that the module is "
                "in, or give the path of the file: path/to/file.py:name."
            ) from error
    path = Path(place).resolve()
    if not path.is_file():
        raise ValueError(f"function={name!r}: the file {path} does not exist.")
    title = f"custom task {path}"
    if title not in sys.modules:  # one module for all seeds: equal functions, one program
        spec = importlib.util.spec_from_file_location(title, path)
        assert spec is not None
        assert spec.loader is not None
        sys.modules[title] = module = importlib.util.module_from_spec(spec)
        try:
            spec.loader.exec_module(module)
        except BaseException:
            del sys.modules[title]
            raise
    return sys.modules[title]


def _task(name: str, problem: bl.Problem, data: bl.Data, hyper: PyTree, params: PyTree) -> Task:
    """Make a task of a problem alone, judged by its own outer loss beside that of the start."""

    def metrics(hyper: PyTree, params: PyTree) -> Metrics:
        return {"outer_loss": float(jax.jit(problem.outer)(params, hyper, data.outer))}

    def baselines() -> dict[str, Metrics]:
        if problem.prox is not None or problem.start is not None:
            return {}
        # Wherever the tuned run's solver stops, this is the best that no tuning can do.
        fitted = bl.solve(problem, bl.LBFGS(), hyper, params, data, jax.random.key(0), steps=2000)
        return {"no tuning (where hyper starts)": metrics(hyper, fitted)}

    def describe(hyper: PyTree) -> dict[str, float]:
        leaves = jax.tree_util.tree_leaves_with_path(hyper)
        found = {}
        for path, leaf in leaves:
            values, title = np.ravel(leaf), f"hyper{jax.tree_util.keystr(path)}"
            if values.size <= 12:
                many = values.size > 1
                found |= {
                    title + (f"[{i}]" if many else ""): float(x) for i, x in enumerate(values)
                }
            else:
                found |= {f"mean of {title}": float(values.mean())}
        return found

    return Task(f"custom {name}", problem, data, hyper, params, metrics, baselines, describe)
