"""The examples in the docstrings of the tasks run as they stand."""

import doctest

import pytest

from tasks import (
    augmentation,
    cleaning,
    data,
    decays,
    distillation,
    images,
    imbalance,
    logistic,
    networks,
    ridge,
)

MODULES = [
    augmentation,
    cleaning,
    data,
    decays,
    distillation,
    imbalance,
    images,
    logistic,
    networks,
]


@pytest.mark.parametrize("module", [*MODULES, ridge], ids=lambda m: m.__name__)
def test_examples_run(module) -> None:
    failed, tried = doctest.testmod(module)
    assert tried
    assert not failed
