"""Finite differences of an objective of the estimators, in float64."""

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
