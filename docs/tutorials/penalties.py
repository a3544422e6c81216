# %% [markdown]
# # Penalties on a real table
#
# Ridge regression has one penalty for all columns, and `RidgeCV` finds it by trying a grid. Here
# every column has a penalty of its own. Ten penalties are too many for a grid, and no problem for a
# gradient. At the end you know how to state such a problem, how to tune it, and whether ten
# penalties are worth it on this table.
#
# The table is scikit-learn's diabetes: ten measurements of 442 patients, and how far the disease
# had gone one year later.

# %%
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from sklearn.datasets import load_diabetes
from sklearn.linear_model import LinearRegression, RidgeCV

import bilevel as bl

table = load_diabetes()
X, y = table.data / table.data.std(0), (table.target - table.target.mean()) / table.target.std()
print(X.shape, table.feature_names)

# %% [markdown]
# ## Two losses
#
# The inner loss is what training minimises over the coefficients $w$, given the logarithms
# $\lambda$ of the penalties:
#
# $$ f(w, \lambda) = \frac{1}{n} \sum_i (x_i^T w - y_i)^2 + \sum_j e^{\lambda_j} w_j^2 . $$
#
# The outer loss $F(w)$ is the mean squared error on rows that training has not seen. A logarithm
# may be any number, so no step of the outer loop makes a penalty negative.


# %%
def outer(w, log_penalties, batch):
    rows, targets = batch
    return jnp.mean((rows @ w - targets) ** 2)


def inner(w, log_penalties, batch):
    return outer(w, log_penalties, batch) + jnp.sum(jnp.exp(log_penalties) * w**2)


problem = bl.Problem(inner, outer, quadratic=True)

# %% [markdown]
# `quadratic=True` says that the inner loss is quadratic in $w$, so that it may be solved by one
# factorisation.
#
# The rows are shuffled and split in three: 200 to train on, 100 for the outer loss, and 142 that
# decide nothing and judge the result.


# %%
def split(seed):
    order = np.random.default_rng(seed).permutation(len(y))
    parts = order[:200], order[200:300], order[300:]
    return [(jnp.asarray(X[rows]), jnp.asarray(y[rows])) for rows in parts]


train, validation, test = split(0)
data = bl.Data(inner=train, outer=validation)
start, zeros = jnp.full(10, -2.0), jnp.zeros(10)

# %% [markdown]
# ## One hypergradient
#
# The hypergradient is the derivative of $h(\lambda) = F(w^*(\lambda))$, where $w^*(\lambda)$
# minimises the inner loss. `bl.Auto()` chooses how to compute it. The estimate says by itself how
# wrong it is.

# %%
key = jax.random.key(0)
estimate, _ = bl.hypergradient(problem, bl.Auto(), start, zeros, data, key)
for name, slope in zip(table.feature_names, estimate.grad, strict=True):
    print(f"{name:>4} {slope:+.5f}")
print(f"relative error {estimate.relative_error:.1e}")

# %% [markdown]
# A negative entry says that a larger penalty of this column would lower the validation loss, a
# positive one that a smaller penalty would. The relative error is at the level of rounding: the
# inner problem was solved exactly.
#
# ## Tune all ten
#
# `bl.tune` descends. Its outer rule is any transformation of optax, here Adam, or one of [those
# that need no step size](../outer.md).

# %%
adam = optax.adam(0.2)
result = bl.tune(problem, bl.Auto(), adam, start, zeros, data, steps=40, key=key)
values = result.history["value"]
print(f"validation loss {values[0]:.4f} -> {values[-1]:.4f}")
for name, log_penalty in zip(table.feature_names, result.hyper, strict=True):
    print(f"{name:>4} {jnp.exp(log_penalty):.2g}")

# %% [markdown]
# The penalties differ by orders of magnitude. Columns with a large one are as good as removed; the
# coefficients of the others are almost those of least squares. No single penalty can do both.
#
# ## Beside `RidgeCV`
#
# `RidgeCV` sees training and validation rows, 300 in all. So we fit our model once more on these
# 300 rows, with the penalties found: they belong to the mean loss, and need no change with the
# number of rows.

