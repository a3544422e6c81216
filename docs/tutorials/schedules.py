# %% [markdown]
# # Learning-rate schedules
#
# Every step of SGD gets a learning rate of its own, and all of them are tuned for the loss where
# training *ends*. At the end you know how to make settings of the solver hyperparameters, how to
# average a noisy hypergradient, and why a rate that is best for the next step is a bad rate.
#
# The problem is the noisy quadratic of [Zhang et al., 2019](https://arxiv.org/abs/1907.04164):
# simple enough to compute the expected loss of any schedule exactly, so that nothing below is
# judged by luck.

# %%
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import optax

import bilevel as bl

steps, batch_size = 100, 4
curvatures = 1 / jnp.arange(1.0, 51.0)
rows = jax.random.normal(jax.random.key(1), (20_000, 50))

# %% [markdown]
# ## Two losses
#
# The inner loss has 50 directions of curvature $c_j = 1/j$, and every row pulls towards a point of
# its own, whose mean is zero; the outer loss is the distance from the true minimum:
#
# $$
# f(w) = \frac{1}{2n} \sum_i \sum_j c_j (w_j - x_{ij})^2, \qquad F(w) = \frac{1}{2} \sum_j c_j w_j^2
# .
# $$
#
# Neither depends on the hyperparameters directly: they are in the solver. A `step_size` may be a
# function of the count and of the hyperparameters. A sigmoid keeps each rate below 1.9, since steep
# directions diverge above 2.


# %%
def inner(w, hyper, batch):
    return jnp.mean(jnp.sum(curvatures * (w - batch) ** 2, axis=-1)) / 2


def outer(w, hyper, batch):
    return jnp.sum(curvatures * w**2) / 2


def rates(hyper):
    return 1.9 * jax.nn.sigmoid(hyper)


problem = bl.Problem(inner, outer)
data = bl.Data(inner=rows, outer=jnp.zeros(1))
sgd = bl.SGD(step_size=lambda count, hyper: rates(hyper[count]), batch_size=batch_size)
start, w, key = jnp.full(steps, -1.0), jnp.full(50, 3.0), jax.random.key(0)

# %% [markdown]
# ## The exact answer
#
# Mean $m_j$ and variance $v_j$ of each entry of $w$ obey a recursion,
#
# $$
# m_j \leftarrow (1 - \eta_k c_j)\, m_j, \qquad v_j \leftarrow (1 - \eta_k c_j)^2 v_j + (\eta_k
# c_j)^2 / B ,
# $$
#
# with $B$ rows in a minibatch, and the expected loss after each step is $\frac{1}{2} \sum_j c_j
# (m_j^2 + v_j)$.


# %%
@jax.jit
def expected(rates):
    """Return the expected loss after each of the steps."""

    def step(moments, rate):
        mean, variance = moments
        shrink = 1 - rate * curvatures
        mean, variance = shrink * mean, shrink**2 * variance + (rate * curvatures) ** 2 / batch_size
        return (mean, variance), jnp.sum(curvatures * (mean**2 + variance)) / 2

    return jax.lax.scan(step, (w, jnp.zeros(50)), rates)[1]


# %% [markdown]
# ## The hypergradient of one hundred rates
#
# `bl.Reverse` propagates backwards through all steps of SGD, at about twice the cost of the
# training itself. One training is noisy, so `bl.Replicated` averages sixteen of them, with
# minibatches of their own, and reports the standard error.

# %%
estimator = bl.Replicated(bl.Reverse(sgd, steps=steps), n=16)
estimate, _ = bl.hypergradient(problem, estimator, start, w, data, key)
exact = jax.grad(lambda hyper: expected(rates(hyper))[-1])(start)
true = jnp.linalg.norm(estimate.grad - exact) / jnp.linalg.norm(exact)
print(f"relative error: reported {estimate.relative_error:.2f}, true {true:.2f}")

# %% [markdown]
# The report knows nothing of the exact recursion, and it is of the right order: it says how far
# such an estimate lies from the truth on average, and this one is a single draw. An error of this
# size is no obstacle to stochastic descent: Adam averages over its steps as well.
#
# ## Tune
#
# `warm_start=False` begins every training at the same point; otherwise each would go on where the
# last one ended.

# %%
result = bl.tune(
    problem,
    estimator,
    optax.adam(0.3),
    start,
    w,
    data,
    steps=60,
    key=key,
    warm_start=False,
    evidence="off",
)
tuned = rates(result.hyper)
print(f"expected loss {expected(rates(start))[-1]:.4f} -> {expected(tuned)[-1]:.4f}")

# %% [markdown]
# ## What to compare with
#
# A constant rate and a cosine have one number each, and are tuned on a grid of 100. The greedy
# schedule takes at every step the rate that is best for the very next loss.

# %%
peaks = jnp.linspace(0.02, 1.9, 100)
shape = (1 + jnp.cos(jnp.pi * jnp.arange(steps) / steps)) / 2
constant = min(peaks[:, None] * jnp.ones(steps), key=lambda s: expected(s)[-1])
cosine = min(peaks[:, None] * shape, key=lambda s: expected(s)[-1])


@jax.jit
def greedy():
    def step(moments, _):
        mean, variance = moments
        noise = curvatures**2 / batch_size
        # The loss after a step is quadratic in the rate, and this is where it is least.
        slope = jnp.sum(curvatures**2 * (mean**2 + variance))
        rate = slope / jnp.sum(curvatures * (curvatures**2 * (mean**2 + variance) + noise))
        shrink = 1 - rate * curvatures
        return (shrink * mean, shrink**2 * variance + rate**2 * noise), rate

    return jax.lax.scan(step, (w, jnp.zeros(50)), length=steps)[1]


schedules = {
    "one rate per step": tuned,
    "cosine": cosine,
    "constant": constant,
    "greedy": greedy(),
}
for name, schedule in schedules.items():
    print(f"{name:<18} expected loss after {steps} steps {expected(schedule)[-1]:.4f}")

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.8), layout="constrained")
for name, schedule in schedules.items():
    left.plot(schedule, label=name)
    right.semilogy(expected(schedule))
left.set(xlabel="step of SGD", ylabel="learning rate")
right.set(xlabel="step of SGD", ylabel="expected loss")
left.legend()
plt.show()

# %% [markdown]
# *A rate per step stays large while there is a way to go along the flat directions, and falls at
# the end to average the noise away; the greedy schedule is the best one at first and the worst one
# in the end.*
#
# This is the short-horizon bias of [Wu et al., 2018](https://arxiv.org/abs/1803.02021): a small
# rate looks best at once, because it reduces the noise of the steep directions, and it gives up the
# progress along the flat ones. Whatever tunes rates a few steps ahead inherits it. Differentiating
# the whole training does not.

# %% [markdown]
# ## What to do next
#
# * Tune the momentum as well: it may be a function of `(count, hyper)`, too.
# * [The task page](../tasks/schedule.md) does this for a network on digits, where a tuned cosine is
#   as good.
# * A training of many thousand steps need not be stored: [which estimator](../choosing.md) says
#   what else there is.
