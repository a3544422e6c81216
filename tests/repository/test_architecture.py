"""The layers of the design hold in every tracked file, and each rule catches what it is for."""

from collections.abc import Callable

import pytest

from tests.repository import architecture as rules
from tests.repository.architecture import Source, Violations

Rule = Callable[[Source], Violations]
EVERYWHERE: list[Rule] = [rules.forbidden_imports, rules.oversized]
IN_CORE: list[Rule] = [
    rules.impure_code,
    rules.own_jit,
    rules.import_time_arrays,
    rules.hidden_keys,
]


def report(rule: Rule, sources: list[Source]) -> list[str]:
    return [f"{s.path}:{line}: {message}" for s in sources for line, message in rule(s)]


@pytest.mark.parametrize("rule", EVERYWHERE, ids=lambda rule: rule.__name__)
def test_every_file_keeps(rule: Rule, sources: list[Source]) -> None:
    assert report(rule, sources) == []


@pytest.mark.parametrize("rule", IN_CORE, ids=lambda rule: rule.__name__)
def test_the_library_keeps(rule: Rule, sources: list[Source]) -> None:
    assert report(rule, rules.library(sources)) == []


def test_the_library_has_no_import_cycle(sources: list[Source]) -> None:
    assert rules.import_cycle(rules.library(sources)) == []


def test_files_that_may_compile_exist(sources: list[Source]) -> None:
    assert {source.path for source in sources} >= rules.JIT_FILES


BAD: list[tuple[Rule, str, str, str]] = [
    (rules.forbidden_imports, "bilevel/a.py", "import os.path", "may not import os.path"),
    (rules.forbidden_imports, "bilevel/a.py", "def f():\n from flax import nnx", "flax.nnx"),
    (rules.forbidden_imports, "bilevel/a.py", "import sklearn.svm as s", "sklearn.svm"),
    (rules.forbidden_imports, "bilevel/b/a.py", "from .. import sklearn", "bilevel.sklearn"),
    (rules.forbidden_imports, "bilevel/a.py", "from jax._src import core", "private to jax"),
    (rules.forbidden_imports, "bilevel/sklearn/a.py", "import pandas", "pandas"),
    (rules.forbidden_imports, "tasks/a.py", "import hydra", "hydra"),
    (rules.forbidden_imports, "tasks/a.py", "from experiments.run import main", "experiments.run"),
    (rules.forbidden_imports, "experiments/a.py", "from tests import conftest", "tests.conftest"),
    (rules.forbidden_imports, "conf/a.py", "import math", "math"),
    (rules.forbidden_imports, "scripts/a.py", "", "no rule"),
    (rules.impure_code, "bilevel/a.py", "print(1)", "print"),
    (rules.impure_code, "bilevel/a.py", "def f(p): return open(p)", "open"),
    (rules.impure_code, "bilevel/a.py", "import jax\njax.debug.print('x')", "jax.debug.print"),
    (rules.impure_code, "bilevel/a.py", "import jax\njax.config.update('a', 1)", "jax.config"),
    (rules.impure_code, "bilevel/a.py", "from jax import config as c\nc.update('a')", "jax.config"),
    (rules.own_jit, "bilevel/a.py", "import jax\n@jax.jit\ndef f(): pass", "jax.jit"),
    (rules.own_jit, "bilevel/a.py", "from jax import jit as fast\ng = fast(f)", "jax.jit"),
    (rules.import_time_arrays, "bilevel/a.py", "import jax.numpy as jnp\nx = jnp.ones(3)", "ones"),
    (rules.import_time_arrays, "bilevel/a.py", "from jax import numpy\nx = numpy.e(3)", "numpy.e"),
    (rules.import_time_arrays, "bilevel/a.py", "import numpy as n\nclass A:\n x=n.eye(2)", "eye"),
    (rules.import_time_arrays, "bilevel/a.py", "import jax\ndef f(k=jax.random.key(s)): 0", "key"),
    (rules.hidden_keys, "bilevel/a.py", "def f(x, *, key=SEED): pass", "default for key"),
    (rules.hidden_keys, "bilevel/a.py", "def f(x, rng=1): pass", "default for rng"),
    (rules.hidden_keys, "bilevel/a.py", "import jax\ndef f(): jax.random.key(0)", "literal"),
    (rules.oversized, "tests/a.py", "x = 1\n" * 261, "261 lines"),
    (rules.oversized, "tests/a.py", "def f():\n '''doc'''\n" + " x = 1\n" * 60, "61 lines"),
]


@pytest.mark.parametrize(("rule", "path", "text", "message"), BAD)
def test_rule_catches(rule: Rule, path: str, text: str, message: str) -> None:
    found = list(rule(Source(path, text)))
    assert len(found) == 1
    assert message in found[0][1]
    assert found[0][0] <= text.count("\n") + 1


GOOD: list[tuple[Rule, str, str]] = [
    (rules.forbidden_imports, "bilevel/a/b.py", "from ..linear import CG\nimport jax.numpy as jnp"),
    (rules.forbidden_imports, "bilevel/sklearn/a.py", "from sklearn.base import BaseEstimator"),
    (rules.forbidden_imports, "tasks/a.py", "import os, flax.nnx, bilevel as bl"),
    (rules.forbidden_imports, "experiments/a.py", "import hydra, rich, tasks.ridge"),
    (rules.impure_code, "bilevel/a.py", "def f(state): return state.open(), state.config"),
    (rules.own_jit, "bilevel/tuning/tune.py", "import jax\nf = jax.jit(g)"),
    (rules.import_time_arrays, "bilevel/a.py", "import jax\ndef f(): return jax.numpy.ones(3)"),
    (rules.import_time_arrays, "bilevel/a.py", "import jax.numpy as jnp\nE = jnp.finfo('f4')"),
    (rules.hidden_keys, "bilevel/a.py", "import jax\ndef f(x=0, *, key): jax.random.key(x)"),
    (rules.hidden_keys, "bilevel/a.py", "def f(x, *, key=None): pass"),
    (rules.oversized, "tests/a.py", "def f():\n '''\n" + "\n" * 99 + "'''\n" + " x = 1\n" * 59),
]


@pytest.mark.parametrize(("rule", "path", "text"), GOOD)
def test_rule_accepts(rule: Rule, path: str, text: str) -> None:
    assert list(rule(Source(path, text))) == []


def test_relative_imports_are_resolved() -> None:
    source = Source("bilevel/solvers/sgd.py", "from . import base\nfrom ..problem import Problem")
    targets = [target for _, target, _ in rules.imports(source)]
    assert targets == ["bilevel.solvers.base", "bilevel.problem.Problem"]


def test_cycle_is_found() -> None:
    straight = [Source("bilevel/__init__.py", "from bilevel.a import A\nfrom . import b")]
    straight += [Source("bilevel/a.py", "A = 1"), Source("bilevel/b.py", "from .a import A")]
    assert rules.import_cycle(straight) == []
    turning = [*straight[:1], Source("bilevel/a.py", "def f():\n from . import b"), straight[2]]
    assert set(rules.import_cycle(turning)) == {"bilevel.a", "bilevel.b"}
