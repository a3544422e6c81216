"""Every YAML leaf composes and makes what it names; every noun that is exported has a leaf."""

import inspect
import re
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from hydra.errors import HydraException
from omegaconf import OmegaConf

import bilevel as bl
import bilevel.estimators
import bilevel.single_loop
import bilevel.solvers
from experiments.cli import explanations, hydra_compat
from experiments.cli.allowed import allowed
from experiments.cli.settings import check, defaults
from experiments.cli.targets import instantiate
from experiments.cli.trust import NODES
from tasks.datasets.tables import SHARED
from tests.conftest import ROOT
from tests.marks import quick_cases

CONF = ROOT / "conf"
LEAVES = sorted(path.relative_to(CONF).with_suffix("") for path in CONF.glob("*/*.yaml"))
NOUNS = [leaf for leaf in LEAVES if leaf.parts[0] in NODES]
NAMES = dict(ids=str)
REAL = {*SHARED, "newsgroups20", "omniglot"}


def composed(*overrides: str) -> dict[str, Any]:
    return hydra_compat.plain(hydra_compat.compose(list(overrides)))


def targets(group: str) -> set[str]:
    leaves = [leaf for leaf in LEAVES if leaf.parts[0] == group]
    return {hydra_compat.read_yaml(CONF / f"{leaf}.yaml")["_target_"] for leaf in leaves}


def test_groups_are_the_nouns() -> None:
    assert {leaf.parts[0] for leaf in LEAVES} == {*NODES, "experiment"}
    assert not [path for path in CONF.rglob("*.yml")], "Hydra 1.4 reads .yaml only"


def test_every_leaf_has_one_allowed_target() -> None:
    for group in NODES:
        assert targets(group) <= allowed()


def test_no_leaf_asks_hydra_for_what_only_some_launchers_know() -> None:
    for path in CONF.rglob("*.yaml"):
        assert "${hydra:" not in path.read_text(), f"{path}: breaks joblib and submitit"


def on_real_data(leaf: Path) -> bool:
    named = re.search(r"^ *data: (\w+)", (CONF / f"{leaf}.yaml").read_text(), re.MULTILINE)
    return named is not None and named.group(1) in REAL


# Reading the large sets takes what all other leaves take together.
EXTENDED = {"marks": pytest.mark.extended}


@pytest.mark.parametrize(
    "leaf", [pytest.param(x, **EXTENDED) if on_real_data(x) else x for x in NOUNS], **NAMES
)
def test_leaf_composes_and_makes_what_it_names(leaf: Path, request: pytest.FixtureRequest) -> None:
    group, name = leaf.parts
    written = hydra_compat.read_yaml(CONF / f"{leaf}.yaml")
    if on_real_data(leaf):
        request.getfixturevalue("shared_data")
    needed = [f"{group}.{key}={VALUES[key]}" for key, value in written.items() if value == "???"]
    if name == "richardson":
        needed.append("solver.step_size=0.1")  # a number, which it can double
    settings = composed(f"{group}={name}", *needed)
    check(settings, defaults({**dict.fromkeys(NODES, ""), group: name}, [CONF]))
    made = instantiate(settings[group], group)
    target = written["_target_"].rpartition(".")[2]
    if group in ("solver", "estimator"):
        assert type(made).__name__ == target
        assert hash(jax.tree.structure(made)) is not None
    elif group == "outer":
        hyper = {"a": jnp.ones(2)}
        state = made.init(hyper)
        step = jax.jit(lambda tx, state: tx.update(hyper, state, hyper, value=1.0))
        updates, _ = step(made, state)
        assert jnp.all(updates["a"] < 0)
        assert all(isinstance(leaf, float) for leaf in jax.tree.leaves(made))
    else:
        assert jax.tree.leaves(made.hyper)
        assert made.name


# For what a leaf leaves open: a function with the right to be called.
VALUES = {"fn": "{_target_: tasks.judges.exact_sparse.external, _partial_: true}"}


