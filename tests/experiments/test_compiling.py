"""Of processes that begin at once, one compiles."""

import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from experiments.runs import compiling
from tests.conftest import ROOT


def settings_with(cache: Path | None, **changes: Any) -> dict[str, Any]:
    task = {"_target_": "tasks.tiny.tiny", "start": 1.0, **changes}
    nouns = {"task": task, "solver": {}, "estimator": {}, "outer": {}, "precision": None}
    return nouns | {"compile_cache": cache and str(cache), "mesh": {"data": None}}


def begin(settings: dict[str, Any], log: list[str], name: str, seconds: float) -> threading.Thread:
    """As another process would: what this one has seen compiled is forgotten."""
    compiling._DONE.clear()

    def work() -> None:
        with compiling.one_first(settings):
            log.append(f"{name} in")
            time.sleep(seconds)
            log.append(f"{name} out")

    thread = threading.Thread(target=work)
    thread.start()
    time.sleep(0.3)
    return thread


@pytest.mark.parametrize(
    ("change", "waits"), [({"seed": 3}, True), ({"name": "other"}, False), (None, False)]
)
def test_others_wait_for_the_first_of_the_same_program(
    tmp_path: Path, change: dict[str, Any] | None, waits: bool
) -> None:
    log: list[str] = []
    cache = None if change is None else tmp_path
    first = begin(settings_with(cache, seed=1), log, "a", 1.2)
    second = begin(settings_with(cache, **(change or {"seed": 2})), log, "b", 0.0)
    first.join()
    second.join()
    waited = ["a in", "a out", "b in", "b out"]
    assert log == (waited if waits else ["a in", "b in", "b out", "a out"])


def test_those_that_waited_go_on_together(tmp_path: Path) -> None:
    log: list[str] = []
    settings = settings_with(tmp_path)
    threads = [begin(settings, log, "a", 0.9)]
    threads += [begin(settings, log, name, 0.8) for name in ("b", "c")]
    for thread in threads:
        thread.join()
    assert log[:2] == ["a in", "a out"]
    assert {*log[2:4]} == {"b in", "c in"}


def test_a_process_that_fails_or_dies_lets_the_others_go_on(tmp_path: Path) -> None:
    compiling._DONE.clear()
    with pytest.raises(RuntimeError), compiling.one_first(settings_with(tmp_path)):
        raise RuntimeError
    code = (
        "import os, sys\n"
        "from experiments.runs.compiling import one_first\n"
        "from tests.experiments.test_compiling import settings_with\n"
        "from pathlib import Path\n"
        "with one_first(settings_with(Path(sys.argv[1]))):\n"
        "    os._exit(9)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], cwd=ROOT)
    assert done.returncode == 9
    compiling._DONE.clear()
    begun = time.monotonic()
    with compiling.one_first(settings_with(tmp_path)):
        assert time.monotonic() - begun < 10


def test_a_folder_without_locks_stops_nobody(tmp_path: Path) -> None:
    (tmp_path / "locks").write_text("no folder")
    compiling._DONE.clear()
    with compiling.one_first(settings_with(tmp_path)) as nothing:
        assert nothing is None
    (tmp_path / "locks").unlink()


def test_a_wait_has_an_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiling, "LONGEST", 0.2)
    log: list[str] = []
    first = begin(settings_with(tmp_path), log, "a", 1.5)
    second = begin(settings_with(tmp_path), log, "b", 0.0)
    first.join()
    second.join()
    assert log == ["a in", "b in", "b out", "a out"]
