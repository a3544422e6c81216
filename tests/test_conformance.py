"""Every exported estimator obeys the laws of the conformance suite."""

import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import pytest

import bilevel as bl
from bilevel.testing import CONFORMANCE, conformance, logistic, mlp, ridge

CASES = {make.__name__: make(seed=0) for make in (ridge, logistic, mlp)}
# Laws whose outcome may depend on the precision; the others are about structure.
PRECISE = (
    conformance.equals_dense_oracle,
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


# The closed form takes no solver: no key reaches it, and no step size shows.
NO_SOLVER = (conformance.repeats_with_its_key, conformance.shows_its_settings)

# A new estimator gets its row here, under its class's name.
TABLE = {
    "Forward": Row(bl.Forward),
    "Implicit": Row(lambda solver, k: bl.Implicit(solver, k, linear=bl.CG(tol=1e-10))),
    "Reverse": Row(bl.Reverse),
    # Deterministic where the minimiser is enough: no key reaches it.
    "Auto": Row(lambda solver, k: bl.Auto(1e-12, solver, k), (conformance.repeats_with_its_key,)),
    "ClosedForm": Row(lambda solver, k: bl.ClosedForm(), NO_SOLVER, ("ridge",)),
    "Evolution": Row(differences(bl.Evolution)),
    "OneStep": Row(lambda solver, k: bl.OneStep(solver, k, last=min(k, 20))),
    "PES": Row(differences(bl.PES)),
    "Penalty": Row(bl.Penalty),
    "Replicated": Row(lambda solver, k: bl.Replicated(bl.Reverse(solver, k), n=2)),
    # Doubles the step size, for which the network's leaves no room.
    "Richardson": Row(lambda s, k: bl.Richardson(bl.Forward(s, k)), (), ("ridge", "logistic")),
    # One copy does not know its own noise.
    "UORO": Row(lambda solver, k: bl.Replicated(bl.UORO(solver, k), n=8)),
}
FOUNDATION = ("Forward", "Implicit", "Reverse")


def cells() -> Iterator[Any]:
    """Every estimator, case and precision; beyond the foundation all but one cell are slow."""
    for name, row in TABLE.items():
        for case in row.cases:
            for x64 in (True, False):
                quick = name in FOUNDATION or (case == "ridge" and not x64)
                identity = f"{name}-{case}-{'float64' if x64 else 'float32'}"
                marks = () if quick else pytest.mark.slow
                yield pytest.param(name, case, x64, id=identity, marks=marks)


# One test runs all laws, so that they share what they compile.
@pytest.mark.parametrize(("name", "case", "x64"), list(cells()))
def test_conforms(name: str, case: str, x64: bool) -> None:
    row = TABLE[name]
    laws = [law for law in (PRECISE if x64 else CONFORMANCE) if law not in row.but]
    with jax.enable_x64(x64):
        for law in laws:
            law(row.make, CASES[case])


def test_every_exported_estimator_has_a_row() -> None:
    def is_estimator(thing: Any) -> bool:
        step = getattr(thing, "step", None)
        return inspect.isclass(thing) and step and "lower" in inspect.signature(step).parameters

    assert {name for name in vars(bl) if is_estimator(getattr(bl, name))} == set(TABLE)
