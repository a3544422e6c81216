"""`report FOLDER --to tensorboard`, `--to mlflow`: the runs where others look for them.

Settings, final numbers and the history of every run that has ended. Done again, it replaces what it
has written before. Neither package is needed otherwise, so each is an extra.
"""

import importlib
import math
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from experiments.common.errors import BadInputError, suggest
from experiments.reports.sweep_data import read
from experiments.storage.result_file import ENDED_AS
from experiments.storage.resume import flat

Run = dict[str, Any]
_BATCH = 1000  # metrics that MLflow takes at once
_TAG = "bilevel.folder"


def export(folder: Path, results: list[Run], to: str) -> str:
    """Write the runs to `to`; returns how to look at them.

    Raises
    ------
    BadInputError : there is no such exporter, or its package is not installed.
    """
    known = {"tensorboard": _tensorboard, "mlflow": _mlflow}
    if to not in known:
        raise BadInputError(f"--to: there is no exporter {to!r}. {suggest(to, known)}")
    return known[to](folder, [result for result in results if result["status"] in ENDED_AS])


def _tensorboard(folder: Path, results: list[Run]) -> str:
    writers = _package("tensorboardX", "tensorboard")
    place = folder / "tensorboard"
    shutil.rmtree(place, ignore_errors=True)
    for result in results:
        with writers.SummaryWriter(str(place / _name(folder, result)), flush_secs=3600) as writer:
            for name, step, value in _history(result):
                writer.add_scalar(name, value, step)
            writer.add_hparams(_settings(result), _numbers(result), name="final")
    return f"tensorboard --logdir {place}"


def _mlflow(folder: Path, results: list[Run]) -> str:
    mlflow, *_ = (_package(name, "mlflow") for name in ("mlflow", "sqlalchemy", "alembic"))
    store = f"sqlite:///{folder.resolve() / 'mlflow.db'}"
    client = mlflow.MlflowClient(tracking_uri=store)
    title = folder.resolve().name
    found = client.get_experiment_by_name(title)
    where = (folder / "mlflow").resolve().as_uri()
    own = found.experiment_id if found else client.create_experiment(title, artifact_location=where)
    while old := client.search_runs([own], filter_string=f"tags.`{_TAG}` LIKE '%'"):
        for run in old:  # a page of them
            client.delete_run(run.info.run_id)
    for result in results:
        name = _name(folder, result)
        tags = {_TAG: name, "command": str(result.get("command"))}
        run = client.create_run(own, run_name=name, tags=tags).info.run_id
        _log(mlflow.entities, client, run, result)
        client.set_terminated(run, "FINISHED" if result["status"] == "completed" else "FAILED")
    return f"mlflow ui --backend-store-uri {store}"


def _log(entities: Any, client: Any, run: str, result: Run) -> None:
    """Settings, the numbers at the end, and those of every step; each call takes so many."""
    params = [
        entities.Param(_allowed(name), str(value)) for name, value in _settings(result).items()
    ]
    for start in range(0, len(params), 100):
        client.log_batch(run, params=params[start : start + 100])
    last = result["steps"]
    numbers = [(f"final {name}", last, value) for name, value in _numbers(result).items()]
    rows = [
        entities.Metric(_allowed(name), value, 0, step)
        for name, step, value in [*_history(result), *numbers]
    ]
    for start in range(0, len(rows), _BATCH):
        client.log_batch(run, metrics=rows[start : start + _BATCH])


def _package(name: str, extra: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise BadInputError(
            f'--to {extra}: {name} is not installed. pip install -e ".[run,{extra}]"'
        ) from error


def _name(folder: Path, result: Run) -> str:
    name = result["folder"].relative_to(folder).as_posix()
    return folder.resolve().name if name == "." else name


def _settings(result: Run) -> dict[str, Any]:
    """By their full names; what is neither number nor text as text."""
    settings = flat(result["settings"])
    plain = (bool, int, float, str)
    return {name: x if isinstance(x, plain) else str(x) for name, x in settings.items()}


def _numbers(result: Run) -> dict[str, float]:
    """The test metrics, the outer value, the cost."""
    cost = {"seconds": result["seconds"], "calls": sum(result["counts"].values())}
    numbers = result["test_metrics"] | {"outer value": result["value"]} | cost
    return {name: float(x) for name, x in numbers.items() if x is not None}


def _history(result: Run) -> Iterator[tuple[str, int, float]]:
    """`(column, step, number)`, without what is not finite."""
    for name, column in read(result["folder"]).items():
        if name != "step":
            yield from ((name, k, float(x)) for k, x in enumerate(column) if math.isfinite(x))


def _allowed(name: str) -> str:
    """MLflow takes letters, digits and some signs in a name."""
    return "".join(c if c.isalnum() or c in "_-. :/" else "_" for c in name)
