# %% [markdown]
# # Derivatives of SGD, Figure 1 by hand
#
# [Iutzeler, Pauwels, Vaiter, 2024](https://arxiv.org/abs/2405.15894) ask what becomes of the
# derivative of SGD's iterates as SGD goes on. We write the recursion out by hand, see that it is
# what `bl.Forward` computes, and repeat the experiment of their Figure 1 on least squares, beside
# the rates of their theorem.

# %%
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

import bilevel as bl

jax.config.update("jax_enable_x64", True)

# %% [markdown]
# ## Least squares that depends on a parameter
#
# The targets depend on $\theta$, $b(\theta) = b + J\theta$, and so does the solution:
#
# $$
# x^*(\theta) = \operatorname{argmin}_x \frac{1}{2m} \|A x - b(\theta)\|^2, \qquad
# D^* = \frac{d x^*}{d \theta} = (A^T A)^{-1} A^T J .
# $$
#
# There are $m = 50$ rows on the unit sphere in 5 dimensions. The paper's data are not published;
# rows of length one make every single loss smooth with $L = 1$.

# %%
rng = np.random.default_rng(0)
A = rng.standard_normal((50, 5))
A /= np.linalg.norm(A, axis=1, keepdims=True)
fitted = A @ rng.standard_normal(5)
noisy = fitted + 0.5 * rng.standard_normal(50)
mu = np.linalg.eigvalsh(A.T @ A / 50)[0]
sgd = bl.SGD(step_size=0.1, batch_size=1)
print(f"smallest curvature {mu:.4f}")

# %% [markdown]
# ## The recursion, by hand
#
# A step of SGD takes row $i$ and moves against its gradient. Differentiated by $\theta$, it moves
# the derivative with **the same row**:
#
# $$
# x \leftarrow x - \eta\, a_i (a_i^T x - b_i), \qquad
# D \leftarrow D - \eta\, a_i (a_i^T D - J_i) .
# $$
#
# The second is SGD on a least-squares problem of its own, with targets $J$ in place of $b$. That is
# the idea of the paper, and all of the program:


# %%
def squared_errors(step_sizes, b, J, key):
    """Return ``|D_k - D*|^2`` after every step, and the last x and D."""
    best = jnp.linalg.lstsq(A, J)[0]
    state = sgd.init(jnp.zeros(5), jnp.arange(50))
    rows = jnp.asarray(A)

    def step(carry, k):
        x, D = carry
        i = sgd.drawn(jnp.arange(50), jax.random.fold_in(key, k), state)[0]
        x = x - step_sizes[k] * rows[i] * (rows[i] @ x - b[i])
        D = D - step_sizes[k] * jnp.outer(rows[i], rows[i] @ D - J[i])
        return (x, D), jnp.sum((D - best) ** 2)

    start = jnp.zeros(5), jnp.zeros((5, J.shape[1]))
    (x, D), errors = jax.lax.scan(step, start, jnp.arange(len(step_sizes)))
    return errors, x, D


# %% [markdown]
# ## The same from `bl.Forward`
#
# `bl.Forward` carries this derivative along for any smooth loss. Step $k$ of a solver draws with
# `jax.random.fold_in(key, k)`, and `drawn` says which rows these are; above, it gave the number of
# the row. With the outer loss $\|x\|^2 / 2$ the hypergradient is $D^T x$.


# %%
def inner(x, theta, batch):
    rows, b, J = batch
    return jnp.mean((rows @ x - b - J @ theta) ** 2) / 2


problem = bl.Problem(inner, lambda x, theta, batch: jnp.sum(x**2) / 2)
data = bl.Data(inner=(jnp.asarray(A), jnp.asarray(noisy), jnp.eye(50)), outer=jnp.zeros(1))
estimator = bl.Forward(sgd, steps=200)
theta, zeros, key = jnp.zeros(50), jnp.zeros(5), jax.random.key(0)
estimate, state = bl.hypergradient(
    problem, estimator, theta, zeros, data, key, evidence="off", max_error=np.inf
)
_, x, D = squared_errors(jnp.full(200, 0.1), jnp.asarray(noisy), jnp.eye(50), key)
print(f"iterates differ by      {jnp.max(jnp.abs(state.params - x)):.1e}")
print(f"hypergradients differ by {jnp.max(jnp.abs(estimate.grad - D.T @ x)):.1e}")
assert jnp.allclose(estimate.grad, D.T @ x, atol=1e-12)

