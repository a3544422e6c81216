"""Proximal maps of penalties that select columns; equal settings make equal maps."""

from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array

from tasks.base import PyTree
from tasks.parts.penalty import Penalty


@dataclass(frozen=True)
class Squares:
    """The smooth part of the penalty, ``()``: of the elastic net, else 0."""

    strengths: Penalty | None

    def __call__(self, w: Array, hyper: PyTree) -> Array:
        if self.strengths is None:
            return jnp.zeros((), w.dtype)
        return jnp.sum(self.strengths(hyper["l2"]) * w**2) / 2


@dataclass(frozen=True)
class SoftThreshold:
    """Proximal map of ``sum_j exp(h_j) |w_j|``; ``w`` is ``[d]`` or ``[F, d]``."""

    strengths: Penalty

    def __call__(self, w: Array, hyper: PyTree, step: Any) -> Array:
        l1 = hyper["l1"] if isinstance(hyper, dict) else hyper
        return jnp.sign(w) * jnp.maximum(jnp.abs(w) - step * self.strengths(l1), 0)


@dataclass(frozen=True)
class GroupThreshold:
    """Proximal map of ``sum_g exp(h_g) sqrt(|g|) |w_g|``; one penalty, or one per group."""

    groups: tuple[int, ...]

    def __call__(self, w: Array, hyper: Array, step: Any) -> Array:
        groups = np.array(self.groups)
        member = jnp.asarray(groups[:, None] == np.arange(groups.max() + 1), w.dtype)
        squares = w**2 @ member
        # Where a group is exactly 0 it stays 0, and sqrt must not be differentiated.
        norms = jnp.where(squares > 0, jnp.sqrt(jnp.where(squares > 0, squares, 1)), 1)
        reach = step * jnp.exp(hyper) * np.sqrt(np.bincount(groups)).astype(w.dtype)
        kept = jnp.where(squares > 0, jnp.maximum(1 - reach / norms, 0), 0)
        return w * kept[..., groups]