def exported(module: Any) -> set[str]:
    """Classes of `bl` that are of this package and can step."""
    classes = {name: value for name, value in vars(bl).items() if inspect.isclass(value)}
    return {
        f"bilevel.{name}"
        for name, value in classes.items()
        if value.__module__.startswith(f"{module.__name__}.") and hasattr(value, "step")
    }


@pytest.mark.parametrize(
    ("group", "module"),
    [
        ("solver", bilevel.solvers),
        ("estimator", bilevel.estimators),
        ("estimator", bilevel.single_loop),
    ],
)
def test_every_exported_noun_has_a_leaf(group: str, module: Any) -> None:
    names = exported(module)
    assert {"bilevel.SGD", "bilevel.Forward", "bilevel.SingleLoop"} & names
    assert names <= targets(group), f"write conf/{group}/NAME.yaml"


def test_every_outer_rule_has_a_leaf() -> None:
    rules = [getattr(bl.outer, name) for name in bl.outer.__all__]
    made = [rule for rule in rules if inspect.isclass(rule) and hasattr(rule, "update")]
    names = {rule.__name__ for rule in made if not getattr(rule, "_is_protocol", False)}
    assert {"Auto", "DoG"} <= names
    assert {f"bilevel.outer.{name}" for name in names} <= targets("outer")


ESTIMATORS = [leaf.name for leaf in NOUNS if leaf.parts[0] == "estimator"]


@pytest.mark.parametrize("name", ESTIMATORS)
def test_estimator_takes_whatever_solver_is_chosen(name: str) -> None:
    settings = composed(f"estimator={name}", "solver=gradient_descent", "solver.step_size=0.7")
    node = settings["estimator"]
    node = node.get("estimator", node)  # the one that another wraps
    if "solver" in node:
        assert node["solver"] == {"_target_": "bilevel.GradientDescent", "step_size": 0.7}
    else:
        assert "solver" not in inspect.signature(getattr(bl, node["_target_"][8:])).parameters


def test_wrapped_estimator_is_a_choice_of_its_own() -> None:
    settings = composed("estimator=replicated", "estimator@estimator.estimator=uoro")
    made = instantiate(settings["estimator"], "estimator")
    assert (type(made), type(made.estimator)) == (bl.Replicated, bl.UORO)


def test_average_follows_steps() -> None:
    assert composed("estimator.steps=30")["estimator"]["average"] == 15
    assert composed("estimator.steps=30", "estimator.average=0")["estimator"]["average"] == 0


def test_one_integer_seeds_the_task() -> None:
    assert composed("seed=7")["task"]["table"]["seed"] == 7


def test_a_setting_that_has_moved_into_a_node_is_refused_with_its_place() -> None:
    assert composed("task.table.degree=1")["task"]["table"]["degree"] == 1
    with pytest.raises(HydraException) as caught:
        composed("task.degree=1")
    assert explanations.explain(caught.value).endswith("It is task.table.degree.")


def test_folders_are_named_without_what_needs_quoting() -> None:
    def name(text: str) -> str:
        hydra_compat.register_resolvers()
        config = OmegaConf.create({"text": text, "name": "${folder_name:${text}}"})
        return config.name

    assert name("estimator=forward,seed=0") == "estimator-forward_seed-0"
    assert name("") == "defaults"
    odd = [name("task.data=/a/b.csv"), name("task.data=_a_b.csv"), name("x" * 999), name("x" * 998)]
    assert len(set(odd)) == 4
    assert all(len(each) < 200 and not set(each) & set("/=,[]{} ") for each in odd)


EXPERIMENTS = [leaf.name for leaf in LEAVES if leaf.parts[0] == "experiment"]


@quick_cases(8, "name", EXPERIMENTS)
def test_experiment_composes(name: str) -> None:
    chosen = hydra_compat.compose([f"experiment={name}"], with_hydra=True)
    choices = {node: chosen.hydra.runtime.choices[node] for node in NODES}
    del chosen.hydra
    settings = hydra_compat.plain(chosen)
    check(settings, defaults(choices, [CONF]))
    instantiate(settings["estimator"], "estimator")


def test_main_job_is_the_default() -> None:
    assert composed("experiment=main") == composed()
