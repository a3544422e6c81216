"""Every exported estimator obeys the laws of the conformance suite."""

import inspect
import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import pytest

import bilevel as bl
from bilevel import single_loop
from bilevel.testing import CONFORMANCE, conformance, logistic, mlp, ridge

ROOT = Path(__file__).resolve().parents[2]
CASES = {make.__name__: make(seed=0) for make in (ridge, logistic, mlp)}
# Laws whose outcome may depend on the precision; the others are about structure.
PRECISE = (
    conformance.equals_dense_oracle,
    conformance.equals_finite_differences,
    conformance.converges_at_its_rate,
    conformance.keeps_structure,
    conformance.reports_evidence,
)


@dataclass(frozen=True)
class Row:
    """``make(solver, steps)`` an estimator, and the laws that its method cannot obey."""

    make: Callable[[Any, int], Any]
    but: tuple[Callable[..., None], ...] = ()
    cases: tuple[str, ...] = ("ridge", "logistic", "mlp")


def differences(make: Any) -> Callable[[Any, int], Any]:
    """An evolution strategy whose O(sigma^2) bias and rounding / sigma are within the tolerance."""
    return lambda solver, k: make(solver, k, 1e-4 if jnp.result_type(float) == "float64" else 0.02)


# Laws that compile programs of their own.
COSTLY = (conformance.equals_its_python_loop, conformance.takes_one_step_but_not_none)
# The closed form takes no solver: no key reaches it, no step size shows, and it takes no steps.
NO_SOLVER = (
    conformance.repeats_with_its_key,
    conformance.shows_its_settings,
    conformance.takes_one_step_but_not_none,
)


def independent(solver: Any) -> Any:
    """The solver with independent batches: the theory of the others is another one."""
    return replace(solver, sampling="iid") if isinstance(solver, bl.SGD) else solver


def whole(make: Any, **settings: Any) -> Callable[[Any, int], Any]:
    """Takes the solver's step size, on all data."""

    def factory(solver: Any, k: int) -> Any:
        mu = {"mu": 1e-4 if jnp.result_type(float) == "float64" else 0.02} if settings else {}
        return make(solver.step_size, inner_steps=k, **settings, **mu)

    return factory


def stochastic(make: Any, counts: tuple[str, ...]) -> Callable[[Any, int], Any]:
    """Takes the solver's step size and minibatches; ``counts``: the fields that are ``k``."""

    def factory(solver: Any, k: int) -> Any:
        size = getattr(solver, "batch_size", None)
        return make(solver.step_size, size, sampling="epoch", **dict.fromkeys(counts, k))

    return factory


def the_same(data: bl.Data, key: Any) -> bl.Data:
    """Every task is all the data: the mean over tasks is that over keys."""
    return data


# Their direction is no hypergradient but that of a penalty: nothing here converges to the oracle.
PENALISED = (
    conformance.equals_dense_oracle,
    conformance.equals_finite_differences,
    conformance.converges_at_its_rate,
    conformance.reports_evidence,
    conformance.takes_one_step_but_not_none,
)
# On all data the key reaches no minibatch, and the value does not depend on it.
NO_MINIBATCH = (conformance.repeats_with_its_key,)

