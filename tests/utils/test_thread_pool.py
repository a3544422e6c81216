"""Importing the library leaves room in JAX's thread pool: batched systems do not deadlock."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# On a machine of two cores these six systems never return in plain JAX.
SYSTEMS = """
import os
import jax, jax.numpy as jnp, numpy as np
import bilevel

def total(A):
    return sum(jnp.linalg.solve(A + i * jnp.eye(64), jnp.ones(64)).sum() for i in range(6))

A = np.random.default_rng(0).standard_normal((8, 64, 64)) + 64 * np.eye(64)
run = jax.jit(jax.vmap(total))
exact = sum(np.linalg.solve(A + i * np.eye(64), np.ones((8, 64, 1))).sum((1, 2)) for i in range(6))
for _ in range(50):
    np.testing.assert_allclose(run(A.astype(np.float32)), exact, rtol=1e-4)
print(os.environ["PJRT_NPROC"])
"""


def run(**settings: str) -> str:
    env = {k: v for k, v in os.environ.items() if k not in ("PJRT_NPROC", "NPROC")}
    env |= {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)} | settings
    command = [sys.executable, "-c", SYSTEMS]
    done = subprocess.run(
        command, env=env, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.extended
def test_many_batched_systems_side_by_side_return() -> None:
    assert int(run()) >= 16


def test_a_pool_that_the_user_chose_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    from bilevel.utils import widen_thread_pool

    monkeypatch.setenv("PJRT_NPROC", "3")
    widen_thread_pool()
    assert os.environ["PJRT_NPROC"] == "3"
    monkeypatch.delenv("PJRT_NPROC")
    monkeypatch.setenv("NPROC", "5")
    widen_thread_pool()
    assert "PJRT_NPROC" not in os.environ
