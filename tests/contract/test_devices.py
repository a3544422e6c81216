"""Numbers do not depend on over how many devices what is spread."""

import os
import subprocess
import sys

import pytest


@pytest.mark.extended
def test_seeds_rows_params_and_hyper_over_eight_devices():
    flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=8"
    env = {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-m", "tests.devices"]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
