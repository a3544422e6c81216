"""Finite differences of an outer loss of the estimators."""

import numpy as np


def differences(loss, theta, step=1e-5):
    """``(gradient, central differences)``."""
    steps = step * np.eye(len(theta))
    slopes = [(loss(theta + s).value - loss(theta - s).value) / (2 * step) for s in steps]
    return loss(theta).grad, np.array(slopes)
