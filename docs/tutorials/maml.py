# %% [markdown]
# # MAML on sinusoids
#
# Many small tasks, each with a few examples. What they share is learned: a start from which one
# gradient step on ten points is enough. At the end you know how to make the start of an inner
# problem a hyperparameter, and how to draw inner problems at random.
#
# The method is model-agnostic meta-learning (MAML) of [Finn, Abbeel, Levine,
# 2017](https://arxiv.org/abs/1703.03400), on the sinusoids of its section 5.1.

# %%
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import optax

import bilevel as bl

# %% [markdown]
# ## The tasks
#
# A task is a curve $a \sin(x - \varphi)$ with an amplitude between 0.1 and 5 and a phase between 0
# and $\pi$. It shows some points with $x$ between -5 and 5.


# %%
def curves(key, tasks, points):
    of_amplitude, of_phase, of_x = jax.random.split(key, 3)
    amplitude = jax.random.uniform(of_amplitude, (tasks, 1), minval=0.1, maxval=5.0)
    phase = jax.random.uniform(of_phase, (tasks, 1), maxval=jnp.pi)
    x = jax.random.uniform(of_x, (tasks, points), minval=-5.0, maxval=5.0)
    return x[..., None], amplitude * jnp.sin(x - phase)


x, y = curves(jax.random.key(1), 10_000, 20)
learn, judge = (x[:, :10], y[:, :10]), (x[:, 10:], y[:, 10:])
data = bl.Data(inner=learn, outer=judge)
print("tasks, points to learn from, inputs:", learn[0].shape)

# %% [markdown]
# ## Two losses, and a start
#
# The params $w$ are the weights of a small network. Both losses are its mean squared error, the
# inner one on ten points of a task, the outer one on ten others. Neither contains the
# hyperparameter: it is the *start* $\theta$,
#
# $$ \min_\theta \; \mathbb{E}_{\text{tasks}}\, F_t\big(\theta - \eta \nabla f_t(\theta)\big) . $$
#
# `Problem(start=...)` says so: every inner solve begins there.


# %%
class Network(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.tanh(nn.Dense(32)(x))
        x = nn.tanh(nn.Dense(32)(x))
        return nn.Dense(1)(x)[:, 0]


network = Network()


def loss(w, start, batch):
    x, y = batch
    return jnp.mean((network.apply(w, x) - y) ** 2)


problem = bl.Problem(loss, loss, start=lambda start, w: start)
random_start = network.init(jax.random.key(0), x[0])

# %% [markdown]
# ## The estimator
#
# `bl.Reverse` differentiates one gradient step of one task, its second derivatives included.
# `bl.Sampled` draws ten tasks at every outer step, and averages.

# %%
adapt = bl.GradientDescent(0.02)
estimator = bl.Sampled(bl.Reverse(adapt, steps=1), tasks=10)
result = bl.tune(
    problem,
    estimator,
    optax.adam(3e-3),
    random_start,
    random_start,
    data,
    steps=1000,
    key=jax.random.key(2),
    evidence="off",
)
losses = result.history["value"]
print(f"mean outer loss of the first 50 steps {losses[:50].mean():.2f}, of the last 50 ", end="")
print(f"{losses[-50:].mean():.2f}")

# %% [markdown]
# ## Curves that nobody has seen
#
# The start is judged on 300 new tasks, before and after it adapts to ten points of each. The other
# rows of the table are what MAML has to beat: a random start, and one network that has been trained
# on all curves at once, as if they were one regression.


# %%
@partial(jax.jit, static_argnames="steps")
def adapted(start, x, y, steps):
    if steps == 0:
        return start
    one = bl.Data(inner=(x, y), outer=None)
    return bl.solve(problem, adapt, start, start, one, jax.random.key(0), steps=steps)


@partial(jax.jit, static_argnames="steps")
def error(start, steps):
    def one(x, y):
        w = adapted(start, x[:10], y[:10], steps)
        return loss(w, start, (x[10:], y[10:]))

    each = jax.vmap(one)(*unseen)
    return each.mean(), each.std(ddof=1) / len(each) ** 0.5


unseen = curves(jax.random.key(5), 300, 110)
everything = bl.Data(inner=(x.reshape(-1, 1), y.reshape(-1)), outer=None)
adam = bl.Optax(optax.adam(3e-3), batch_size=200)
pooled = bl.solve(
    bl.Problem(loss, loss),
    adam,
    jnp.zeros(()),
    random_start,
    everything,
    jax.random.key(3),
    steps=1000,
)
starts = {"MAML": result.hyper, "one network for all": pooled, "random start": random_start}
for name, start in starts.items():
    numbers = [error(start, steps) for steps in (0, 1, 5)]
    print(f"{name:<20}", *(f"{mean:6.2f} +- {half:.2f}" for mean, half in numbers))

# %% [markdown]
# The three columns are the mean squared error after 0, 1 and 5 gradient steps, with standard errors
# over tasks. Before it adapts, the learned start is no better than one network for all: both can
# only guess the mean curve. After one step on ten points it has become the curve that they come
# from, and the others have not.

# %%
figure, axes = plt.subplots(1, 3, figsize=(11, 3.2), sharey=True, layout="constrained")
grid = jnp.linspace(-5, 5, 200)[:, None]
for number, at in enumerate(axes):
    points = unseen[0][number, :10], unseen[1][number, :10]
    for steps, style in ((0, ":"), (1, "--"), (5, "-")):
        curve = network.apply(adapted(result.hyper, *points, steps), grid)
        at.plot(grid, curve, style, color="C0", label=f"after {steps} steps")
    order = jnp.argsort(unseen[0][number, :, 0])
    at.plot(unseen[0][number, order, 0], unseen[1][number, order], color="0.6", label="true curve")
    at.plot(*points, "ko", markersize=4, label="points shown")
    at.set(xlabel="x")
axes[0].set_ylabel("y")
axes[0].legend(fontsize=7)
plt.show()

# %% [markdown]
# *One step on ten points turns the shared start (dotted) into something close to the curve that
# they come from (dashed); four more steps change little.*
#
# A thousand outer steps are few: the paper takes seventy times as many, and the error goes on
# falling.

# %% [markdown]
# ## What to do next
#
# * [Meta-learning](../tasks/meta.md) has 10 000 outer steps, learned rates per weight (Meta-SGD),
#   only the head (ANIL), implicit derivatives (iMAML), Reptile, and Omniglot.
# * `bl.Sampled(draw=...)` makes tasks by a function, so that none need be stored.
# * A longer adaptation costs more memory in reverse mode: [which estimator](../choosing.md).
