"""Quadratics with non-commuting Hessian and noise, and dense NumPy oracles for SGD on them."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

CURVATURES = (0.2, 0.7, 1.0)
MOMENTA = (0.0, 0.5, 0.9)
FRACTIONS = (0.05, 0.5, 0.9, 0.99)


def rotation(rng, d):
    return np.linalg.qr(rng.normal(size=(d, d)))[0]


def hessian(rng, curvatures=CURVATURES):
    basis = rotation(rng, len(curvatures))
    return basis @ np.diag(curvatures) @ basis.T


def covariance(rng, d=3):
    root = rng.normal(size=(d, d))
    return root @ root.T / d + 0.1 * np.eye(d)


def pair(seed=0, curvatures=CURVATURES):
    """`(K, C)` that do not commute, as float64 arrays of NumPy."""
    rng = np.random.default_rng(seed)
    return hessian(rng, curvatures), covariance(rng, len(curvatures))


def lifted(K, rate, mu):
    """The map of `(w, m)` and the way noise enters, `[2d, 2d]` and `[2d, d]`."""
    d = len(K)
    rate = rate * np.eye(d) if np.ndim(rate) == 0 else rate
    eye = np.eye(d)
    return np.block([[eye - rate @ K, -mu * rate], [K, mu * eye]]), np.vstack([-rate, eye])


def discrete_lyapunov(A, Q):
    """`S = A S A^T + Q` by one dense solve."""
    n = len(A)
    solved = np.linalg.solve(np.eye(n * n) - np.kron(A, A), Q.reshape(-1))
    return solved.reshape(n, n)


def joint(K, C, rate, mu):
    """The stationary covariance of `(w, m)`, `[2d, 2d]`."""
    A, B = lifted(K, rate, mu)
    return discrete_lyapunov(A, B @ C @ B.T)


@partial(jax.jit, static_argnames=("chains", "burn", "steps"))
def simulate(K, C, rate, mu, key, *, chains, burn, steps):
    """Mean of `w w^T` over time, one per chain, `[chains, d, d]`."""
    root, d = jnp.linalg.cholesky(C), K.shape[0]

    def step(state, key):
        w, m = state
        m = mu * m + w @ K + jax.random.normal(key, w.shape, w.dtype) @ root.T
        return (w - m @ rate.T, m)

    def measure(carry, key):
        state, total = carry
        state = step(state, key)
        return (state, total + jnp.einsum("ci,cj->cij", state[0], state[0])), None

    before, after = jax.random.split(key)
    zero = jnp.zeros((chains, d))
    keys = jax.random.split(before, burn)
    state, _ = jax.lax.scan(lambda s, k: (step(s, k), None), (zero, zero), keys)
    start = (state, jnp.zeros((chains, d, d)))
    return jax.lax.scan(measure, start, jax.random.split(after, steps))[0][1] / steps


def z_scores(samples, expected):
    """How many standard errors the mean over chains is away, entry by entry."""
    samples = np.asarray(samples)
    error = samples.std(0, ddof=1) / np.sqrt(len(samples))
    return (samples.mean(0) - expected) / error