# %%
both = tuple(jnp.concatenate(pair) for pair in zip(train, validation, strict=True))


def refit(log_penalties, rows):
    return bl.solve(problem, bl.Direct(), log_penalties, zeros, bl.Data(rows, rows), key, steps=1)


ridge = RidgeCV(np.logspace(-3, 4, 60), fit_intercept=False).fit(*both)
plain = LinearRegression(fit_intercept=False).fit(*both)
print(f"ten penalties, test error {outer(refit(result.hyper, both), None, test):.4f}")
print(f"RidgeCV,       test error {outer(ridge.coef_, None, test):.4f}")
print(f"least squares, test error {outer(plain.coef_, None, test):.4f}")

# %% [markdown]
# ## One split is luck
#
# The three numbers are close, and other test rows would move each of them. So the comparison is
# repeated on 50 random splits. Everything in `bilevel` works under `jax.vmap`: fifty runs of `tune`
# are one call. `bl.ClosedForm()` is what `bl.Auto()` takes for a quadratic inner loss.

# %%
splits = [split(seed) for seed in range(50)]
trains, validations, tests = (
    tuple(jnp.stack(leaves) for leaves in zip(*part, strict=True))
    for part in zip(*splits, strict=True)
)


@jax.jit
@jax.vmap
def tuned(train, validation):
    data = bl.Data(inner=train, outer=validation)
    run = bl.tune(problem, bl.ClosedForm(), adam, start, zeros, data, steps=40, key=key)
    both = jax.tree.map(lambda *parts: jnp.concatenate(parts), train, validation)
    return run.hyper, refit(run.hyper, both)


def baseline(train, validation):
    rows = [np.concatenate(pair) for pair in zip(train, validation, strict=True)]
    return RidgeCV(np.logspace(-3, 4, 60), fit_intercept=False).fit(*rows).coef_


def errors(coefficients):
    return np.asarray(jax.vmap(outer, (0, None, 0))(jnp.asarray(coefficients), None, tests))


penalties, coefficients = tuned(trains, validations)
ten, one = errors(coefficients), errors([baseline(*parts[:2]) for parts in splits])
difference = ten - one
spread = difference.std(ddof=1) / len(difference) ** 0.5
print(f"ten penalties {ten.mean():.4f}, RidgeCV {one.mean():.4f}")
print(f"difference    {difference.mean():+.4f}, standard error {spread:.4f}")

# %% [markdown]
# The splits share their rows, so the standard error is too small, if anything. Read the difference
# with that in mind, and look at where it comes from: what a hundred validation rows say of a
# penalty changes from split to split.

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.8), layout="constrained")
left.boxplot(penalties / np.log(10), tick_labels=table.feature_names)
left.set(xlabel="column", ylabel="logarithm of the penalty, base 10", title="50 splits")
right.scatter(one, ten, s=14)
right.axline((0.5, 0.5), slope=1, color="grey", linewidth=1)
right.set(xlabel="test error of RidgeCV", ylabel="test error with ten penalties", title="50 splits")
plt.show()

# %% [markdown]
# *The penalties of most columns are not determined by so few validation rows (left), and so ten of
# them predict no better than the one of `RidgeCV` (right: points on the line are ties).*
#
# The gradient did its work: it found the minimum of the validation loss in ten dimensions. That the
# minimum is worth so little on this table is a fact about the table. Many penalties pay where
# columns come in groups of different kinds, or where there are enough rows to tell them apart.

# %% [markdown]
# ## What to do next
#
# * Share a penalty between columns: make `log_penalties` of length three and index it by the group
#   of each column.
# * From scikit-learn, [`HypergradRidge`](../scikit-learn.md) does all of this by cross-validation,
#   in one line.
# * [Penalties of linear models](../tasks/penalties.md) has logistic and multinomial regression,
#   with their baselines.
