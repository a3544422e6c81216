"""What a run leaves to predict with: estimators of scikit-learn's kind, saved without a pickle."""

from tasks.models.estimators import (
    Core,
    KernelCore,
    LinearCore,
    TabularClassifier,
    TabularRegressor,
    make_model,
)
from tasks.models.files import load_model, save_model
from tasks.models.rows import RowsClassifier, make_layers

__all__ = [
    "Core",
    "KernelCore",
    "LinearCore",
    "RowsClassifier",
    "TabularClassifier",
    "TabularRegressor",
    "load_model",
    "make_layers",
    "make_model",
    "save_model",
]
