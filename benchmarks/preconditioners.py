"""The error of an adjoint after so many products, by preconditioner, where the exact one is known.

    python -m benchmarks.preconditioners

Digits, a network trained by L-BFGS; the system ``G v = b`` of its adjoint, with the Gauss-Newton
matrix and the gradient of the validation loss, solved by CG in float64. Products count those that
make the preconditioner. ``scaled``: pixels in units between 0.1 and 10.
"""

from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

import bilevel as bl
from bilevel.estimators.adjoint import adjoint_system
from bilevel.linear import Operator
from tasks.datasets.images import cast, images
from tasks.parts.networks import perceptron
from tasks.parts.weighting import cross_entropy, square

PRODUCTS = (12, 25, 50, 100, 200)
KINDS = {
    "none": None,
    "HessianDiagonal(5)": bl.HessianDiagonal(5),
    "SolverInverse": bl.SolverInverse(),
    "EKFAC(256)": bl.EKFAC(256),
    "EKFAC(500)": bl.EKFAC(500),
}
CASES = {
    "910 weights, decay 1e-3": (12, 1e-3, False),
    "1810 weights, decay 1e-3": (24, 1e-3, False),
    "1810 weights, decay 1e-5": (24, 1e-5, False),
    "1810 weights, decay 1e-3, scaled": (24, 1e-3, True),
}


def make_system(hidden: int, decay: float, scaled: bool) -> tuple[Operator, dict]:
    """Return the Gauss-Newton operator at the end of the training, and the right side."""
    parts = images("digits", train=500, validation=300, seed=0)
    model, params = perceptron((64, hidden, 10), 0)
    unit = 10 ** np.random.default_rng(0).uniform(-1, 1, 64) if scaled else np.ones(64)
    train, held = (cast(X * unit, y) for X, y in (parts.train, parts.validation))
    inner = bl.OutputLoss(
        outputs=lambda w, h, batch: model(w, batch[0]),
        loss=lambda z, w, h, batch: jnp.mean(cross_entropy(z, batch[1])) + h * square(w),
    )
    problem = bl.Problem(
        inner, lambda w, h, batch: jnp.mean(cross_entropy(model(w, batch[0]), batch[1]))
    )
    data, hyper, solver = bl.Data(train, held), jnp.asarray(decay), bl.LBFGS(memory=20, tol=1e-4)
    state, key = solver.init(params, train), jax.random.key(0)

    @jax.jit
    def fit(carry: tuple) -> tuple:
        def advance(_: int, carry: tuple) -> tuple:
            return solver.step(inner, carry[0], hyper, train, key, carry[1])

        return jax.lax.fori_loop(0, 400, advance, carry)

    params, state = fit((params, state))
    system = adjoint_system(problem, hyper, params, data, damping=None, step=1.0, key=key)
    assert system.operator.gauss_newton is not None
    inverse = partial(solver.approximate_inverse, state)
    return replace(system.operator.gauss_newton(), inverse=inverse), system.rhs


def measure(operator: Operator, b: dict) -> dict[str, list[float]]:
    """Return the relative errors of the adjoint at :data:`PRODUCTS`, median of three keys."""
    flat, unravel = ravel_pytree(b)
    matrix = jax.jit(jax.vmap(lambda v: ravel_pytree(operator(unravel(v)))[0]))(jnp.eye(flat.size))
    exact = np.linalg.solve(np.asarray(matrix), np.asarray(flat))
    start = jax.tree.map(jnp.zeros_like, b)

    def error(kind: Any, products: int) -> float:
        spent = getattr(kind, "probes", 1 if isinstance(kind, bl.EKFAC) else 0)
        linear = bl.CG(tol=1e-12, max_steps=products - spent, preconditioner=kind)
        run = jax.jit(
            jax.vmap(lambda key: ravel_pytree(linear.solve(operator, b, start, key).x)[0])
        )
        found = run(jax.random.split(jax.random.key(1), 3))
        away = np.linalg.norm(np.asarray(found) - exact, axis=1) / np.linalg.norm(exact)
        return float(np.median(away))

    return {name: [error(kind, n) for n in PRODUCTS] for name, kind in KINDS.items()}


def main() -> None:
    jax.config.update("jax_enable_x64", True)
    for case, settings in CASES.items():
        print(f"\n| {case} | {' | '.join(map(str, PRODUCTS))} |")
        print("|---|" + "---:|" * len(PRODUCTS))
        for name, errors in measure(*make_system(*settings)).items():
            print(f"| {name} | {' | '.join(f'{e:.1e}' for e in errors)} |", flush=True)


if __name__ == "__main__":
    main()
