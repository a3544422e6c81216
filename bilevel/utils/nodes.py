"""Dataclasses as nodes of a pytree, each of its own kind, and copies with other fields."""

import dataclasses
from collections.abc import Callable, Collection, Iterable
from typing import Any, TypeAlias, TypeVar, cast

from jax.tree_util import GetAttrKey, register_pytree_with_keys

Node = TypeVar("Node", bound=type)
_T = TypeVar("_T")
Fields: TypeAlias = tuple[object, ...]


def register_node(
    node: Node, data_fields: list[str] | None = None, meta_fields: list[str] | None = None
) -> Node:
    """Make a dataclass a node: data are its children, meta fields static; a decorator, too.

    Without lists, fields are data unless their metadata say ``static``. In place of
    ``jax.tree_util.register_dataclass``: there, tree structures of two classes that have the same
    static values compare equal, so that ``jit`` may run the program of one for the other, CG's for
    MINRES's (JAX 0.10). Once JAX tells them apart
    ``tests/utils/test_nodes.py`` fails, and this can go.
    """
    fields = [field for field in dataclasses.fields(node) if field.init]
    if data_fields is None:
        data_fields = [field.name for field in fields if not field.metadata.get("static")]
        meta_fields = [field.name for field in fields if field.metadata.get("static")]
    data, meta = tuple(data_fields), tuple(meta_fields or ())
    if sorted(data + meta) != sorted(field.name for field in fields):
        raise ValueError(f"{node.__name__}: data and meta fields must be its fields, each once")
    keys = tuple(GetAttrKey(name) for name in data)

    def flatten(x: object) -> tuple[Fields, Fields]:
        return tuple(getattr(x, name) for name in data), tuple(getattr(x, name) for name in meta)

    def with_keys(x: object) -> tuple[tuple, Fields]:
        children, static = flatten(x)
        return tuple(zip(keys, children, strict=True)), static

    def unflatten(static: Fields, children: Iterable[object]) -> object:
        return node(
            **dict(zip(data, children, strict=True)), **dict(zip(meta, static, strict=True))
        )

    register_pytree_with_keys(node, with_keys, unflatten, flatten)
    return node


def map_fields(
    node: _T,
    names: Collection[str],
    change: Callable[[Any], Any],
    parts: Collection[str] = ("estimator",),
) -> _T:
    """Return a copy with ``change`` applied to every field of these names that is not ``None``.

    It looks at ``node`` and at what its fields named in ``parts`` hold. Anything that is no
    dataclass, and a node without such a field, comes back as it is.
    """
    if not dataclasses.is_dataclass(node) or isinstance(node, type):
        return node
    changes = {}
    for name in (field.name for field in dataclasses.fields(node)):
        if (value := getattr(node, name)) is None:
            continue
        if name in names:
            changes[name] = change(value)
        elif name in parts:
            changes[name] = map_fields(value, names, change, parts)
    return cast(_T, dataclasses.replace(cast(Any, node), **changes)) if changes else node
