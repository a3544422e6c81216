"""Outer rules: how the hyperparameters move, beside any optax transformation."""

from bilevel.outer.auto import Auto as Auto
from bilevel.outer.dog import DoG as DoG
from bilevel.outer.lbfgs import LBFGS as LBFGS
