"""Slurm and Ray for real, on this machine; slow, and skipped where they cannot be had."""

import os
from pathlib import Path
from typing import Any

import pytest

from tests.experiments import real_slurm
from tests.experiments.test_launchers import assert_same, cache, expected, needs, results, sweep

__all__ = ["cache", "expected"]  # fixtures
pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@needs("submitit")
def test_slurm(cache: Path, expected: dict[int, dict[str, Any]], tmp_path: Path) -> None:
    """Debian's Slurm, one node."""
    root = real_slurm.unpack(tmp_path / "packages")
    if root is None:
        pytest.skip("apt-get cannot download Debian's Slurm packages here")
    with real_slurm.running(root, tmp_path / "slurm") as environment:
        launcher = ["hydra/launcher=submitit_slurm", "hydra.launcher.partition=dev"]
        launcher += ["hydra.launcher.cpus_per_task=1"]
        folder = tmp_path / "sweep"
        done = sweep(cache, folder, *launcher, "seed=0,1", environment=environment)
    assert done.returncode == 0, done.stdout
    found = results(folder)
    assert_same(found, expected)
    assert all(result["process"]["threads"] == 1 for result in found.values())


@needs("ray")
def test_ray_with_two_nodes(
    cache: Path, expected: dict[int, dict[str, Any]], tmp_path: Path
) -> None:
    """A cluster of two nodes of one core each, on this machine."""
    os.environ["RAY_AUTH_MODE"] = "disabled"
    from ray.cluster_utils import Cluster

    cluster = Cluster()
    try:
        for _ in range(2):
            cluster.add_node(num_cpus=1, include_dashboard=False, object_store_memory=80 * 2**20)
        launcher = ["hydra/launcher=ray", f"hydra.launcher.ray.init.address={cluster.address}"]
        launcher += ["+hydra.launcher.ray.init.object_store_memory=null"]  # the cluster has its own
        launcher += ["+hydra.launcher.ray.remote.num_cpus=1"]
        done = sweep(cache, tmp_path, *launcher, "seed=0,1", timeout=600)
    finally:
        cluster.shutdown()
    assert done.returncode == 0, done.stdout
    found = results(tmp_path)
    assert_same(found, expected)
    assert len({result["process"]["pid"] for result in found.values()}) == 2
    assert all(result["process"]["threads"] == 1 for result in found.values())
