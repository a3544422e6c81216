"""Compiled cross-validation losses, and the folds and moments that they are computed from."""

from bilevel.sklearn.losses.alo import AloLoss
from bilevel.sklearn.losses.arrays import Matrix, centre_full_columns
from bilevel.sklearn.losses.criteria import compute_gcv, compute_sure, leave_one_out
from bilevel.sklearn.losses.criterion_loss import (
    CriterionLoss,
    CriterionPath,
    CriterionRows,
    make_criterion_rows,
    make_product_criterion,
)
from bilevel.sklearn.losses.fold_quadratics import FoldQuadratics, make_quadratics
from bilevel.sklearn.losses.fold_sums import (
    FoldSums,
    compute_fold_sums,
    compute_group_sums,
    label_groups,
)
from bilevel.sklearn.losses.folds import Folds, find_nested_folds, make_folds, make_splits
from bilevel.sklearn.losses.glm import GlmLoss
from bilevel.sklearn.losses.glm_folds import GlmFolds
from bilevel.sklearn.losses.group_lasso import GroupLassoLoss
from bilevel.sklearn.losses.influence import (
    RowInfluence,
    differentiate_influence,
    make_criterion_influence,
    make_fold_influence,
)
from bilevel.sklearn.losses.kernel import KernelLoss
from bilevel.sklearn.losses.lasso import ElasticNetLoss, SparseLoss
from bilevel.sklearn.losses.links import (
    LOGISTIC,
    MULTINOMIAL,
    SQUARED,
    Link,
    make_huber,
    make_tweedie,
)
from bilevel.sklearn.losses.ridge import RidgeLoss
from bilevel.sklearn.losses.rotation import rotate_rows
from bilevel.sklearn.losses.row_products import ProductPath, make_product_path
from bilevel.sklearn.losses.rows import compute_column_squares
from bilevel.sklearn.losses.sparse_classes import ClassLoss, make_class_folds
from bilevel.sklearn.losses.sparse_glm import make_glm_folds
from bilevel.sklearn.losses.spectrum import RidgePath
from bilevel.sklearn.losses.sure import make_probes

__all__ = [
    "LOGISTIC",
    "MULTINOMIAL",
    "SQUARED",
    "AloLoss",
    "ClassLoss",
    "CriterionLoss",
    "CriterionPath",
    "CriterionRows",
    "ElasticNetLoss",
    "FoldQuadratics",
    "FoldSums",
    "Folds",
    "GlmFolds",
    "GlmLoss",
    "GroupLassoLoss",
    "KernelLoss",
    "Link",
    "Matrix",
    "ProductPath",
    "RidgeLoss",
    "RidgePath",
    "RowInfluence",
    "SparseLoss",
    "centre_full_columns",
    "compute_column_squares",
    "compute_fold_sums",
    "compute_gcv",
    "compute_group_sums",
    "compute_sure",
    "differentiate_influence",
    "find_nested_folds",
    "label_groups",
    "leave_one_out",
    "make_class_folds",
    "make_criterion_influence",
    "make_criterion_rows",
    "make_fold_influence",
    "make_folds",
    "make_glm_folds",
    "make_huber",
    "make_probes",
    "make_product_criterion",
    "make_product_path",
    "make_quadratics",
    "make_splits",
    "make_tweedie",
    "rotate_rows",
]
