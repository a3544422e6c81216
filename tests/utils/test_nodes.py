"""Nodes of a pytree are told apart by their class: no program of another class is run."""

from dataclasses import dataclass, field, make_dataclass
from typing import Any

import jax
import numpy as np
import pytest

import bilevel as bl
from bilevel.linear import CG, MINRES
from bilevel.utils import register_node

CLASSES = [
    register_node(make_dataclass(f"Node{i}", ["x", ("m", int, 10)], frozen=True), ["x"], ["m"])
    for i in range(20)
]


@register_node
@dataclass(frozen=True)
class Parent:
    child: Any
    label: str = field(default="", metadata={"static": True})


def test_no_class_runs_the_program_of_another() -> None:
    """With JAX's own registration about 3 in 20 are not traced: their structures are equal."""
    for _ in range(10):
        seen = []

        def noted(tree: Any, seen: list[str] = seen) -> Any:
            seen.append(type(tree).__name__)
            return tree.x

        compiled = jax.jit(noted)
        for node in CLASSES * 2:
            compiled(node(1.0))
        assert seen == [node.__name__ for node in CLASSES]
    structures = [jax.tree.structure(node(1.0)) for node in (*CLASSES, CG, MINRES)]
    assert len(set(structures)) == len(structures)


def test_jax_still_takes_two_classes_for_one() -> None:
    """When this fails, JAX compares the classes: ``register_node`` can become JAX's own."""
    nodes = [make_dataclass(f"Same{i}", ["x", ("m", int, 10)], frozen=True) for i in range(2)]
    for node in nodes:
        jax.tree_util.register_dataclass(node, ["x"], ["m"])
    first, second = (jax.tree.structure(node(1.0)) for node in nodes)
    assert first == second


def test_node_is_its_data_and_its_static_fields() -> None:
    tree = Parent({"a": np.arange(3.0), "b": CLASSES[0](2.0)}, "one")
    again = jax.tree.map(lambda x: x, tree)
    assert (again.label, again.child["b"]) == ("one", CLASSES[0](2.0))
    names = [jax.tree_util.keystr(path) for path, _ in jax.tree.leaves_with_path(tree)]
    assert names == [".child['a']", ".child['b'].x"]
    assert jax.tree.structure(tree) != jax.tree.structure(Parent(tree.child, "two"))
    assert jax.tree.structure(bl.SGD(0.1)) == jax.tree.structure(bl.SGD(0.2))


def test_fields_left_out_are_refused() -> None:
    with pytest.raises(
        ValueError, match="Other: data and meta fields must be its fields, each onc"
    ):
        register_node(make_dataclass("Other", ["x", "m"]), ["x"], [])
