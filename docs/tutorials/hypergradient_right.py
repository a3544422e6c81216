# %% [markdown]
# # Is my hypergradient right?
#
# A hypergradient may be wrong because the losses are not what they seem, because the solver stopped
# too early, or because it is noise. Each has a tool: `bl.check` looks for the first, the evidence
# of every estimate for the second and third, and `bl.plan` sets up SGD for an error that you name.

# %%
import warnings

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_diabetes

import bilevel as bl

X, y = load_diabetes(return_X_y=True)
X, y = jnp.asarray(X / X.std(0)), jnp.asarray((y - y.mean()) / y.std())


def loss(w, log_penalty, batch):
    return jnp.mean((batch[0] @ w - batch[1]) ** 2) / 2


def inner(w, log_penalty, batch):
    return loss(w, log_penalty, batch) + jnp.exp(log_penalty) * jnp.sum(w**2) / 2


problem = bl.Problem(inner, loss)
data = bl.Data(inner=(X[:300], y[:300]), outer=(X[300:], y[300:]))
log_penalty, w, key = jnp.array(-2.0), jnp.zeros(10), jax.random.key(0)

# %% [markdown]
# ## Are the losses right? `bl.check`
#
# The definition is $h(\lambda) = F(w^*(\lambda), \lambda)$, and its derivative may be had without
# any theory: solve the inner problem to rounding at $\lambda + \epsilon$ and $\lambda - \epsilon$,
# in float64, and take the difference. That is too expensive for every step of a run, and just right
# once, before it. `bl.check` compares estimators with it, by default three; here one is enough.

# %%
implicit = bl.Implicit(bl.GradientDescent(0.4), steps=500)
report = bl.check(problem, log_penalty, w, data, {"Implicit": implicit})
print(report)
assert report.agrees

# %% [markdown]
# The column `error` is the distance from the finite differences, `known` what the estimator says of
# itself.
#
# Now a mistake that is easily made: the penalty is computed somewhere else, and a `stop_gradient`
# is left in it.


# %%
def inner_with_mistake(w, log_penalty, batch):
    penalty = jax.lax.stop_gradient(jnp.exp(log_penalty))
    return loss(w, log_penalty, batch) + penalty * jnp.sum(w**2) / 2


mistaken = bl.Problem(inner_with_mistake, loss)
report = bl.check(mistaken, log_penalty, w, data, {"Implicit": implicit})
for row in report.rows:
    print(f"{row.name}: error {row.error:.2g}, known {float(row.known):.2g}")
    print(row.verdict)
assert not report.agrees

# %% [markdown]
# The evidence of the estimate is blind to this: every equation that it knows is solved, and the
# equations are wrong. Only the definition tells. So check once, whenever a loss is new.
#
# ## Is it solved? The evidence
#
# Every estimate has a relative error, from residuals and curvature. A hundred steps of SGD are not
# enough here, and a warning says so, with its cause and a cure.

# %%
sgd = bl.SGD(step_size=0.05, batch_size=16)
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    short, _ = bl.hypergradient(
        problem, bl.Forward(sgd, steps=100), log_penalty, w, data, key, max_error=0.5
    )
print(caught[0].message)

# %% [markdown]
# We can look behind the scenes, since the exact hypergradient is a matter of one factorisation on a
# quadratic problem.

# %%
exact, _ = bl.hypergradient(
    bl.Problem(inner, loss, quadratic=True), bl.ClosedForm(), log_penalty, w, data, key
)
print(f"reported {short.relative_error:.2f}, true {abs(short.grad / exact.grad - 1):.2f}")

# %% [markdown]
# On a problem of so few params the report is the true error, noise included, because the inner
# problem is solved once more for it. [Evidence](../evidence.md) says what is known of large ones,
# and what is not.
#
# ## How must I run SGD? `bl.plan`
#
# The mean over the last iterates has less noise; how many are needed, with which step size and
# batch? `bl.plan` answers by the exact theory of second moments of SGD, before anything is run: the
# cheapest setting whose root mean square error is ten per cent.

# %%
plan = bl.plan(problem, log_penalty, w, data, tolerance=0.1, batch_sizes=(1, 16, 64))
print(plan)

# %% [markdown]
# ## Is the plan true?
#
# A promise about averages is tested by repetition: one hundred runs, with minibatches of their own,
# in one call of `jax.vmap`.


# %%
@jax.jit
@jax.vmap
def repeat(key):
    return bl.hypergradient(problem, plan.estimator, log_penalty, w, data, key, evidence="off")[
        0
    ].grad


errors = np.asarray(repeat(jax.random.split(key, 100))) / float(exact.grad) - 1
rms = np.sqrt(np.mean(errors**2))
# The standard deviation of the mean of squares, carried over to its root.
uncertainty = np.std(errors**2, ddof=1) / 100**0.5 / (2 * rms)
print(
    f"root mean square error of 100 runs {rms:.3f} +- {uncertainty:.3f},",
    f"planned {plan.error.total:.3f}",
)
print(f"off by more than 10 %: {np.mean(abs(errors) > 0.1):.0%} of the runs")
assert abs(rms - plan.error.total) < 4 * uncertainty

# %%
figure, axes = plt.subplots(figsize=(6.5, 3.6), layout="constrained")
axes.hist(100 * errors, 20, density=True, color="C0", alpha=0.6, label="100 runs")
grid = np.linspace(-40, 40, 200)
spread = 100 * plan.error.total
axes.plot(
    grid, np.exp(-((grid / spread) ** 2) / 2) / spread / (2 * np.pi) ** 0.5, "C3", label="plan"
)
axes.set(xlabel="error of the hypergradient, per cent", ylabel="density of runs")
axes.legend()
plt.show()

# %% [markdown]
# *About one run in three is off by more than the ten per cent of the plan, as a normal law with
# this spread would have it: a tolerance is a standard deviation, no bound.*

# %% [markdown]
# ## What to do next
#
# * [Evidence](../evidence.md): every field, its price, and measurements of how often it is right.
# * [How noisy is my hypergradient?](../noise.md): where the plan holds, and where it refuses.
# * [Adaptive work](../adaptive.md): `bl.Adaptive` doubles the inner work of a run where its
#   evidence calls for it.
