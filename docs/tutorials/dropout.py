# %% [markdown]
# # Hyperparameters of a flax network with dropout
#
# A learning rate and a weight decay for each layer are tuned through a whole training with Adam and
# dropout. At the end you know what losses with random numbers look like, how settings of an optax
# optimiser become hyperparameters, and how to judge the result by trainings that tuning has not
# seen.

# %%
import flax.linen as nn
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from sklearn.datasets import load_digits

import bilevel as bl

digits = load_digits()
order = np.random.default_rng(0).permutation(len(digits.target))
X, y = (digits.data[order] / 16).astype("float32"), digits.target[order]
parts = slice(0, 150), slice(150, 450), slice(450, None)
train, validation, test = [(jnp.asarray(X[part]), jnp.asarray(y[part])) for part in parts]

# %% [markdown]
# ## The network
#
# One hidden layer, with dropout behind it. There are 150 images to train on, 300 to validate, and
# the rest to judge.


# %%
class Network(nn.Module):
    @nn.compact
    def __call__(self, x, train):
        x = nn.relu(nn.Dense(32)(x))
        x = nn.Dropout(0.3, deterministic=not train)(x)
        return nn.Dense(10)(x)


network, layers = Network(), ("Dense_0", "Dense_1")


def cross_entropy(logits, labels):
    return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, labels))


# %% [markdown]
# ## Losses with a key
#
# With `stochastic=True` both losses have a key as their last argument. `bilevel` gives the same key
# to a step and to its derivative, so both see the same dropout mask: what is differentiated is the
# training that took place. The inner loss of layers $l$ with weights $W_l$ is
#
# $$ f(w, \lambda) = \mathbb{E}\, \ell(w, \text{mask}) + \sum_l e^{\lambda_l} \|W_l\|^2 . $$
#
# The outer loss uses the network as it will be used, without dropout.


# %%
def inner(w, hyper, batch, key):
    x, labels = batch
    logits = network.apply({"params": w}, x, train=True, rngs={"dropout": key})
    decay = sum(jnp.exp(hyper["decay"][name]) * jnp.sum(w[name]["kernel"] ** 2) for name in layers)
    return cross_entropy(logits, labels) + decay


def outer(w, hyper, batch, key):
    x, labels = batch
    return cross_entropy(network.apply({"params": w}, x, train=False), labels)


problem = bl.Problem(inner, outer, stochastic=True)
data = bl.Data(inner=train, outer=validation)

# %% [markdown]
# ## Adam with a learning rate that is tuned
#
# `bl.transform` makes settings of an optax transformation functions of the step count and of the
# hyperparameters. The training has 60 steps on minibatches of 32, and `bl.Reverse` differentiates
# all of them. `eps_root` keeps the square root in Adam differentiable where a gradient is zero.

# %%
adam = bl.transform(
    optax.adam, learning_rate=lambda count, hyper: jnp.exp(hyper["log_rate"]), eps_root=1e-12
)
estimator = bl.Reverse(bl.Optax(adam, batch_size=32), steps=60)
start = {"decay": {name: jnp.array(-9.0) for name in layers}, "log_rate": jnp.log(2e-3)}
weights = network.init(jax.random.key(0), X[:1], train=False)["params"]

result = bl.tune(
    problem,
    estimator,
    optax.adam(0.2),
    start,
    weights,
    data,
    steps=30,
    key=jax.random.key(1),
    warm_start=False,
    evidence="off",
)
print(f"validation loss {result.history['value'][0]:.3f} -> {result.history['value'][-1]:.3f}")
print(f"learning rate {jnp.exp(start['log_rate']):.4f} -> {jnp.exp(result.hyper['log_rate']):.4f}")
for layer in layers:
    before, after = jnp.exp(start["decay"][layer]), jnp.exp(result.hyper["decay"][layer])
    print(f"decay of {layer} {before:.2g} -> {after:.2g}")

# %% [markdown]
# `warm_start=False` trains from the same weights in every outer step. Each step has minibatches and
# masks of its own, so the tuned rate is no fit to one order of the data. The gradient found that
# the rate was far too small for so short a training, and that the decays hardly matter beside it.
#
# ## Judge by trainings from other weights
#
# Ten trainings from new weights, with new minibatches and new masks, are ten lanes of `jax.vmap`. A
# grid of learning rates shows what the usual search finds.


# %%
@jax.jit
@jax.vmap
def trained(hyper, key):
    of_weights, of_steps = jax.random.split(key)
    w = network.init(of_weights, X[:1], train=False)["params"]
    w = bl.solve(problem, estimator.solver, hyper, w, data, of_steps, steps=60)
    logits = network.apply({"params": w}, test[0], train=False)
    return cross_entropy(logits, test[1]), jnp.mean(jnp.argmax(logits, 1) != test[1])


grid = np.geomspace(1e-3, 0.3, 8)
candidates = [start, result.hyper, *({**start, "log_rate": jnp.log(rate)} for rate in grid)]
keys = jax.random.split(jax.random.key(7), 10)
lanes = jax.tree.map(lambda *leaves: jnp.repeat(jnp.stack(leaves), 10), *candidates)
loss, error = (
    np.asarray(numbers).reshape(-1, 10)
    for numbers in trained(lanes, jnp.tile(keys, len(candidates)))
)
names = ["start", "tuned", *(f"rate {rate:.4f}" for rate in grid)]
for name, losses, errors in zip(names, loss, error, strict=True):
    half = losses.std(ddof=1) / 10**0.5
    print(f"{name:<12} test loss {losses.mean():.3f} +- {half:.3f}, error {errors.mean():.3f}")

# %%
figure, axes = plt.subplots(figsize=(6.5, 3.8), layout="constrained")
half = loss.std(1, ddof=1) / 10**0.5
axes.errorbar(grid, loss[2:].mean(1), half[2:], fmt="o-", label="grid of learning rates")
for place, name, colour in ((0, "start", "0.4"), (1, "tuned by gradient", "C3")):
    rate = np.exp(candidates[place]["log_rate"])
    axes.errorbar(rate, loss[place].mean(), half[place], fmt="s", color=colour, label=name)
axes.set(
    xscale="log", yscale="log", xlabel="learning rate of Adam", ylabel="test loss after 60 steps"
)
axes.legend()
plt.show()

# %% [markdown]
# *Thirty outer steps, each of one training and its derivative, take the rate from the left edge of
# the picture into the valley that the grid of eight shows.*
#
# With one learning rate to choose, the grid is as good and simpler. The gradient costs no more for
# three hyperparameters, or for a decay of every layer of a deep network, where a grid ends.

# %% [markdown]
# ## What to do next
#
# * [Deep networks](../deep-networks.md): batch norm, nnx, losses over the whole trajectory, and
#   which key a loss sees.
# * [Data loaders](../data-loaders.md), where the training rows do not fit in memory.
# * Tune a rate for each step: [learning-rate schedules](schedules.py).