# A new estimator gets its row here, under its class's name.
TABLE = {
    "Forward": Row(bl.Forward),
    "Implicit": Row(lambda solver, k: bl.Implicit(solver, k, linear=bl.CG(tol=1e-10))),
    "Reverse": Row(bl.Reverse),
    # Where the minimiser is enough it goes there by a solver of its own: no key, nor one step.
    "Auto": Row(
        lambda solver, k: bl.Auto(1e-12, solver, k),
        (conformance.repeats_with_its_key, conformance.takes_one_step_but_not_none),
    ),
    "BOME": Row(whole(single_loop.BOME), PENALISED + NO_MINIBATCH, ("ridge",)),
    "ClosedForm": Row(lambda solver, k: bl.ClosedForm(), NO_SOLVER, ("ridge",)),
    "Evolution": Row(differences(bl.Evolution)),
    "DoubleLoop": Row(stochastic(bl.DoubleLoop, ("inner_steps",))),
    "F2SA": Row(stochastic(single_loop.F2SA, ("inner_steps",)), PENALISED, ("ridge",)),
    "OneStep": Row(lambda solver, k: bl.OneStep(solver, k, last=min(k, 20))),
    "PES": Row(differences(bl.PES)),
    "PZOBO": Row(whole(single_loop.PZOBO, pairs=32), NO_MINIBATCH),
    "Penalty": Row(bl.Penalty),
    # A few steps bring the network nowhere near a minimum, which the theory is about.
    "Predicted": Row(
        lambda s, k: bl.Predicted(bl.Implicit(independent(s), k, linear=bl.CG(tol=1e-10))),
        (),
        ("ridge", "logistic"),
    ),
    "Replicated": Row(lambda solver, k: bl.Replicated(bl.Reverse(solver, k), n=2)),
    # Doubles the step size, for which the network's leaves no room.
    "Richardson": Row(lambda s, k: bl.Richardson(bl.Forward(s, k)), (), ("ridge", "logistic")),
    "Sampled": Row(lambda s, k: bl.Sampled(bl.Reverse(s, k), tasks=2, draw=the_same)),
    "SingleLoop": Row(stochastic(bl.SingleLoop, ("steps",))),
    # One copy does not know its own noise.
    "UORO": Row(lambda solver, k: bl.Replicated(bl.UORO(solver, k), n=8)),
}
FOUNDATION = ("Forward", "Implicit", "Reverse")


def cells() -> Iterator[Any]:
    """Every estimator on ridge in float32 at each change; the other cells where time allows."""
    for name, row in TABLE.items():
        for case in row.cases:
            for x64 in (True, False):
                identity = f"{name}-{case}-{'float64' if x64 else 'float32'}"
                foundation = name in FOUNDATION and x64 and case != "ridge"
                mark = pytest.mark.extended if foundation else pytest.mark.slow
                marks = () if case == "ridge" and not x64 else mark
                yield pytest.param(name, case, x64, id=identity, marks=marks)


# One test runs all laws, so that they share what they compile.
@pytest.mark.parametrize(("name", "case", "x64"), list(cells()))
def test_conforms(name: str, case: str, x64: bool) -> None:
    row = TABLE[name]
    but = row.but if name in FOUNDATION or case != "ridge" else row.but + COSTLY
    laws = [law for law in (PRECISE if x64 else CONFORMANCE) if law not in but]
    with jax.enable_x64(x64):
        for law in laws:
            law(row.make, CASES[case])
    jax.clear_caches()  # a thousand memory maps a test, of which a process has 65530


QUICKLY_SHARDED = ("Forward", "Implicit")


@pytest.mark.extended
@pytest.mark.parametrize(
    "names",
    [QUICKLY_SHARDED, pytest.param(set(TABLE) - set(QUICKLY_SHARDED), marks=pytest.mark.slow)],
    ids=["quick", "others"],
)
def test_sharded_over_four_devices_the_numbers_are_the_same(names: Iterable[str]) -> None:
    """In a process of its own: the number of devices is fixed before JAX starts."""
    flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=4"
    environment = os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-m", "tests.sharded", *names]
    subprocess.run(command, cwd=ROOT, env=environment, check=True, timeout=600)


def test_every_exported_estimator_has_a_row() -> None:
    def is_estimator(thing: Any) -> bool:
        step = getattr(thing, "step", None)
        return inspect.isclass(thing) and step and "lower" in inspect.signature(step).parameters

    exported = vars(single_loop) | vars(bl)
    assert {name for name, thing in exported.items() if is_estimator(thing)} == set(TABLE)
