"""What must be set before JAX is imported, and the fixtures that several test files share."""

import gc
import os
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import durations

ROOT = Path(__file__).resolve().parents[1]

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# A test runs a program a few times and compiles it once: what XLA saves by not optimising counts.
# (The fusion emitters build every kernel through MLIR: two thirds more time per program. One LLVM
# module per program, where the default is one for each of several threads: a tenth less.)
os.environ.setdefault(
    "XLA_FLAGS",
    "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
    " --xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1",
)
# Workers share what they compile, and the next run finds it.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(ROOT / ".pytest_cache" / "jax"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")

# To trace makes objects by the million that live on: a search for cycles every 700 takes 4 %.
gc.set_threshold(50_000, 20, 100)

# Each xdist worker is one process of several: one thread each, or the pools fight for the cores.
if "PYTEST_XDIST_WORKER" in os.environ:
    for pool in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "PJRT_NPROC"):
        os.environ.setdefault(pool, "1")


@pytest.fixture(autouse=True, scope="module")
def _forget_programs() -> Iterator[None]:
    """Free what a file compiled: programs hold memory maps, of which a process has 65530.

    Files share next to nothing that is compiled: to keep it until the maps run short saves no time.
    """
    yield
    if "jax" in sys.modules:
        sys.modules["jax"].clear_caches()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the option that keeps what each test took."""
    text = "write what each test took into tests/durations.json"
    parser.addoption("--record-durations", action="store_true", help=text)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what took long when it was last measured, before pytest chooses by marks."""
    long = durations.long_ones(durations.read())
    for item in items:
        if item.nodeid in long:
            item.add_marker(pytest.mark.extended)


_taken: Counter[str] = Counter()


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Add up setup, call and teardown; with xdist the controller hears of all workers' tests."""
    _taken[report.nodeid] += report.duration


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Record the durations, in the one process that heard of every test."""
    if session.config.getoption("--record-durations") and not hasattr(
        session.config, "workerinput"
    ):
        durations.write(durations.merge(durations.read(), _taken, ROOT))


@pytest.fixture
def x64() -> Iterator[None]:
    """Float64 for one test; the process-wide setting is left alone."""
    import jax

    with jax.enable_x64(True):
        yield


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data sets beside the checkout; the test skips where there is none."""
    folder = ROOT.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("../shared/data is absent: the real data sets are not beside this checkout")
    return folder
