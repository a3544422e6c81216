"""Who runs in the race of `frontier.py`: our estimators, JAXopt, and hand-written JAX."""

import warnings
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp

import bilevel as bl
from benchmarks import hand_written
from benchmarks.problems import Case

TOLERANCES = (1e-2, 1e-4, 1e-7)  # of the inner gradient and of the adjoint system
KEY = jax.random.key(0)
Candidate = tuple[str, str, Callable[[], Any]]  # family, budget, call that returns the gradient


def ours(case: Case) -> Iterator[Candidate]:
    """Every estimator; a family whose budget is a float is compiled once."""

    def call(estimator: Any) -> Callable[[], Any]:
        args = (case.problem, estimator, case.hyper, case.params, case.data, KEY)
        return lambda: bl.hypergradient(*args)[0].grad

    for family, budget, estimator in estimators(case):
        yield family, budget, call(estimator)


def estimators(case: Case) -> Iterator[tuple[str, str, Any]]:
    """``(family, budget, estimator)``."""
    sgd = bl.SGD(case.step_size, case.batch)
    steps, half = case.steps, case.steps // 2
    for tolerance in (1e-1, 1e-3, 1e-6):
        yield "Auto", f"{tolerance}", bl.Auto(tolerance)
    if case.problem.quadratic:
        yield "ClosedForm", "", bl.ClosedForm()
    for tol in TOLERANCES:
        newton = bl.Newton(bl.CG(tol=0.1), tol=tol)
        yield "Implicit, Newton", f"{tol}", bl.Implicit(newton, 50, bl.CG(tol=tol))
    for tol in TOLERANCES:
        yield "Implicit, L-BFGS", f"{tol}", bl.Implicit(bl.LBFGS(tol=tol), 500, bl.CG(tol=tol))
    linear = bl.CG(tol=1e-2)
    averaged = bl.Implicit(sgd, steps, linear, average=half)
    yield "Implicit, SGD", f"{steps} steps", bl.Implicit(sgd, steps, linear)
    yield "Implicit, averaged SGD", f"{steps} steps", averaged
    yield "Richardson, averaged SGD", f"{steps} steps", bl.Richardson(averaged)
    yield "Replicated, averaged SGD", "4 copies", bl.Replicated(averaged, 4)
    for k in (steps, 3 * steps):
        yield "Reverse, SGD", f"{k} steps", bl.Reverse(sgd, k)
    yield "OneStep, Newton", "6 steps", bl.OneStep(bl.Newton(bl.CG(tol=1e-4)), 6)
    for gamma in (1e2, 1e4):
        yield "Penalty, L-BFGS", f"gamma {gamma:.0f}", bl.Penalty(bl.LBFGS(), 150, gamma)
    yield "UORO, SGD", f"{steps} steps", bl.UORO(sgd, steps)
    yield "Evolution, SGD", "16 pairs", bl.Evolution(sgd, steps)
    yield "PES, SGD", "16 pairs", bl.PES(sgd, steps)
    if case.name == "ridge":  # elsewhere 650 to 5 000 tangents of 650 params
        yield "Forward, SGD", f"{steps} steps", bl.Forward(sgd, steps, average=half)


def peers(case: Case) -> Iterator[Candidate]:
    """JAXopt as its users would differentiate it, and the hand-written yardsticks."""
    warnings.simplefilter("ignore", DeprecationWarning)
    import jaxopt

    problem, data = case.problem, case.data
    begun = jax.grad(problem.inner)(case.params, case.hyper, data.inner)
    scale = jnp.sqrt(sum(jnp.sum(x**2) for x in jax.tree.leaves(begun)))

    def gradient(run: Any) -> Callable[[float], Any]:
        def value(hyper: Any, params: Any, data: bl.Data, tol: Any) -> jax.Array:
            return problem.outer(run(params, hyper, data.inner, tol), hyper, data.outer)

        if case.name == "many_weights":
            # With the data as arguments JAXopt's derivative of this problem is NaN (jaxopt 0.8.5,
            # jax 0.10.2), although its solution is right; with the data closed over it is finite.
            closed = jax.jit(jax.grad(lambda hyper, tol: value(hyper, case.params, data, tol)))
            return lambda tol: closed(case.hyper, tol)
        compiled = jax.jit(jax.grad(value))
        return lambda tol: compiled(case.hyper, case.params, data, tol)

    for name in ("LBFGS", "NonlinearCG"):

        def run(params: Any, hyper: Any, data: Any, tol: Any, name: str = name) -> Any:
            def solve(matvec: Any, b: Any, **_: Any) -> Any:
                return jax.scipy.sparse.linalg.cg(matvec, b, tol=tol, maxiter=1000)[0]

            solver = getattr(jaxopt, name)(
                problem.inner, maxiter=500, tol=tol * scale, implicit_diff_solve=solve
            )
            return solver.run(params, hyper, data).params

        call = gradient(run)
        for tol in TOLERANCES:
            yield f"JAXopt {name}, implicit", f"{tol}", lambda c=call, t=tol: c(t)
    for n in (100,):

        def unrolled(params: Any, hyper: Any, data: Any, tol: Any, n: int = n) -> Any:
            solver = jaxopt.GradientDescent(problem.inner, maxiter=n, tol=0, implicit_diff=False)
            return solver.run(params, hyper, data).params

        call = gradient(unrolled)
        yield "JAXopt GD, unrolled", f"{n} steps", lambda c=call: c(0.0)
    for name in ("reverse", "implicit"):
        hand = jax.jit(lambda *args, name=name: getattr(hand_written, name)(case, *args)[1])
        args = (KEY, case.hyper, case.params, data)
        yield f"hand-written, {name}", f"{case.steps} steps", lambda h=hand, a=args: h(*a)
