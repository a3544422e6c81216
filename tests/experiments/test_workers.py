"""How many threads a job takes, so that jobs side by side do not fight for the cores."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from experiments.runs import workers
from tests.conftest import ROOT


@pytest.mark.parametrize(
    ("launcher", "environment", "expected"),
    [
        ({}, {}, None),  # one process: the whole machine
        ({"n_jobs": None}, {}, None),
        ({"n_jobs": 2}, {}, 4),
        ({"n_jobs": 3}, {}, 2),
        ({"n_jobs": -1}, {}, 1),  # one worker per core
        ({"n_jobs": -5}, {}, 2),  # on 8 cores: 4 workers
        ({"n_jobs": 100}, {}, 1),
        ({"n_jobs": 2}, {"SLURM_CPUS_PER_TASK": "3"}, 3),
        ({}, {"OMP_NUM_THREADS": "1"}, 1),  # set by Ray and by loky
        ({"n_jobs": 2}, {"OMP_NUM_THREADS": ""}, 4),
        ({"cpus_per_task": 2}, {}, 2),
    ],
)
def test_share_of_eight_cores(
    launcher: dict[str, Any], environment: dict[str, str], expected: int | None
) -> None:
    assert workers.threads(launcher, environment, 8) == expected


def test_limit_reaches_the_pools_and_respects_the_user(tmp_path: Path) -> None:
    """In a process of its own, whose environment nobody else reads."""
    code = (
        "import json, os\n"
        "from experiments.runs import workers\n"
        "workers.limit({'n_jobs': 10**6})\n"
        "print(json.dumps([{name: os.environ[name] for name in workers.POOLS}, workers.about()]))"
    )
    environment = {"MKL_NUM_THREADS": "7"}
    done = subprocess.run(
        [sys.executable, "-S", "-c", code],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
    )
    pools, about = json.loads(done.stdout)
    assert pools == {**dict.fromkeys(workers.POOLS, "1"), **environment}
    assert about["threads"] == 1
    assert 1 < about["peak_memory_mib"] < 10**5
