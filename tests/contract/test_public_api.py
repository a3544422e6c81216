"""The names that programs outside rely on, and that every public name explains itself."""

import doctest
import importlib
import inspect
import pkgutil
from typing import Any

import pytest

import bilevel as bl

# Fixed by the design: name -> arguments that may be given by these names, in this order.
FIXED: dict[str, tuple[str, ...]] = {
    "Problem": ("inner", "outer"),
    "Data": ("inner", "outer"),
    "SGD": ("step_size", "batch_size"),
    "GradientDescent": ("step_size",),
    "Optax": ("tx", "batch_size"),
    "Forward": ("solver", "steps"),
    "Reverse": ("solver", "steps"),
    "Implicit": ("solver", "steps"),
    "Replicated": ("estimator", "n"),
    "hypergradient": ("problem", "estimator", "hyper", "params", "data", "key"),
    "tune": ("problem", "estimator", "outer", "hyper", "params", "data"),
    "check": ("problem", "hyper", "params", "data"),
    "plan": ("problem", "hyper", "params", "data", "tolerance"),
}
BY_NAME: dict[str, tuple[str, ...]] = {
    "SGD": ("sampling", "momentum"),
    "Forward": ("cross", "start", "average"),
    "Implicit": ("linear",),
    "CG": ("tol",),
    "tune": ("steps", "key", "state"),
}
FIELDS = {
    "Estimate": ("value", "grad", "evidence"),
    "Evidence": ("inner_residual", "linear_residual", "standard_error", "bias", "counts"),
    "Result": ("hyper", "params", "history", "estimate", "state"),
    "InnerState": ("params", "solver_state", "memory"),
}


def parameters(name: str) -> list[str]:
    return list(inspect.signature(getattr(bl, name)).parameters)


@pytest.mark.parametrize("name", FIXED)
def test_fixed_names_take_their_arguments_in_order(name: str) -> None:
    assert tuple(parameters(name)[: len(FIXED[name])]) == FIXED[name]


@pytest.mark.parametrize("name", BY_NAME)
def test_fixed_names_take_these_arguments_by_name(name: str) -> None:
    assert set(BY_NAME[name]) <= set(parameters(name))


@pytest.mark.parametrize("name", FIELDS)
def test_fixed_fields(name: str) -> None:
    fields = getattr(bl, name).__dataclass_fields__
    assert tuple(fields)[: len(FIELDS[name])] == FIELDS[name]


PUBLIC = sorted(
    name
    for name, thing in vars(bl).items()
    if not name.startswith("_") and not inspect.ismodule(thing)
)
# Values that a call returns: what they hold is said field by field, no example makes one.
RETURNED = {"CheckReport", "Cost", "Counts", "DivergenceWarning", "Estimate", "Evidence"}
RETURNED |= {"InnerState", "NoiseReport", "Plan", "Restarts", "Result"}


@pytest.mark.parametrize("name", PUBLIC)
def test_every_public_name_explains_itself(name: str) -> None:
    text = inspect.getdoc(getattr(bl, name))
    assert text, "no docstring"
    assert text.splitlines()[0].endswith((".", ":")), "the first line is not a sentence"
    assert name in RETURNED or ">>> " in text, "no example"


def modules() -> list[str]:
    found = pkgutil.walk_packages(bl.__path__, "bilevel.")
    return ["bilevel", *(module.name for module in found if module.name != "bilevel.sklearn")]


@pytest.mark.parametrize("name", modules())
def test_every_example_runs(name: str) -> None:
    module: Any = importlib.import_module(name)
    result = doctest.testmod(module, optionflags=doctest.NORMALIZE_WHITESPACE)
    assert result.failed == 0


def test_a_broken_example_would_be_noticed() -> None:
    example = doctest.DocTestParser().get_doctest(">>> 1 + 1\n3\n", {}, "broken", None, 0)
    runner = doctest.DocTestRunner(verbose=False)
    assert runner.run(example, out=lambda text: None).failed == 1
