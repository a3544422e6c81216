"""Bad input is answered with a sentence: what, where, what was expected, the likely cure."""

from pathlib import Path
from typing import Any

import pytest

from experiments.cli.compatibility import refuse_mismatched
from experiments.cli.hydra_compat import compose, plain
from experiments.cli.settings import check, defaults
from experiments.cli.targets import instantiate, refuse_foreign, refuse_unknown
from experiments.common.errors import BadInputError, suggest
from tests.experiments.conftest import Command

WORDS = [
    ("task=tinny", "task=tinny: there is no such task. Did you mean 'tiny'?"),
    ("solver=sdg", "solver=sdg: there is no such solver. Did you mean 'sgd'?"),
    ("estimator=implict", "estimator=implict: there is no such estimator. Did you mean 'implicit'"),
    ("outer=adm", "outer=adm: there is no such outer. Did you mean 'adam'? Available: adagrad"),
    ("experiment=nosuch", "experiment=nosuch: there is no such experiment."),
    ("solvr=sgd", "solvr: there is no such setting. Did you mean 'solver'?"),
    ("stepz=3", "stepz: there is no such setting. Did you mean 'steps'?"),
    ("solver.step_sise=1", "solver.step_sise: there is no such setting. Did you mean 'step_size'?"),
    ("+solver.foo=1", "solver.foo: bilevel.SGD has no such setting. Available: batch_size,"),
    ("+foo=1", "foo: there is no such setting. Available: adaptive,"),
    ("solver.step_size=abc", "solver.step_size: expected a number, got 'abc'"),
    ("solver.batch_size=2.5", "solver.batch_size: expected an integer, got 2.5"),
    ("solver.batch_size=true", "solver.batch_size: expected an integer, got True"),
    ("estimator.cross=maybe", "estimator.cross: expected true or false, got 'maybe'"),
    ("solver.sampling=3", "solver.sampling: expected text, got 3"),
    ("solver=1", "group override must be a string or a list"),
    ("task.seed=abc", "task.seed: expected an integer, got 'abc'"),
    ("seed=-1", "seed: expected an integer of at least 0, got -1"),
    ("steps=0", "steps: expected an integer of at least 1, got 0"),
    ("every=0", "every: expected an integer of at least 1, got 0"),
    ("precision=float16", "precision: expected one of null, float32, float64, got 'float16'"),
    ("progress=loud", "progress: expected one of auto, plain, off, got 'loud'"),
    ("compile_cache=3", "compile_cache: expected a folder or null, got 3"),
    ("solver._target_=os.system", "solver._target_: 'os.system' is not allowed."),
    ("solver._target_=bilevel.SDG", "there is no bilevel.SDG. Did you mean 'SGD'?"),
    ("solver.step_size=-1", "SGD: step_size must be a positive finite number, got -1"),
    (
        "solver.sampling=random",
        "sampling must be one of ('iid', 'without_replacement', 'epoch'), got 'random'",
    ),
    ("estimator.steps=0", "Forward: steps must be at least 1, got 0"),
    ("seed=4294967296", "seed: expected an integer of at most 4294967295, got 4294967296"),
    ("limit=0", "limit: expected a number above 0, got 0"),
    ("limit=-1", "limit: expected a number above 0, got -1"),
    ("limit=nan", "limit: expected a number above 0, got nan"),
    ("estimator.solver=null", "estimator.solver: expected a solver, got None. Choose one by"),
    ("~solver.step_size", "solver.step_size: bilevel.SGD needs it: solver.step_size=VALUE"),
    ("experiment=nope", "there is no such experiment. --list experiment names all"),
    ("task.n=???", "task.n: has no default and must be given"),
    ("solver=[", "["),
]


@pytest.mark.parametrize(("argument", "words"), WORDS, ids=[argument for argument, _ in WORDS])
def test_sentence(command: Command, tmp_path: Path, argument: str, words: str) -> None:
    outcome = command(f"hydra.run.dir={tmp_path / 'a'}", argument)
    assert outcome.status == 1
    assert words in outcome.err
    assert "Traceback" not in outcome.err
    assert "Error executing job" not in outcome.err


