"""Compiled cross-validation losses, and the folds and moments that they are computed from."""

from bilevel.sklearn.losses.arrays import Matrix
from bilevel.sklearn.losses.criteria import compute_gcv, compute_sure, leave_one_out
from bilevel.sklearn.losses.criterion_loss import (
    CriterionLoss,
    CriterionPath,
    CriterionRows,
    make_criterion_rows,
)
from bilevel.sklearn.losses.fold_quadratics import FoldQuadratics, make_quadratics
from bilevel.sklearn.losses.fold_sums import (
    FoldSums,
    compute_fold_sums,
    compute_group_sums,
    label_groups,
)
from bilevel.sklearn.losses.folds import find_nested_folds, make_folds, make_splits
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
from bilevel.sklearn.losses.lasso import ElasticNetLoss
from bilevel.sklearn.losses.padding import pad, round_up
from bilevel.sklearn.losses.ridge import RidgeLoss
from bilevel.sklearn.losses.rotation import rotate_rows
from bilevel.sklearn.losses.rows import (
    WeightedRows,
    compute_column_squares,
    compute_mean_square_sum,
    make_rows,
    set_folds,
)
from bilevel.sklearn.losses.spectrum import RidgePath

__all__ = [
    "LOGISTIC",
    "MULTINOMIAL",
    "SQUARED",
    "CriterionLoss",
    "CriterionPath",
    "CriterionRows",
    "ElasticNetLoss",
    "FoldFits",
    "FoldQuadratics",
    "FoldSums",
    "Link",
    "Matrix",
    "RidgeLoss",
    "RidgePath",
    "WeightedRows",
    "compute_column_squares",
    "compute_fold_sums",
    "compute_gcv",
    "compute_group_sums",
    "compute_mean_square_sum",
    "compute_sure",
    "find_nested_folds",
    "init_fits",
    "kernel_loss",
    "label_groups",
    "leave_one_out",
    "logistic_loss",
    "make_criterion_rows",
    "make_folds",
    "make_quadratics",
    "make_rows",
    "make_splits",
    "multinomial_loss",
    "pad",
    "rotate_rows",
    "round_up",
    "set_folds",
    "solve_fold",
]
