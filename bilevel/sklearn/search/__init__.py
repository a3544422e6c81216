"""From a grid of penalties to a descent by hypergradient; nothing of scikit-learn in it."""

from bilevel.sklearn.search.descent import (
    Evaluation,
    OuterFunction,
    minimise_outer,
)
from bilevel.sklearn.search.path import (
    ITERATED,
    RESOLUTION,
    SearchOptions,
    SearchResult,
    tune_penalties,
)
from bilevel.sklearn.search.penalties import (
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
    "share_in_groups",
    "tune_penalties",
]
