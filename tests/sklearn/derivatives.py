"""Finite differences of an outer loss of the estimators, in float64."""

import jax
import numpy as np

from bilevel.sklearn.search.descent import Objective, OuterLoss


def differences(objective: Objective, batch, theta, lower=None, step=1e-5):
    """``(gradient, central differences)``, each from a cold start."""
    with jax.enable_x64(True):

        def value(theta):
            return float(OuterLoss(objective, batch, lower)(theta).value)

        found = np.asarray(OuterLoss(objective, batch, lower)(theta).grad)
        steps = step * np.eye(len(theta))
        return found, np.array([value(theta + s) - value(theta - s) for s in steps]) / (2 * step)


def host_differences(loss, theta, step=1e-5):
    """``(gradient, central differences)`` of a loss that NumPy computes."""
    steps = step * np.eye(len(theta))
    slopes = [(loss(theta + s).value - loss(theta - s).value) / (2 * step) for s in steps]
    return loss(theta).grad, np.array(slopes)
