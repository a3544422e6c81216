"""Coverage of `bl.confidence` on redrawn ridge data: `python -m benchmarks.confidence`.

Gaussian design, 10 columns, 40 training and 2 000 validation rows. The risk of a fit is known
without data, `|w - beta|^2 / 2` and a constant, so the best penalty for a training set is that of a
grid of risks, and the best one of the population that of their mean. A draw whose best penalty is
at an end of the grid has no interior optimum, which the theory is about, and is left out.
"""

import jax
import jax.numpy as jnp
from jax import Array

import bilevel as bl
from bilevel.spaces import Log

COLUMNS, TRAINING, VALIDATION, SIGNAL = 10, 40, 2000, 0.25
GRID = (-6.0, 4.0, 401)


def inner(w: Array, penalty: Array, batch: tuple[Array, Array]) -> Array:
    """Ridge regression with one penalty."""
    x, y = batch
    return jnp.mean((x @ w - y) ** 2) / 2 + penalty * jnp.sum(w**2) / 2


def outer(w: Array, penalty: Array, batch: tuple[Array, Array]) -> Array:
    """Half the mean squared error."""
    x, y = batch
    return jnp.mean((x @ w - y) ** 2) / 2


PROBLEM = bl.Problem(inner, outer, quadratic=True, space=Log())


def cover(draws: int = 1000, seed: int = 0) -> dict[str, float]:
    """The share of draws whose 95 % interval holds the best penalty, and of those left out."""
    with jax.enable_x64(True):
        return _cover(draws, seed)


def _cover(draws: int, seed: int) -> dict[str, float]:
    beta, grid = jnp.full(COLUMNS, SIGNAL), jnp.linspace(*GRID)

    def sample(key: Array, n: int) -> tuple[Array, Array]:
        design, noise = jax.random.split(key)
        x = jax.random.normal(design, (n, COLUMNS))
        return x, x @ beta + jax.random.normal(noise, (n,))

    def fit(log_penalty: Array, batch: tuple[Array, Array]) -> Array:
        x, y = batch
        hessian = x.T @ x / len(x) + jnp.exp(log_penalty) * jnp.eye(COLUMNS)
        return jnp.linalg.solve(hessian, x.T @ y / len(x))

    def one(key: Array) -> tuple[Array, Array, Array]:
        a, b = jax.random.split(key)
        data = bl.Data(inner=sample(a, TRAINING), outer=sample(b, VALIDATION))
        fits = jax.vmap(lambda g: fit(g, data.inner))(grid)
        values = jax.vmap(lambda w: outer(w, grid[0], data.outer))(fits)
        k = jnp.clip(jnp.argmin(values), 1, len(grid) - 2)
        left, middle, right = values[k - 1], values[k], values[k + 1]
        bend = left - 2 * middle + right
        log_penalty = grid[k] + (grid[1] - grid[0]) * (left - right) / 2 / bend
        params, never = fit(log_penalty, data.inner), jnp.array(False)
        tuned = bl.Result(jnp.exp(log_penalty), params, {}, None, None, never)  # type: ignore[arg-type]
        rows = bl.confidence(tuned, PROBLEM, data).interval()
        both = bl.confidence(tuned, PROBLEM, data, training=True).interval()
        risks = jnp.sum((fits - beta) ** 2, 1) / 2
        return risks, jnp.log(jnp.stack(rows)), jnp.log(jnp.stack(both))

    risks, rows, both = jax.jit(jax.vmap(one))(jax.random.split(jax.random.key(seed), draws))
    best = jnp.argmin(risks, 1)
    interior = (best > 4) & (best < len(grid) - 5)
    own, all_ = grid[best], grid[jnp.argmin(jnp.mean(risks, 0))]
    held = (rows[:, 0] <= own) & (own <= rows[:, 1])
    return {
        "best penalty of the training rows": float(jnp.mean(held[interior])),
        "best penalty of the population, training=True": float(
            jnp.mean((both[:, 0] <= all_) & (all_ <= both[:, 1]))
        ),
        "left out": float(1 - jnp.mean(interior)),
    }


if __name__ == "__main__":
    for name, share in cover().items():
        print(f"{name:50} {share:.3f}")
