"""Every solver ends where scikit-learn's does, in both precisions and on trees of parameters."""

import inspect
from functools import partial

import jax
import numpy as np
import pytest

import bilevel as bl
from tests.solvers.cases import CASES, SOLVERS, flat, make

SINGLE = [(solver, names[0], False) for solver, (_, _, names) in SOLVERS.items()]


@pytest.mark.parametrize(("solver", "name", "x64"), [(*case, True) for case in CASES] + SINGLE)
def test_finds_the_minimiser(solver: str, name: str, x64: bool) -> None:
    factory, steps, _ = SOLVERS[solver]
    case = make(name)
    with jax.enable_x64(x64):
        found = jax.jit(partial(bl.solve, case.problem, steps=steps))(
            factory(case.curvature), case.hyper, case.params, case.data, jax.random.key(0)
        )
        assert {leaf.dtype.itemsize for leaf in jax.tree.leaves(found)} == {8 if x64 else 4}
    np.testing.assert_allclose(flat(found), case.solution, atol=1e-8 if x64 else 1e-5)


def test_every_exported_solver_has_a_row() -> None:
    def is_solver(thing: object) -> bool:
        step = getattr(thing, "step", None)
        if not (inspect.isclass(thing) and callable(step)):
            return False
        return "loss" in inspect.signature(step).parameters

    of_equations = {"Anderson", "Picard"}  # tests/estimators/test_equations.py
    named = {name for name, thing in vars(bl).items() if is_solver(thing)}
    assert named == set(SOLVERS) | of_equations
