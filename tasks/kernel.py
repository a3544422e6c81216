r"""Kernel ridge regression: one length-scale per column, and the noise.

    K_ij = exp(-1/2 sum_k (x_ik - x_jk)^2 / l_k^2),   s = noise + 1e-4
    inner(a, h) = (a^T K a + s |a|^2) / 2n - y^T a / n          a = (K + s I)^{-1} y, training rows
    outer(a, h) = 1/2 mean_i (k(x_i)^T a - y_i)^2               validation rows

``h`` holds the logarithms of the length-scales, in standard deviations of their columns, and of the
noise, in variances of the target. Both levels look at all training rows at once: the solver is one
for full batches, or none (``estimator=closed_form``: the inner loss is quadratic).
"""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from sklearn.exceptions import ConvergenceWarning
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import RBF, WhiteKernel
from sklearn.linear_model import RidgeCV
from threadpoolctl import threadpool_limits

import bilevel as bl
from tasks.base import Metrics, PyTree, Task
from tasks.datasets.design import Design, prepare, standardised
from tasks.datasets.tabular import TableChoice, Tabular
from tasks.judges.pictures import bars
from tasks.models import KernelCore, make_model
from tasks.parts.moments import in_float64

FLOOR = 1e-4  # least noise: float32 can factorise no less
SCALES, NOISES = np.logspace(-0.5, 1.5, 13), np.logspace(-3, 0.5, 8)  # of the isotropic grid
one_thread = threadpool_limits.wrap(limits=1)


def kernel(X: Array, Z: Array, hyper: PyTree) -> Array:
    """Return the kernel matrix ``[n, m]`` of rows ``[n, d]`` and ``[m, d]``."""
    scale = jnp.exp(-hyper["length_scales"])
    X, Z = X * scale, Z * scale
    squares = jnp.sum(X**2, 1)[:, None] + jnp.sum(Z**2, 1) - 2 * X @ Z.T
    return jnp.exp(-jnp.maximum(squares, 0) / 2)


def _noise(hyper: PyTree) -> Array:
    return jnp.exp(hyper["noise"]) + FLOOR


@dataclass(frozen=True)
class Fit:
    """The inner loss; a batch is ``(X [1, n, d], y [1, n])``."""

    def __call__(self, a: Array, hyper: PyTree, batch: tuple) -> Array:
        X, y = (leaf[0] for leaf in batch)
        fitted = kernel(X, X, hyper) @ a + _noise(hyper) * a
        return (a @ fitted / 2 - y @ a) / len(y)


@dataclass(frozen=True)
class Score:
    """The outer loss; a batch is ``(X [1, m, d], y [1, m], training X [1, n, d])``."""

    def __call__(self, a: Array, hyper: PyTree, batch: tuple) -> Array:
        X, y, trained = (leaf[0] for leaf in batch)
        return jnp.mean((kernel(X, trained, hyper) @ a - y) ** 2) / 2


PROBLEM = bl.Problem(Fit(), Score(), quadratic=True)
DEFAULT = Tabular("diabetes", "holdout", degree=1)


def kernel_ridge(
    table: TableChoice = DEFAULT,
    *,
    start: float = 3.0,
    noise: float = 0.1,
) -> Task:
    """Make the task of tuning length-scales and noise of a kernel ridge regression.

    Parameters
    ----------
    table : a data set by name, or settings of :class:`tasks.datasets.tabular.Tabular`; ``outer`` is
        ``"holdout"``. Time grows with the cube of the training rows, memory with the square: take
        ``rows`` of a large set.
    start, noise : every length-scale and the noise variance at the start.

    Notes
    -----
    ``validation_mse`` is twice the outer loss in squared target units, at the exact inner solution.

    Raises
    ------
    ValueError : bad data, shares that leave a part empty, a start that is not positive.

    Examples
    --------
    >>> from tasks.kernel import kernel_ridge
    >>> kernel_ridge("diabetes").hyper["length_scales"].shape
    (10,)
    """
    if not (start > 0 and noise > 0):
        raise ValueError(f"start={start!r} and noise={noise!r} must be positive.")
    chosen = DEFAULT.changed(table)
    if chosen.outer != "holdout":
        raise ValueError(f"outer={chosen.outer!r}: kernel_ridge has one validation set, 'holdout'.")
    design = prepare(chosen, "regression")
    (X, y), (X_held, y_held) = design.batches(standardised(design))
    dtype = jnp.result_type(float)
    cast = partial(jax.tree.map, lambda x: jnp.asarray(x, dtype)[None])
    batches = (X, y), (X_held, y_held, X)
    hyper = _hyper(X.shape[1], start, noise)
    value = partial(in_float64(_value), batches)
    names = [f"length-scale of {name}" for name in design.features.names] + ["noise"]
    return Task(
        name=f"kernel ridge {chosen.data}",
        problem=PROBLEM,
        data=bl.Data(inner=cast(batches[0]), outer=cast(batches[1])),
        hyper=jax.tree.map(lambda x: jnp.asarray(x, dtype), hyper),
        params=jnp.zeros(len(y), dtype),
        metrics=lambda hyper, _: _metrics(design, value, hyper),
        baselines=lambda: _baselines(design, value, hyper),
        describe=lambda hyper: _describe(names, hyper),
        exact=partial(in_float64(_exact), batches),
        notes=design.notes() | {"penalties": names},
        picture=partial(_picture, design.features.names, start),
        model=lambda hyper, _: make_model(design, _fit(design, hyper)),
    )


