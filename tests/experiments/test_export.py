"""The runs in TensorBoard's files and in MLflow's database, read back by the packages' means."""

import struct
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from experiments import report
from tests.experiments.test_report import run


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    settings = {"seed": 0, "solver": {"step_size": 0.1, "schedule": None}}
    run(tmp_path, "a", 0, 0.5, settings=settings)
    run(tmp_path, "b", 0, 0.8, settings=settings, status="diverged")
    run(tmp_path, "c", 0, 0.9, status="failed", error="no such thing")
    return tmp_path


PACKAGES = [("tensorboard", "tensorboardX"), ("mlflow", "mlflow"), ("mlflow", "alembic")]
VALUES = np.linspace(1, 0.5, 4)  # the outer value of run a


@pytest.mark.filterwarnings("ignore")  # of the packages
def test_tensorboard_holds_the_history(sweep: Path, capsys: pytest.CaptureFixture) -> None:
    pytest.importorskip("tensorboardX")
    from tensorboardX.proto.event_pb2 import Event

    for _ in range(2):  # the second time replaces the first
        assert report.main([str(sweep), "--no-page", "--to", "tensorboard"]) == 0
    assert f"tensorboard --logdir {sweep / 'tensorboard'}" in capsys.readouterr().out
    assert sorted(path.name for path in (sweep / "tensorboard").iterdir()) == ["a-0", "b-0"]
    (path,) = (sweep / "tensorboard" / "a-0").glob("events*")
    content, read = path.read_bytes(), []
    while content:  # length, its checksum, the record, its checksum
        (length,) = struct.unpack("<Q", content[:8])
        read.append(Event.FromString(content[12 : 12 + length]))
        content = content[16 + length :]
    values = {e.step: v.simple_value for e in read for v in e.summary.value if v.tag == "value"}
    assert [values[k] for k in range(4)] == pytest.approx(VALUES)


@pytest.mark.slow  # ten seconds to lay out MLflow's tables
@pytest.mark.filterwarnings("ignore")
def test_mlflow_holds_settings_numbers_and_history(sweep: Path) -> None:
    mlflow = pytest.importorskip("mlflow")
    pytest.importorskip("sqlalchemy")
    pytest.importorskip("alembic")
    for _ in range(2):
        assert report.main([str(sweep), "--no-page", "--to", "mlflow"]) == 0
    client = mlflow.MlflowClient(tracking_uri=f"sqlite:///{sweep / 'mlflow.db'}")
    experiment = client.get_experiment_by_name(sweep.name).experiment_id
    found = {entry.info.run_name: entry for entry in client.search_runs([experiment])}
    assert found.keys() == {"a-0", "b-0"}
    best = found["a-0"]
    assert (best.info.status, found["b-0"].info.status) == ("FINISHED", "FAILED")
    assert best.data.params["solver.step_size"] == "0.1"
    assert best.data.tags["command"] == "run --seed 0 <"
    assert best.data.metrics["final mse"] == 0.5
    history = client.get_metric_history(best.info.run_id, "value")
    assert [entry.value for entry in history] == pytest.approx(VALUES)
    assert [entry.step for entry in history] == [0, 1, 2, 3]


@pytest.mark.parametrize(("to", "package"), PACKAGES)
def test_missing_package_is_named_with_its_extra(
    sweep: Path,
    to: str,
    package: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    for name in ("mlflow", "sqlalchemy", "alembic"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(sys.modules, package, None)
    assert report.main([str(sweep), "--no-page", "--to", to]) == 1
    expected = f'--to {to}: {package} is not installed. pip install -e ".[run,{to}]"'
    assert expected in capsys.readouterr().err


def test_unknown_exporter_is_answered_with_the_known(
    sweep: Path, capsys: pytest.CaptureFixture
) -> None:
    assert report.main([str(sweep), "--no-page", "--to", "tensorbord"]) == 1
    message = "--to: there is no exporter 'tensorbord'. Did you mean 'tensorboard'? "
    assert f"{message}Available: mlflow, tensorboard." in capsys.readouterr().err
