"""The examples in the docstrings of the tasks run as they stand."""

import doctest

import pytest

from tasks import data, logistic, ridge


@pytest.mark.parametrize("module", [data, ridge, logistic], ids=lambda m: m.__name__)
def test_examples_run(module) -> None:
    failed, tried = doctest.testmod(module)
    assert tried
    assert not failed
