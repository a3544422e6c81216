"""One weight decay per weight, 7850 of them, fits the validation examples too.

Lorraine, Vicol, Duvenaud, AISTATS 2020, section 5.1: with as many hyperparameters as weights the
validation set is memorised, which shows that the hypergradient is right in every direction. 50
training and 50 validation digits, linear softmax, log-decays from -4, implicit hypergradients by 30
steps of CG at the end of 100 warm steps of heavy ball. What it does to rows that nobody sees, and
scikit-learn's digits: `tests/tasks/test_overfitting.py`.
"""

from pathlib import Path

import numpy as np
import pytest

from tests.tasks.experiment import run_experiment

# Measured apart, on MNIST: the best single decay of 11, and 7850 decays after 25 updates.
BEST_SINGLE, AFTER_25 = 1.3049, 0.0033


@pytest.mark.slow
def test_mnist(shared_data: Path) -> None:
    outcome = run_experiment("decays_paper")
    values = np.asarray(outcome.result.history["value"])
    assert values[0] == pytest.approx(BEST_SINGLE, rel=0.01)
    assert values[25] == pytest.approx(AFTER_25, rel=0.15)
    assert outcome.metrics["validation_error"] == 0
