"""Outer rules: how the hyperparameters move, beside any optax transformation."""

from bilevel.outer.adagrad_norm import AdaGradNorm
from bilevel.outer.auto import Auto
from bilevel.outer.base import Keeps, Loosens, Retreats
from bilevel.outer.dog import DoG
from bilevel.outer.lbfgs import LBFGS
from bilevel.outer.line_search import LineSearch
from bilevel.outer.polyak import Polyak

__all__ = [
    "LBFGS",
    "AdaGradNorm",
    "Auto",
    "DoG",
    "Keeps",
    "LineSearch",
    "Loosens",
    "Polyak",
    "Retreats",
]
