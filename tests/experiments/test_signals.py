"""Signals at random moments of a run, by the script that sends many of them."""

import signal
import time
from pathlib import Path

import pytest

from tests.experiments import signals


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_five_signals_at_random_moments_leave_a_resumable_run(tmp_path: Path) -> None:
    plan = [signal.SIGTERM, signal.SIGKILL, signal.SIGINT, signal.SIGKILL, signal.SIGTERM]
    until = time.monotonic() + 800
    totals, wrong = signals.send(plan, tmp_path, until, seed=1)
    assert wrong == []
    assert (
        sum(n for name, n in totals.items() if name.startswith("SIG") and "late" not in name) == 5
    )
