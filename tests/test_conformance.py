"""Every exported estimator obeys every law of the conformance suite, on every case."""

import inspect
from collections.abc import Callable
from typing import Any

import jax
import pytest

import bilevel as bl
from bilevel.testing import CONFORMANCE, Case, conformance, logistic, mlp, ridge


def implicit(solver: Any, steps: int) -> bl.Implicit:
    return bl.Implicit(solver, steps, linear=bl.CG(tol=1e-10))


# A new estimator gets its row here: `(solver, steps) -> estimator` under its class's name.
TABLE: dict[str, Callable[[Any, int], Any]] = {
    "Forward": bl.Forward,
    "Implicit": implicit,
    "Reverse": bl.Reverse,
}
CASES = {make.__name__: make(seed=0) for make in (ridge, logistic, mlp)}


# Laws whose outcome may depend on the precision; the others are about structure.
PRECISE = (
    conformance.equals_dense_oracle,
    conformance.keeps_structure,
    conformance.reports_evidence,
)


# One test runs all laws, so that they share what they compile.
@pytest.mark.parametrize("x64", [True, False], ids=["float64", "float32"])
@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
@pytest.mark.parametrize("name", TABLE)
def test_conforms(name: str, case: Case, x64: bool) -> None:
    with jax.enable_x64(x64):
        for law in PRECISE if x64 else CONFORMANCE:
            law(TABLE[name], case)


def test_every_exported_estimator_has_a_row() -> None:
    def is_estimator(thing: Any) -> bool:
        return (
            inspect.isclass(thing)
            and all(callable(getattr(thing, method, None)) for method in ("init", "step"))
            and {"problem", "lower"} <= set(inspect.signature(thing.step).parameters)
        )

    exported = {name for name in vars(bl) if is_estimator(getattr(bl, name))}
    assert exported == set(TABLE)
