# %% [markdown]
# # Cleaning labels
#
# Some training labels are wrong, and a few rows are known to be right. Every training row gets a
# weight of its own, 600 hyperparameters in all, and the loss on the clean rows says which rows to
# trust. At the end you know how to find wrong labels by gradient, how well it works, and what much
# simpler method to compare it with.
#
# The method is that of Franceschi, Donini, Frasconi, Pontil, [Forward and reverse gradient-based
# hyperparameter optimization](https://arxiv.org/abs/1703.01785), 2017, section 5.1.

# %%
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from sklearn.datasets import load_digits
from sklearn.metrics import roc_auc_score

import bilevel as bl

digits = load_digits()
rng = np.random.default_rng(0)
order = rng.permutation(len(digits.target))
images, labels = digits.data[order].astype("float32") / 16, digits.target[order]
train, clean, test = slice(0, 600), slice(600, 800), slice(800, None)

# %% [markdown]
# ## Make the mess
#
# Forty per cent of the training labels become the next digit: a one is called a two. That is worse
# than random labels, because a classifier can learn it. The labels are changed once, before
# anything is fitted.

# %%
wrong = np.zeros(600, bool)
wrong[rng.choice(600, 240, replace=False)] = True
given = np.where(wrong, (labels[train] + 1) % 10, labels[train])
print("wrong labels:", wrong.sum(), "of", len(wrong))

# %% [markdown]
# ## Two losses
#
# The model is softmax regression. With a weight $\sigma(\lambda_i)$ between 0 and 1 for each row,
#
# $$ f(w, \lambda) = \frac{1}{n} \sum_i \sigma(\lambda_i)\, \ell(x_i, y_i; w) + 10^{-3} \|w\|^2 , $$
#
# and $F(w)$ is the mean of $\ell$ over the clean rows. A batch of the inner loss holds the row
# numbers, so that each row finds its weight.


# %%
def losses(w, images, labels):
    logits = images @ w["matrix"] + w["intercept"]
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels)


def inner(w, logits_of_weights, batch):
    images, labels, numbers = batch
    weights = jax.nn.sigmoid(logits_of_weights[numbers])
    return jnp.mean(weights * losses(w, images, labels)) + 1e-3 * optax.tree.norm(w, squared=True)


def outer(w, logits_of_weights, batch):
    return jnp.mean(losses(w, *batch))


problem = bl.Problem(inner, outer)
data = bl.Data(
    inner=(jnp.asarray(images[train]), jnp.asarray(given), jnp.arange(600)),
    outer=(jnp.asarray(images[clean]), jnp.asarray(labels[clean])),
)
zeros = {"matrix": jnp.zeros((64, 10)), "intercept": jnp.zeros(10)}

# %% [markdown]
# ## Tune 600 weights
#
# The inner loss is smooth and strictly convex, so the derivative of its minimiser exists, and the
# implicit function theorem gives it at the price of one linear system, whatever the number of
# hyperparameters. `bl.Implicit` takes L-BFGS for the minimiser, and conjugate gradients for the
# system. All weights begin at one half.

# %%
implicit = bl.Implicit(bl.LBFGS(tol=1e-3), steps=60, linear=bl.CG(tol=1e-3, max_steps=60))
key = jax.random.key(0)
result = bl.tune(problem, implicit, optax.adam(0.6), jnp.zeros(600), zeros, data, steps=25, key=key)
history = result.history
print(f"loss on the clean rows {history['value'][0]:.3f} -> {history['value'][-1]:.3f}")
print(f"largest relative error of a hypergradient {np.max(history['relative_error']):.2g}")

# %% [markdown]
# ## Were the right rows found?
#
# The area under the ROC curve says how well the weights separate right labels from wrong ones: 0.5
# is chance and 1 is perfect. The weights have never seen which labels were changed.

# %%
weights = np.asarray(jax.nn.sigmoid(result.hyper))
print(f"area under the curve {roc_auc_score(~wrong, weights):.3f}")
print(f"weights below 1/2: {np.mean(weights[wrong] < 0.5):.1%} of the wrong labels,", end=" ")
print(f"{np.mean(weights[~wrong] < 0.5):.1%} of the right ones")

# %% [markdown]
# ## Is the classifier better for it?
#
# Each row of the next table is one fit by the same solver; they differ in which rows they trust.
# The last two are the ones to beat. A model of the 200 clean rows needs no weights at all, and it
# may be used for cleaning as well: drop every training row whose label it disputes, then fit what
# is left together with the clean rows.

# %%
both = bl.Data(
    inner=(
        jnp.asarray(np.concatenate([images[train], images[clean]])),
        jnp.asarray(np.concatenate([given, labels[clean]])),
        jnp.arange(800),
    ),
    outer=data.outer,
)


@jax.jit
def fitted(weights):
    """Return what the model says of every image, fitted with these weights of 800 rows."""
    w = bl.solve(problem, bl.LBFGS(tol=1e-4), logit(weights), zeros, both, key, steps=200)
    return jnp.argmax(jnp.asarray(images) @ w["matrix"] + w["intercept"], axis=1)


def logit(weights):
    weights = jnp.clip(weights, 1e-6, 1 - 1e-6)
    return jnp.log(weights / (1 - weights))


def error(weights):
    guess = np.asarray(fitted(np.append(weights, np.ones(200))))
    return np.mean(guess[test] != labels[test]), guess[train]


alone, guess = error(np.zeros(600))
rows = {
    "all rows as they are": error(np.ones(600))[0],
    "one weight per row": error(weights)[0],
    "wrong labels known and dropped": error(~wrong)[0],
    "clean rows alone": alone,
    "disputed labels dropped": error(guess == given)[0],
}
for name, value in rows.items():
    print(f"{name:<31} test error {value:.3f}")

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.6), layout="constrained")
left.hist([weights[~wrong], weights[wrong]], 20, label=["label right", "label wrong"])
left.set(xlabel="weight found", ylabel="training rows")
left.legend()
right.barh(list(rows), list(rows.values()))
right.invert_yaxis()
right.set(xlabel="test error")
plt.show()

# %% [markdown]
# *Wrong labels lose their weight and right ones keep it (left). The weights come close to knowing
# the wrong labels; the two-fit baseline at the bottom has most of the gain at a fraction of the
# cost (right).*
#
# That baseline is missing in much of the literature on data cleaning, and here it comes as a
# warning: on other data and other noise it does as well as the weights do, or better. Never report
# a cleaning method without it.

# %% [markdown]
# ## What to do next
#
# * [Data cleaning](../tasks/cleaning.md): the protocol of the paper on MNIST, other kinds of noise,
#   and what goes wrong with too few clean rows.
# * [`DataCleaner`](../scikit-learn.md) is the same as an estimator of scikit-learn.
# * A weight may be shared, by annotator or by source: index the hyperparameters by that in place of
#   the row number.