ODD_LEAVES = {
    "empty": (b"", "task: expected _target_, the name of what is to be made; it has none"),
    "without a target": (b"n: 70\n", "task: expected _target_"),
    "no UTF-8": (b"\xff\xfe_target_", "task/odd.yaml: this is no UTF-8"),
    "broken": (b"_target_: tasks.tiny.tiny\n  n: [1\n", "odd.yaml, line 2: this is no plain YAML"),
    "a list": (b"- a\n", "odd.yaml: expected names and values, got a list."),
}


@pytest.mark.parametrize("name", ODD_LEAVES)
def test_leaf_that_is_none_is_named(command: Command, leaves: Path, name: str) -> None:
    content, words = ODD_LEAVES[name]
    (leaves / "task" / "odd.yaml").write_bytes(content)
    outcome = command(quick=["task=odd", "compile_cache=null"])
    assert outcome.status == 1
    assert words in outcome.err
    assert outcome.err.count("\n") == 1


def test_all_mistakes_are_said_at_once(command: Command) -> None:
    outcome = command("solver.step_size=abc", "steps=1.5", "estimator.average=x", "seed=true")
    for name in ("solver.step_size", "steps", "seed"):
        assert f"{name}: expected" in outcome.err


def test_argument_that_is_no_setting_is_not_taken_for_a_divergence(command: Command) -> None:
    outcome = command("--no-such-flag")
    assert outcome.status == 1
    assert "unrecognized arguments: --no-such-flag" in outcome.err


TREE: dict[str, Any] = {
    "seed": 0,
    "steps": 5,
    "every": 2,
    "precision": None,
    "progress": "auto",
    "evidence": "auto",
    "max_error": 0.5,
    "compile_cache": None,
    "limit": 1.0,
    "starts": 1,
    "start_steps": 5,
    "early_stopping": None,
    "mesh": {"data": None, "hosts": None},
    "task": {
        "_target_": "tasks.t.t",
        "seed": "${seed}",
        "nested": {"a": 1.5, "list": [1]},
        "name": "x",
    },
    "solver": {"_target_": "bilevel.SGD", "step_size": 0.1, "batch_size": None},
    "estimator": {"_target_": "bilevel.Forward", "solver": "${solver}", "n": "${half:${.m}}"},
    "outer": {"_target_": "optax.adam"},
}


def with_(node: str, **changes: Any) -> dict[str, Any]:
    resolved = TREE | {"task": TREE["task"] | {"seed": 0}}
    resolved |= {"estimator": TREE["estimator"] | {"solver": TREE["solver"], "n": 3}}
    return resolved | (changes if not node else {node: resolved[node] | changes})


GOOD: list[tuple[str, dict[str, Any]]] = [
    ("", {}),
    ("", {"limit": 3}),  # an integer is a number
    ("solver", {"step_size": {"_target_": "bilevel.InverseTime", "mu": 1, "L": 2}}),
    ("solver", {"step_size": None, "batch_size": 7}),  # whether null fits, the target knows
    ("solver", {"momentum": 0.9}),  # a leaf need not list every setting of its target
    ("estimator", {"solver": {"_target_": "bilevel.SGD", "step_size": 1.0}, "n": "computed"}),
    ("task", {"name": {"group": ["a*", "b"]}}),  # instead of the name of a known grouping
]


@pytest.mark.parametrize(("node", "changes"), GOOD)
def test_what_fits_is_accepted(node: str, changes: dict[str, Any]) -> None:
    check(with_(node, **changes), TREE)