# %% [markdown]
# ## Three regimes
#
# The theorem bounds $\mathbb{E} \|D_k - D^*\|^2$ for step sizes up to $\mu / (4 L^2)$:
#
# 1. A **constant step** ends at a floor: rows disagree about the derivative, $a_i (a_i^T D^* - J_i)
#    \ne 0$.
# 2. A **decreasing step** $2 / (\mu (k + k_0))$ has no floor, and the error falls as $1/k$.
# 3. With **double interpolation**, $b$ and $J$ in the range of $A$, all rows agree. The error falls
#    geometrically, with a constant step.
#
# Each is run 50 times for 20 000 steps.

# %%
steps = 20_000
constant = jnp.full(steps, mu / 4)
decreasing = 2 / (mu * (jnp.arange(steps) + 8 / mu**2))
regimes = {
    "constant step": (constant, noisy, np.eye(50)),
    "decreasing step": (decreasing, noisy, np.eye(50)),
    "double interpolation": (constant, fitted, A),
}


@jax.jit
def mean_error(step_sizes, b, J):
    keys = jax.random.split(jax.random.key(1), 50)
    return jnp.mean(jax.vmap(lambda key: squared_errors(step_sizes, b, J, key)[0])(keys), axis=0)


curves = {name: np.asarray(mean_error(*map(jnp.asarray, parts))) for name, parts in regimes.items()}
for name, errors in curves.items():
    print(f"{name:<21}", *(f"{errors[k - 1]:9.1e}" for k in (10, 100, 1000, 10_000, 20_000)))

# %% [markdown]
# The columns are the mean squared errors after 10, 100, 1000, 10 000 and 20 000 steps. Is the
# decreasing step at its rate? Against $k + k_0$ on logarithmic axes the slope should be -1 once the
# start is forgotten. And the floor of the constant step? It should be proportional to the step
# size: half the step, half the floor.

# %%
count = np.arange(1, steps + 1) + 8 / mu**2
late = slice(steps // 2, steps)
slope = np.polyfit(np.log(count[late]), np.log(curves["decreasing step"][late]), 1)[0]
half = np.asarray(mean_error(constant / 2, jnp.asarray(noisy), jnp.eye(50)))
floors = [errors[-5000:].mean() for errors in (curves["constant step"], half)]
fall = np.log(curves["double interpolation"][1000] / curves["double interpolation"][3000]) / 2000
print(f"slope of the decreasing step {slope:.2f}")
print(f"floor at the constant step {floors[0]:.2e}, at half of it {floors[1]:.2e}")
print(f"interpolation falls by {fall:.1e} per step; the theorem promises {mu * mu / 4:.1e} or more")
assert abs(slope + 1) < 0.25
assert abs(floors[0] / floors[1] - 2) < 0.4
assert fall > mu * mu / 4

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.8), layout="constrained")
k = np.unique(np.geomspace(1, steps, 400).astype(int))
for name in ("constant step", "decreasing step"):
    left.loglog(k, curves[name][k - 1], label=name)
left.loglog(k, half[k - 1], label="half the constant step")
tail = k[k > 5000]
rate = curves["decreasing step"][-1] * count[-1] / count[tail - 1]
left.loglog(tail, rate, "k--", label=r"$1 / (k + k_0)$")
right.semilogy(k, curves["double interpolation"][k - 1], color="C3")
left.set(xlabel="step k", ylabel=r"mean of $\|D_k - D^*\|^2$")
right.set(xlabel="step k", ylabel=r"mean of $\|D_k - D^*\|^2$", title="double interpolation")
left.legend()
plt.show()

# %% [markdown]
# *The derivative of SGD behaves as SGD itself: it stops at a floor proportional to a constant step,
# falls as $1/k$ with a decreasing one (left), and geometrically where every row has the same answer
# (right).*

# %% [markdown]
# ## What to do next
#
# * [Studies](../studies.md): the same with exact second moments in place of means of runs, four
#   regimes and more steps, and the bound of the theorem drawn beside them.
# * [How noisy is my hypergradient?](../noise.md): what the floor means for the hypergradient, and
#   how averaging lowers it.
# * [What a hypergradient is](../hypergradients.md): unrolled, implicit and stochastic side by side.
