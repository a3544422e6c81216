"""The examples in the docstrings of the tasks run as they stand."""

import doctest

import pytest

from tasks import (
    augmentation,
    cleaning,
    distillation,
    imbalance,
    kernel,
    lasso,
    logistic,
    multinomial,
    ridge,
    weight_decay,
)
from tasks.datasets import images, tables
from tasks.parts import networks
from tasks.solvers import from_rest

MODULES = [augmentation, cleaning, tables, distillation, from_rest, images]
MODULES += [imbalance, kernel, lasso, logistic, multinomial, networks, ridge, weight_decay]


@pytest.mark.parametrize("module", MODULES, ids=lambda m: m.__name__)
def test_examples_run(module) -> None:
    failed, tried = doctest.testmod(module)
    assert tried
    assert not failed
