"""Twenty problems on which plans are held to what they promise; many are hostile on purpose.

Ill-conditioned features, heavy tails of rows, of targets and of both, real data; twelve quadratic
inner losses and eight others. Each is ``(problem, hyper, params, data)``.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from sklearn.datasets import load_breast_cancer, load_diabetes, load_iris

import bilevel as bl

Parts: TypeAlias = tuple[bl.Problem, Any, Any, bl.Data]


class Design(NamedTuple):
    """Rows and targets of a regression, and how they were made hostile."""

    X: np.ndarray
    y: np.ndarray


def squares(w, h, batch):
    """Half the mean squared error."""
    X, y = batch
    return jnp.mean((X @ w - y) ** 2) / 2


def log_loss(w, h, batch):
    """Logistic loss, labels -1 and 1."""
    X, y = batch
    return jnp.mean(jax.nn.softplus(-y * (X @ w)))


def poisson_loss(w, h, batch):
    """Poisson deviance of counts, up to a constant."""
    X, y = batch
    return jnp.mean(jnp.exp(X @ w) - y * (X @ w))


def robust_loss(w, h, batch):
    """A smooth loss that grows like an absolute value."""
    X, y = batch
    return jnp.mean(jnp.sqrt(1 + (X @ w - y) ** 2) - 1)


def softmax_loss(w, h, batch):
    """Cross-entropy; labels are indicators of the classes."""
    X, y = batch
    return -jnp.mean(jnp.sum(y * jax.nn.log_softmax(X @ w), 1))


def penalised(loss):
    """With one log-penalty, or one per feature."""
    return lambda w, h, batch: loss(w, h, batch) + jnp.sum(jnp.exp(h) * w**2) / 2


def weighted(w, h, batch):
    """Two groups of rows, of which the second has a learned weight, and a fixed penalty."""
    X, y, group = batch
    weight = jnp.where(group == 0, 1.0, jax.nn.sigmoid(h))
    return jnp.mean(weight * (X @ w - y) ** 2) / 2 + 0.05 * jnp.sum(w**2)


def weighted_outer(w, h, batch):
    """The rows of the first group alone are to be predicted."""
    return squares(w, h, batch[:2])


def scaled_rows(rng: np.random.Generator, rows: int, features: int, decades: float) -> np.ndarray:
    """Gaussian rows whose columns fall in size over so many decades."""
    return rng.standard_normal((rows, features)) * 10 ** -np.linspace(0, decades, features)


def equal_rows(rng: np.random.Generator, rows: int, features: int, share: float) -> np.ndarray:
    """Gaussian rows whose columns share a common part."""
    own = rng.standard_normal((rows, features))
    return np.sqrt(1 - share) * own + np.sqrt(share) * rng.standard_normal((rows, 1))


def regression(seed: int, X: np.ndarray, noise: Callable[..., Any]) -> Design:
    """Targets of random coefficients that matter alike, with noise of any law."""
    rng = np.random.default_rng(seed + 1000)
    size = np.sqrt(np.mean(X**2, 0))
    return Design(X, X @ (rng.standard_normal(X.shape[1]) / size) + noise(rng, len(X)))


def normal(rng: np.random.Generator, rows: int) -> np.ndarray:
    """Noise of unit variance."""
    return rng.standard_normal(rows)


def heavy(rng: np.random.Generator, rows: int) -> np.ndarray:
    """Noise of Student's law with two degrees of freedom: no variance."""
    return rng.standard_t(2, rows)


def split(design: Design, inner: int) -> bl.Data:
    """The first rows below, the others above."""
    X, y = design
    return bl.Data(inner=(X[:inner], y[:inner]), outer=(X[inner:], y[inner:]))


def ridge(design: Design, hyper: Any, inner: int = 60) -> Parts:
    """Ridge regression, one penalty or one for each feature."""
    problem = bl.Problem(penalised(squares), squares, quadratic=True)
    return problem, hyper, np.zeros(design.X.shape[1]), split(design, inner)


def curved(loss: Callable[..., Any], design: Design, hyper: Any, inner: int = 60) -> Parts:
    """A penalised loss that is not quadratic."""
    return (
        bl.Problem(penalised(loss), loss),
        hyper,
        np.zeros(design.X.shape[1]),
        split(design, inner),
    )


def tested(name: str, seed: int) -> Parts:
    """One of the problems of the tests."""
    case = getattr(bl.testing, name)(seed=seed)
    return case.problem, case.hyper, case.params, case.data