def _hyper(d: int, scale: float, noise: float) -> PyTree:
    return {"length_scales": np.full(d, np.log(scale)), "noise": np.asarray(np.log(noise))}


def _solve(X: Array, y: Array, hyper: PyTree) -> Array:
    K = kernel(X, X, hyper) + _noise(hyper) * jnp.eye(len(y))
    return jax.scipy.linalg.cho_solve(jax.scipy.linalg.cho_factor(K, lower=True), y)


@jax.jit  # here, that tasks of the same shapes compile it once
def _value(batches: tuple, hyper: PyTree) -> Array:
    """Return the outer loss at the inner minimiser."""
    (X, y), held = batches
    return Score()(_solve(X, y, hyper), hyper, tuple(leaf[None] for leaf in held))


_exact = jax.jit(jax.value_and_grad(_value, argnums=1))


_dual = jax.jit(_solve)


def _unit(design: Design) -> float:
    """Return squared target units per unit of the losses."""
    return float(np.var(design.y[design.train]))


def _fit(design: Design, hyper: PyTree) -> KernelCore:
    """Return the fit with these length-scales on all development rows."""
    X, y = design.development
    dual = in_float64(_dual)(X, y - y.mean(), hyper)
    scales = np.exp(np.asarray(hyper["length_scales"], float))
    return KernelCore(X, np.asarray(dual), scales, y.mean())


def _metrics(design: Design, value: Callable, hyper: PyTree) -> Metrics:
    """Score the fit with these length-scales on all development rows."""
    fitted = _fit(design, hyper)(design.test[0])
    return _score(fitted, design) | {"validation_mse": 2 * float(value(hyper)) * _unit(design)}


def _score(predicted: np.ndarray, design: Design) -> Metrics:
    y = design.test[1]
    mse = float(np.mean((predicted - y) ** 2))
    return {"test_mse": mse, "test_r2": 1 - mse / (float(np.var(y)) or np.nan)}


@one_thread
def _baselines(design: Design, value: Callable, start: PyTree) -> dict[str, Metrics]:
    """Score what a user would run instead; each is fitted on all development rows in the end."""
    X, y = design.development
    grid = [_hyper(X.shape[1], scale, noise) for scale, noise in product(SCALES, NOISES)]
    best = min(grid, key=lambda hyper: float(value(hyper)))
    mean, spread = y.mean(), y.std()
    scales: Any = np.full(X.shape[1], 3.0)
    ard = RBF(scales, (1e-2, 1e3)) + WhiteKernel(0.1, (1e-4, 10.0))
    process = GaussianProcessRegressor(ard, random_state=0)
    # Its own cost is cubic in the rows and paid some hundred times.
    few = slice(None, None, max(1, len(y) // 500))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # a length-scale at its bound
        process.fit(X[few], (y[few] - mean) / spread)
    fitted = process.predict(design.test[0]) * spread + mean
    rows = "" if few.step == 1 else f", every {few.step}. row"
    linear = RidgeCV(alphas=np.logspace(-5, 3, 60) * len(y)).fit(X, y)
    return {
        f"one length-scale (best of {len(grid)} on the grid, same hold-out)": _metrics(
            design, value, best
        ),
        f"GaussianProcessRegressor (marginal likelihood, ARD{rows})": _score(fitted, design),
        "no tuning (where hyper starts)": _metrics(design, value, start),
        "RidgeCV (linear)": _score(linear.predict(design.test[0]), design),
    }


def _describe(names: list[str], hyper: PyTree) -> dict[str, float]:
    values = np.exp(np.append(np.asarray(hyper["length_scales"], float), float(hyper["noise"])))
    return dict(zip(names, values.tolist(), strict=True))


def _picture(names: tuple[str, ...], start: float, figure: Any, hyper: PyTree, params: Any) -> None:
    """Draw how far apart two rows may be in each column and still be alike."""
    del params
    scales = np.exp(np.asarray(hyper["length_scales"], float))
    bars(figure, names, scales, "length-scale in standard deviations of its column", start)
