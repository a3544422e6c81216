"""The names that programs outside rely on, and that every public name explains itself."""

import doctest
import importlib
import inspect
from collections.abc import Iterator
from pathlib import Path

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


PUBLIC = [name for name in sorted(bl.__all__) if not inspect.ismodule(getattr(bl, name))]
# Values that a call returns: what they hold is said field by field, no example makes one.
RETURNED = {"CheckReport", "Cost", "Counts", "DivergenceWarning", "Estimate", "Evidence"}
RETURNED |= {"Confidence", "Constrained", "Front", "InnerState", "NoiseReport", "Plan", "Restarts"}
RETURNED |= {"Result"}


@pytest.mark.parametrize("name", PUBLIC)
def test_every_public_name_explains_itself(name: str) -> None:
    text = inspect.getdoc(getattr(bl, name))
    assert text, "no docstring"
    assert text.splitlines()[0].endswith((".", ":")), "the first line is not a sentence"
    assert name in RETURNED or ">>> " in text, "no example"


LIBRARY = Path(bl.__path__[0])
FILES = sorted(LIBRARY.rglob("*.py"))


def module_of(path: Path) -> str:
    parts = path.relative_to(LIBRARY.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def with_examples() -> list[str]:
    return [module_of(path) for path in FILES if ">>> " in path.read_text(encoding="utf-8")]


@pytest.mark.parametrize("name", with_examples())
def test_every_example_runs(name: str) -> None:
    result = doctest.testmod(
        importlib.import_module(name), optionflags=doctest.NORMALIZE_WHITESPACE
    )
    assert result.attempted > 0
    assert result.failed == 0


def test_a_broken_example_would_be_noticed() -> None:
    example = doctest.DocTestParser().get_doctest(">>> 1 + 1\n3\n", {}, "broken", None, 0)
    runner = doctest.DocTestRunner(verbose=False)
    assert runner.run(example, out=lambda text: None).failed == 1


def renamed() -> Iterator[tuple[str, str]]:
    for path in FILES:
        if "_RENAMED" in path.read_text(encoding="utf-8"):
            module = importlib.import_module(module_of(path))
            yield from ((module.__name__, old) for old in vars(module).get("_RENAMED", ()))


@pytest.mark.parametrize(("module", "old"), list(renamed()))
def test_a_name_of_the_release_before_warns_and_works(module: str, old: str) -> None:
    home = importlib.import_module(module)
    new, expected = home._RENAMED[old]
    with pytest.warns(DeprecationWarning, match=f"{module}.{old} is now {module}.{new}; the old"):
        found = getattr(home, old)
    assert found is expected
    assert old not in getattr(home, "__all__", ())


def test_a_name_that_never_was_is_no_attribute() -> None:
    with pytest.raises(AttributeError, match="module 'bilevel' has no attribute 'Oracle'"):
        _ = bl.Oracle