def real(load: Callable[..., Any], features: int = 10) -> Design:
    """Standardised columns; labels of two classes are -1 and 1, other targets standardised."""
    X, y = load(return_X_y=True)
    X = ((X - X.mean(0)) / X.std(0))[:, :features]
    order = np.random.default_rng(0).permutation(len(y))
    y = 2.0 * y - 1 if len(np.unique(y)) == 2 else (y - y.mean()) / y.std()
    return Design(X[order], y[order])


def iris() -> Parts:
    """Three classes by softmax, 12 coefficients."""
    X, y = load_iris(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(y))
    X = (X - X.mean(0)) / X.std(0)
    problem = bl.Problem(penalised(softmax_loss), softmax_loss)
    data = split(Design(X[order], np.eye(3)[y[order]]), 100)
    return problem, -3.0, np.zeros((4, 3)), data


def labels(design: Design) -> Design:
    """The signs of the targets."""
    return Design(design.X, np.where(design.y > 0, 1.0, -1.0))


def counts(seed: int, X: np.ndarray) -> Design:
    """Poisson counts of moderate rates."""
    rng = np.random.default_rng(seed + 1000)
    w = rng.standard_normal(X.shape[1]) / np.sqrt(X.shape[1] * np.mean(X**2, 0))
    return Design(X, rng.poisson(np.exp(0.7 * X @ w)).astype(float))


def groups() -> Parts:
    """Half of the rows have another law; their weight is learned."""
    rng = np.random.default_rng(12)
    X = rng.standard_normal((120, 5))
    y = X @ rng.standard_normal(5) + 0.5 * rng.standard_normal(120)
    group = np.arange(120) % 2
    y = np.where((group == 1) & (np.arange(120) < 80), -y + rng.standard_t(2, 120), y)
    inner, outer = (X[:80], y[:80], group[:80]), (X[80:], y[80:], group[80:])
    problem = bl.Problem(weighted, weighted_outer, quadratic=True)
    return problem, 0.0, np.zeros(5), bl.Data(inner=inner, outer=outer)


def all_cases() -> dict[str, tuple[bool, Parts]]:
    """Return ``name -> (quadratic, parts)``."""
    rng = np.random.default_rng
    wide, tailed = scaled_rows(rng(5), 120, 6, 1.5), rng(6).standard_t(3, (120, 5))
    leverage, alike = rng(7).standard_t(2, (120, 4)), equal_rows(rng(8), 120, 6, 0.95)
    plain = rng(9).standard_normal((120, 5))
    both = scaled_rows(rng(10), 120, 5, 1.0) * rng(10).standard_t(3, (120, 1))
    quadratic = {
        "ridge": tested("ridge", 0),
        "ridge, another": tested("ridge", 1),
        "diabetes, a penalty each": ridge(real(load_diabetes), np.full(10, -2.0), 300),
        "diabetes, one penalty": ridge(real(load_diabetes), 0.0, 300),
        "ill-conditioned": ridge(regression(5, wide, normal), np.log(1e-3)),
        "ill-conditioned, a penalty each": ridge(regression(5, wide, normal), np.full(6, -5.0)),
        "correlated": ridge(regression(8, alike, normal), np.full(6, -3.0)),
        "heavy rows": ridge(regression(6, tailed, normal), -2.0),
        "heavier rows": ridge(regression(7, leverage, normal), np.full(4, -2.0)),
        "heavy targets": ridge(regression(9, plain, heavy), -1.0),
        "heavy and ill-conditioned": ridge(regression(10, both, heavy), np.full(5, -3.0)),
        "weights of groups": groups(),
    }
    signs = labels(regression(5, wide, normal))
    others = {
        "logistic": tested("logistic", 0),
        "logistic, another": tested("logistic", 1),
        "breast cancer": curved(log_loss, real(load_breast_cancer), -3.0, 400),
        "logistic, ill-conditioned": curved(log_loss, signs, -4.0),
        "logistic, heavy rows": curved(log_loss, labels(regression(6, tailed, normal)), -2.0),
        "counts": curved(poisson_loss, counts(11, plain), -1.0),
        "robust, heavy targets": curved(robust_loss, regression(9, plain, heavy), -2.0),
        "iris": iris(),
    }
    return {name: (name in quadratic, parts) for name, parts in (quadratic | others).items()}
