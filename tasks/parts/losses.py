"""From a model to the two losses of a bilevel problem: one hold-out split, or all folds at once."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

import bilevel as bl
from bilevel.utils import PyTree


@dataclass(frozen=True)
class Model:
    """A model as its losses; equal models give equal problems, which share their compilation.

    Parameters
    ----------
    examples : ``(params, X [n, d], y [n]) -> [n]``, the loss of each row; X may be a tuple.
    penalty : ``(params, hyper) -> ()``.
    quadratic : both are quadratic in ``params``.
    """

    examples: Callable[[PyTree, Any, Array], Array]
    penalty: Callable[[PyTree, PyTree], Array]
    quadratic: bool = False


def holdout(model: Model) -> bl.Problem:
    """Return the problem of one hold-out: penalised training loss, mean validation loss.

    A batch is ``(X [n, d], y [n])``.
    """
    return bl.Problem(_Fit(model), _Score(model), quadratic=model.quadratic)


def kfold(model: Model) -> bl.Problem:
    r"""Return the problem of all folds at once; params have a leading axis of F folds.

    A batch is ``(X [n, F, d], y [n, F], weight [n, F])``, the weight being ``n / n_f`` on the
    ``n_f`` rows that fold f uses and 0 elsewhere, so that the mean over any rows drawn at random
    is an unbiased estimate of the mean over the fold's own:

        inner = sum_f  mean_i(weight_if loss_if) + penalty(params_f)
        outer = mean_f mean_i(weight_if loss_if)

    The inner loss is a sum because folds do not touch each other: each moves as if it were alone.
    """
    inner, outer = _Folds(_Fit(model), jnp.sum), _Folds(_Score(model), jnp.mean)
    return bl.Problem(inner, outer, quadratic=model.quadratic)


def problem(model: Model, folds: int | None) -> bl.Problem:
    """Return :func:`kfold`, or :func:`holdout` for ``None``."""
    return holdout(model) if folds is None else kfold(model)


@dataclass(frozen=True)
class _Fit:
    model: Model

    def __call__(self, params: PyTree, hyper: PyTree, batch: Any) -> Array:
        return _mean(self.model, params, batch) + self.model.penalty(params, hyper)


@dataclass(frozen=True)
class _Score:
    model: Model

    def __call__(self, params: PyTree, hyper: PyTree, batch: Any) -> Array:
        return _mean(self.model, params, batch)


@dataclass(frozen=True)
class _Folds:
    one: Callable[[PyTree, PyTree, Any], Array]
    combine: Callable[[Array], Array]

    def __call__(self, params: PyTree, hyper: PyTree, batch: Any) -> Array:
        each = jax.vmap(self.one, in_axes=(0, None, 1))(params, hyper, batch)
        return self.combine(each)


def _mean(model: Model, params: PyTree, batch: Any) -> Array:
    X, y, *weight = batch
    losses = model.examples(params, X, y)
    return jnp.mean(weight[0] * losses if weight else losses)
