"""The share of a machine that one of several worker processes takes; set before JAX is imported."""

import os
import platform
import resource
import sys
from typing import Any

# XLA's own pool on CPU, and those of the libraries below numpy.
POOLS = ("PJRT_NPROC", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


def threads(launcher: dict[str, Any], environment: dict[str, str], cores: int) -> int | None:
    """How many threads a job may use; `None` where nothing but the machine sets a limit.

    Slurm says how many cores a task was given, Ray how many its worker was, submitit how many
    were asked for; joblib's workers share the cores evenly.
    """
    for name in ("SLURM_CPUS_PER_TASK", "OMP_NUM_THREADS"):
        if environment.get(name, "").isdigit():
            return max(1, int(environment[name]))
    if asked := launcher.get("cpus_per_task"):
        return asked
    jobs = launcher.get("n_jobs")
    if jobs is None:
        return None
    # joblib counts from the end: -1 is one worker per core, -2 one fewer.
    workers = jobs if jobs > 0 else max(1, cores + 1 + jobs)
    return max(1, cores // workers)


def limit(launcher: dict[str, Any]) -> None:
    """Give this process its share, unless the user has set one; without effect after JAX began."""
    if (share := threads(launcher, dict(os.environ), cores())) is not None:
        for name in POOLS:
            os.environ.setdefault(name, str(share))


def cores() -> int:
    """That this process may run on."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def about() -> dict[str, Any]:
    """Where a run was made, and the largest memory of its process so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # KiB; bytes on macOS
    return {
        "host": platform.node(),
        "pid": os.getpid(),
        "threads": int(os.environ.get("PJRT_NPROC") or cores()),
        "peak_memory_mib": peak / (2**20 if sys.platform == "darwin" else 2**10),
    }
