"""Outer rules: how the hyperparameters move, beside any optax transformation."""

from bilevel.outer.adagrad_norm import AdaGradNorm as AdaGradNorm
from bilevel.outer.auto import Auto as Auto
from bilevel.outer.base import Keeps as Keeps
from bilevel.outer.base import Loosens as Loosens
from bilevel.outer.base import Retreats as Retreats
from bilevel.outer.dog import DoG as DoG
from bilevel.outer.lbfgs import LBFGS as LBFGS
from bilevel.outer.line_search import LineSearch as LineSearch
from bilevel.outer.polyak import Polyak as Polyak
