"""From a grid of penalties to a descent by hypergradient; nothing of scikit-learn in it."""

from bilevel.sklearn.search.descent import (
    Evaluation,
    OuterFunction,
    minimise_outer,
)
from bilevel.sklearn.search.options import ITERATED, RESOLUTION, SearchOptions
from bilevel.sklearn.search.path import SearchResult, select_strongest, tune_penalties
from bilevel.sklearn.search.penalties import (
    ColumnPenalties,
    check_alphas,
    group_columns,
    make_log_bounds,
    make_spectral_grid,
    make_stages,
    share_in_groups,
)

__all__ = [
    "ITERATED",
    "RESOLUTION",
    "ColumnPenalties",
    "Evaluation",
    "OuterFunction",
    "SearchOptions",
    "SearchResult",
    "check_alphas",
    "group_columns",
    "make_log_bounds",
    "make_spectral_grid",
    "make_stages",
    "minimise_outer",
    "select_strongest",
    "share_in_groups",
    "tune_penalties",
]
