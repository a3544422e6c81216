"""Which public names `make test` uses: what the code of its tests and the examples refer to."""

import ast
import doctest
import importlib
from collections.abc import Collection, Iterable, Iterator
from pathlib import PurePosixPath
from types import ModuleType

from tests.repository.architecture import FunctionNode, Source

MARKS = ("pytest.mark.extended", "pytest.mark.slow")
Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


def is_test_file(source: Source) -> bool:
    """Whether pytest collects the file."""
    return PurePosixPath(source.path).name.startswith("test_")


def _marked(source: Source, nodes: Iterable[ast.expr]) -> bool:
    """Whether one of the decorators, or of a list of marks, keeps a test out of `make test`."""
    flat = [x for node in nodes for x in (node.elts if isinstance(node, ast.List) else [node])]
    return any(source.dotted(node) in MARKS for node in flat)


def _definitions(source: Source) -> dict[str, ast.stmt]:
    """The functions, classes and values that a module defines by itself."""
    found: dict[str, ast.stmt] = {}
    for node in source.tree.body:
        if isinstance(node, Definition):
            found[node.name] = node
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            found |= {target.id: node for target in targets if isinstance(target, ast.Name)}
    return found


def run_by_default(source: Source, long: Collection[str] = ()) -> Iterator[ast.AST]:
    """Yield the code of a test file that `make test` runs.

    These are its tests without a mark, and what they refer to in their file, at any distance. A
    test among the ``long`` ones, ``file::name``, counts as marked.
    """
    known = _definitions(source)
    whole = known.get("pytestmark")
    if isinstance(whole, ast.Assign) and _marked(source, [whole.value]):
        return
    tests = [n for n in known.values() if isinstance(n, Definition) and n.name.startswith("test")]
    quick = [test for test in tests if f"{source.path}::{test.name}" not in long]
    open_names = [test.name for test in quick if not _marked(source, test.decorator_list)]
    seen: set[str] = set()
    while open_names:
        name = open_names.pop()
        if name in seen or name not in known:
            continue
        seen.add(name)
        yield known[name]
        inside = list(ast.walk(known[name]))
        open_names += [node.id for node in inside if isinstance(node, ast.Name)]
        if isinstance(known[name], FunctionNode):  # a fixture is referred to by an argument
            open_names += [node.arg for node in inside if isinstance(node, ast.arg)]


def examples(source: Source) -> Iterator[Source]:
    """Yield the example of each docstring, with the names of its module."""
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Module | Definition) and ">>> " in (ast.get_docstring(node) or ""):
            parsed = doctest.DocTestParser().get_examples(ast.get_docstring(node) or "")
            example = Source(source.path, "".join(part.source for part in parsed))
            own = {n.name for n in source.tree.body if isinstance(n, Definition)}
            here = {name: f"{source.module}.{name}" for name in own} | source.names
            object.__setattr__(example, "names", here | example.names)
            yield example


def references(source: Source, nodes: Iterable[ast.AST]) -> set[str]:
    """Return the full dotted names of the library that the code refers to."""
    inside = (node for root in nodes for node in ast.walk(root))
    found = {source.dotted(n) for n in inside if isinstance(n, ast.Name | ast.Attribute)}
    return {name for name in found if name.split(".")[0] == "bilevel"}


def used_by_default(sources: Iterable[Source], long: Collection[str] = ()) -> set[str]:
    """Return the full dotted names that the tests of `make test` and the examples refer to."""
    found: set[str] = set()
    for source in sources:
        if source.path.startswith("bilevel/"):
            for example in examples(source):
                found |= references(example, [example.tree])
        elif is_test_file(source):
            found |= references(source, run_by_default(source, long))
        elif source.path.startswith("tests/"):
            found |= references(source, source.tree.body)
    return found


def look_up(name: str) -> Iterator[object]:
    """Yield the objects that a dotted name goes through, as far as it leads."""
    parts = name.split(".")
    thing: object = importlib.import_module(parts[0])
    for i, part in enumerate(parts[1:], 2):
        yield thing
        if isinstance(thing, ModuleType) and not hasattr(thing, part):
            try:
                importlib.import_module(".".join(parts[:i]))
            except ModuleNotFoundError:
                return
        if not hasattr(thing, part):
            return
        thing = getattr(thing, part)
    yield thing


def reached(sources: Iterable[Source], used: Iterable[str]) -> set[int]:
    """Return the identities of what the used names lead to, and of what its code refers to."""
    definitions: dict[int, tuple[Source, list[ast.AST]]] = {}
    for source in sources:
        if source.path.startswith("bilevel/"):
            module = importlib.import_module(source.module)
            for name, node in _definitions(source).items():
                if hasattr(module, name):
                    thing = getattr(module, name)
                    definitions.setdefault(id(thing), (source, []))[1].append(node)
    found: set[int] = set()
    things = [thing for name in used for thing in look_up(name)]
    while things:
        thing = things.pop()
        if id(thing) in found:
            continue
        found.add(id(thing))
        if id(thing) in definitions:
            source, nodes = definitions[id(thing)]
            module = importlib.import_module(source.module)
            inside = [n.id for root in nodes for n in ast.walk(root) if isinstance(n, ast.Name)]
            things += [vars(module)[name] for name in inside if name in vars(module)]
            things += [t for name in references(source, nodes) for t in look_up(name)]
    return found


def missing(facades: Iterable[str], found: set[int]) -> list[str]:
    """Return the names of the ``__all__`` of the facades that are not among the found."""
    return [
        f"{facade}.{name}"
        for facade in facades
        for module in [importlib.import_module(facade)]
        for name in module.__all__
        if id(getattr(module, name)) not in found
    ]
