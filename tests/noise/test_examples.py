"""Every example in the docstrings of `bilevel.noise` prints what it says."""

import doctest
import importlib
import pkgutil

import pytest

from bilevel import noise

MODULES = [module.name for module in pkgutil.iter_modules(noise.__path__)]


@pytest.mark.parametrize("name", MODULES)
def test_examples_run(name):
    found = doctest.testmod(importlib.import_module(f"bilevel.noise.{name}"))
    assert found.failed == 0


def test_examples_exist():
    """The walk above finds modules, and they have examples."""
    assert len(MODULES) > 10
    for name in ("steady_state", "minibatch", "sde", "escape"):
        assert doctest.DocTestFinder().find(importlib.import_module(f"bilevel.noise.{name}"))
