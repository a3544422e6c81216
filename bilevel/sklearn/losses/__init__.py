"""Compiled cross-validation losses, and the folds and moments that they are computed from."""

from bilevel.sklearn.losses.arrays import Matrix
from bilevel.sklearn.losses.criteria import (
    CriterionData,
    compute_gcv,
    compute_sure,
    gcv_loss,
    leave_one_out,
    loo_loss,
    sure_loss,
)
from bilevel.sklearn.losses.fold_sums import FoldSums, compute_fold_sums, compute_group_sums
from bilevel.sklearn.losses.folds import make_folds, make_splits
from bilevel.sklearn.losses.glm import (
    LOGISTIC,
    MULTINOMIAL,
    SQUARED,
    FoldFits,
    Link,
    init_fits,
    logistic_loss,
    multinomial_loss,
    solve_fold,
)
from bilevel.sklearn.losses.kernel import kernel_loss
from bilevel.sklearn.losses.lasso import elastic_net_loss, lasso_loss
from bilevel.sklearn.losses.padding import pad, round_up
from bilevel.sklearn.losses.ridge import ridge_loss
from bilevel.sklearn.losses.rows import WeightedRows, compute_mean_square_sum, make_rows, set_folds

__all__ = [
    "LOGISTIC",
    "MULTINOMIAL",
    "SQUARED",
    "CriterionData",
    "FoldFits",
    "FoldSums",
    "Link",
    "Matrix",
    "WeightedRows",
    "compute_fold_sums",
    "compute_gcv",
    "compute_group_sums",
    "compute_mean_square_sum",
    "compute_sure",
    "elastic_net_loss",
    "gcv_loss",
    "init_fits",
    "kernel_loss",
    "lasso_loss",
    "leave_one_out",
    "logistic_loss",
    "loo_loss",
    "make_folds",
    "make_rows",
    "make_splits",
    "multinomial_loss",
    "pad",
    "ridge_loss",
    "round_up",
    "set_folds",
    "solve_fold",
    "sure_loss",
]