BAD: list[tuple[str, dict[str, Any], str]] = [
    ("task", {"seed": "x"}, "task.seed: expected an integer, got 'x'"),
    ("task", {"nested": 3}, "task.nested: expected named settings, got 3"),
    ("task", {"nested": {"a": "x"}}, r"task.nested.a: expected a number, got 'x'"),
    ("task", {"nested": {"b": 1}}, "task.nested.b: there is no such setting. Available: a, list."),
    ("task", {"nested": {"list": 3}}, "task.nested.list: expected a list, got 3"),
    ("solver", {"step_size": {"mu": 1}}, "solver.step_size: expected a number, got {'mu': 1}"),
    ("estimator", {"solver": {"step_size": "x"}}, "estimator.solver.step_size: expected a number"),
    ("outer", {"_target_": 3}, "outer._target_: expected text, got 3"),
]


@pytest.mark.parametrize(("node", "changes", "words"), BAD)
def test_what_does_not_fit_is_refused(node: str, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(BadInputError, match=words):
        check(with_(node, **changes), TREE)


def test_defaults_come_from_the_first_folder_that_has_them(tmp_path: Path) -> None:
    first, second = tmp_path / "a", tmp_path / "b"
    (first / "solver").mkdir(parents=True)
    (first / "solver" / "sgd.yaml").write_text("step_size: 1e-3\n")
    (second / "solver").mkdir(parents=True)
    (second / "solver" / "sgd.yaml").write_text("step_size: text\n")
    (second / "config.yaml").write_text("defaults: [task: x]\nhydra: {}\nseed: 0\n")
    choices = dict.fromkeys(("task", "solver", "estimator", "outer"), "sgd")
    found = defaults(choices, [first, second])
    assert found["solver"] == {"step_size": 0.001}
    assert (found["seed"], found["task"]) == (0, {})
    assert not {"defaults", "hydra"} & found.keys()


@pytest.mark.parametrize(
    "target",
    ["os.system", "bilevelx.f", "builtins.eval", "", 3, None, "experiments.run.main"],
)
def test_target_outside_the_allowed_packages_is_refused(target: Any) -> None:
    with pytest.raises(BadInputError, match="is not allowed"):
        refuse_foreign({"a": [{"_target_": target}]}, "task")


@pytest.mark.parametrize(
    "target", ["bilevel.core.problem.np.save", "bilevel.tuning.tune.warnings.warn", "optax.nosuch"]
)
def test_target_that_a_package_has_only_borrowed_is_refused(target: str) -> None:
    with pytest.raises(BadInputError, match="is not allowed"):
        refuse_unknown({"_target_": target}, "task")


def test_partial_of_nothing_is_the_function_itself() -> None:
    import optax

    node = {"_target_": "bilevel.transform", "learning_rate": 0.1}
    node["factory"] = {"_target_": "optax.adam", "_partial_": True}
    assert instantiate(node, "outer").factory is optax.adam


def test_suggestion_says_only_what_helps() -> None:
    assert suggest("rigde", ["ridge", "logistic"]) == (
        "Did you mean 'ridge'? Available: logistic, ridge."
    )
    assert suggest("x", []) == ""
    assert suggest("name7x", [f"name{i}" for i in range(99)]) == "Did you mean 'name7'?"


@pytest.mark.parametrize(
    ("changes", "refused"),
    [
        (["solver=adam", "estimator=uoro"], True),
        (["solver=adam", "estimator=reverse"], True),
        (["solver=sgd", "estimator=reverse"], False),
        (["solver=adam", "estimator=implicit"], False),
        (["solver=adam", "estimator=uoro", "task.weights=network"], False),
    ],
)
def test_steps_without_a_derivative_are_refused(changes: list[str], refused: bool) -> None:
    """d/dg of g / sqrt(g^2) at 0: Adam where the weights, and so the gradient, begin at 0."""
    settings = plain(compose(["task=imbalance", *changes]))
    if not refused:
        refuse_mismatched(settings, {})
        return
    with pytest.raises(BadInputError, match="solver=adam divides by the size of the gradient"):
        refuse_mismatched(settings, {})
