"""From a grid of penalties to a descent by hypergradient; nothing of scikit-learn in it."""

from bilevel.sklearn.search.descent import Evaluation, OuterLoss, minimise_outer
from bilevel.sklearn.search.path import RESOLUTION, SearchOptions, SearchResult, tune_penalties
from bilevel.sklearn.search.penalties import (
    group_columns,
    make_log_bounds,
    make_log_grid,
    make_stages,
)

__all__ = [
    "RESOLUTION",
    "Evaluation",
    "OuterLoss",
    "SearchOptions",
    "SearchResult",
    "group_columns",
    "make_log_bounds",
    "make_log_grid",
    "make_stages",
    "minimise_outer",
    "tune_penalties",
]
