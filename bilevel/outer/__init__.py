"""Outer rules: how the hyperparameters move, beside any optax transformation.

``base.py`` has the protocols of what a rule can do. With ``problem.space`` the rule is wrapped
(``coordinates.py``): estimates stay in natural units, the rule moves free coordinates.
"""

from typing import Any as _Any

from bilevel.outer.adagrad_norm import AdaGradNorm
from bilevel.outer.auto import Auto
from bilevel.outer.base import Backtracks, OuterRule, SetsTolerance, TracksBest
from bilevel.outer.coordinates import (
    AnyRule,
    find_capability,
    history_columns,
    in_coordinates,
    to_coordinates,
    update_hyper,
)
from bilevel.outer.dog import DoG
from bilevel.outer.lbfgs import LBFGS
from bilevel.outer.line_search import LineSearch
from bilevel.outer.polyak import Polyak
from bilevel.utils import resolve_renamed as _renamed

__all__ = [
    "LBFGS",
    "AdaGradNorm",
    "AnyRule",
    "Auto",
    "Backtracks",
    "DoG",
    "LineSearch",
    "OuterRule",
    "Polyak",
    "SetsTolerance",
    "TracksBest",
    "find_capability",
    "history_columns",
    "in_coordinates",
    "to_coordinates",
    "update_hyper",
]

_RENAMED = {
    "Keeps": ("TracksBest", TracksBest),
    "Retreats": ("Backtracks", Backtracks),
    "Loosens": ("SetsTolerance", SetsTolerance),
}


def __getattr__(name: str) -> _Any:
    """Names of the release before, with a warning."""
    return _renamed(__name__, _RENAMED, name)
