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

__all__ = [
    "Core",
    "KernelCore",
    "LinearCore",
    "TabularClassifier",
    "TabularRegressor",
    "load_model",
    "make_model",
    "save_model",
]
