"""`adaptive=true` on the command line: in the history, in the checkpoint, or refused."""

from pathlib import Path

import pyarrow.parquet
import pytest

from tests.experiments.conftest import Command

QUICK = ["task=tiny", "every=2", "plot=false", "compile_cache=null", "solver.batch_size=5"]
NOISY = [
    "adaptive=true",
    "estimator=replicated",
    "estimator.n=2",
    "solver.step_size=0.1",
    "estimator.estimator.steps=4",
    "outer=adam",
    "outer.learning_rate=0.001",
]


@pytest.mark.extended
def test_work_is_in_the_history_and_goes_on_after_a_resume(
    command: Command, tmp_path: Path
) -> None:
    columns = []
    for folder, parts in (("whole", [8]), ("cut", [5, 8])):
        place = f"hydra.run.dir={tmp_path / folder}"
        for steps in parts:
            outcome = command(place, *NOISY, f"steps={steps}", quick=QUICK)
            assert outcome.status == 0, outcome.err
        table = pyarrow.parquet.read_table(tmp_path / folder / "history.parquet")
        columns.append({name: table.column(name).to_pylist() for name in ("work", "value")})
        assert "signal_to_noise" in table.column_names
    assert columns[0] == columns[1]
    assert columns[0]["work"][0] == 1


def test_an_estimator_that_knows_no_error_is_refused(command: Command) -> None:
    outcome = command("adaptive=true", "evidence=off")
    assert outcome.status == 1
    assert "Wrap it: Replicated(estimator, n)" in outcome.err
