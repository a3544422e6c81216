"""What the linear solvers refuse, by message."""

from typing import Any

import jax
import jax.numpy as jnp
import pytest

import bilevel as bl


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: bl.CG(tol=0.0), "CG: tol must be a positive finite number, got 0.0"),
        (lambda: bl.MINRES(tol=-1.0), "MINRES: tol must be"),
        (lambda: bl.GMRES(restart=0), "GMRES: restart must be at least 1, got 0"),
        (lambda: bl.BiCGSTAB(max_steps=0), "BiCGSTAB: max_steps must be at least 1"),
        (lambda: bl.Dense(max_size=0), "Dense: max_size must be at least 1"),
        (lambda: bl.Neumann(terms=0), "Neumann: terms must be at least 1"),
        (lambda: bl.Neumann(step_size=0.0), "Neumann: step_size must be a positive"),
        (lambda: bl.FixedPoint(step_size=-0.1), "FixedPoint: step_size must be a positive"),
        (lambda: bl.FixedPoint(tol=float("nan")), "FixedPoint: tol must be a positive"),
        (lambda: bl.Nystrom(rank=0), "Nystrom: rank must be at least 1"),
        (lambda: bl.Nystrom(2, sketch="rows"), "Nystrom: sketch must be one of"),
        (lambda: bl.SGDLinear(0.0), "SGDLinear: step_size must be a positive"),
        (lambda: bl.SGDLinear(0.1, steps=5, average=6), "average must lie between 0 and steps=5"),
        (lambda: bl.SGDLinear(0.1, batch_size=0), "SGDLinear: batch_size must be at least 1"),
    ],
)
def test_refuses_settings_out_of_range(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_refuses_a_step_size_that_reads_hyper() -> None:
    with pytest.raises(TypeError, match=r"SGDLinear: step_size must be a number or fn\(count\)"):
        bl.SGDLinear(lambda count, hyper: 0.1)


@pytest.mark.parametrize(
    ("solver", "message"),
    [
        (bl.Dense(max_size=2), "3 x 3 matrix, above max_size=2. Take CG"),
        (bl.Nystrom(rank=2), "there is no damping"),
        (bl.SGDLinear(0.1), "no minibatch products"),
        (bl.GaussNewton(), r"bl.OutputLoss\(outputs, loss\)"),
    ],
)
def test_refuses_an_operator_that_lacks_what_it_needs(solver: Any, message: str) -> None:
    b = jnp.ones(3)
    with pytest.raises(ValueError, match=message):
        solver.solve(lambda v: v, b, b, jax.random.key(0))


@pytest.mark.parametrize("solver", [bl.Neumann(), bl.FixedPoint()])
def test_measuring_a_step_size_needs_a_key(solver: Any) -> None:
    b = jnp.ones(3)
    with pytest.raises(ValueError, match="needs a random key to measure its step size"):
        solver.solve(lambda v: v, b, b)
