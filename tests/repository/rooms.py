"""The rules of the rooms of `bilevel/`: what a folder holds, and which way its imports point."""

import ast
import functools
import graphlib
from collections.abc import Iterable, Iterator, Mapping, Sequence

from tests.repository.architecture import Source, imports

# From the ground floor upwards: a room imports its own modules and rooms that stand before it.
# (The single-loop methods stand on the outer loop: they drive their own blocks of it.)
FLOORS = (
    *("utils", "spaces", "core", "linear", "solvers", "noise", "outer", "estimators", "planning"),
    *("tuning", "single_loop", "checks", "testing", "sklearn"),
)
# Above them all: they only hand on what the rooms define.
ABOVE = ("extend",)
# The most that may lie beside the folders; what is there on purpose does not count.
LOOSE = {"bilevel/": 0, "experiments/": 4, "tasks/": 15}
ON_PURPOSE = {"__init__.py", "bilevel/__main__.py", "tasks/base.py"}

Graph = Mapping[str, frozenset[str]]


def is_facade(source: Source) -> bool:
    """Whether the file is the `__init__` of its folder."""
    return source.path.endswith("__init__.py")


def loose_modules(sources: Iterable[Source]) -> Iterator[str]:
    """Yield the folders with more loose files than they may have."""
    for folder, most in LOOSE.items():
        inside = [s.path for s in sources if s.path.startswith(folder)]
        loose = [path for path in inside if "/" not in path.removeprefix(folder)]
        loose = [p for p in loose if not {p, p.removeprefix(folder)} & ON_PURPOSE]
        if len(loose) > most:
            yield f"{folder}: {len(loose)} loose files, at most {most}: {' '.join(loose)}"


def helpers_among_tasks(sources: Iterable[Source]) -> Iterator[str]:
    """Yield the loose files of `tasks/` that make no Task."""
    for source in sources:
        folder, _, name = source.path.rpartition("/")
        if folder == "tasks" and not {name, source.path} & ON_PURPOSE:
            made = [n.returns for n in source.tree.body if isinstance(n, ast.FunctionDef)]
            if not any(r is not None and source.dotted(r).endswith("base.Task") for r in made):
                yield f"{source.path}: no function here returns a Task"


def resolve(target: str, modules: Mapping[str, Source], *, through: bool = False) -> str:
    """Return the module of ``modules`` that an import of ``target`` reads; "" for none.

    ``through``: a name that a facade hands on counts as its defining module's.
    """
    module, name = (target, "") if target in modules else target.rpartition(".")[::2]
    if module not in modules:
        return ""
    handed_on = modules[module].names.get(name, "")
    if through and is_facade(modules[module]) and handed_on.startswith("bilevel."):
        return resolve(handed_on, modules, through=True)
    return module


def import_graph(
    sources: Iterable[Source], *, through: bool = False, facades: bool = False
) -> Graph:
    """Return what each module of the library imports of it; ``facades`` are modules only if asked.

    ``through``: as in ``resolve``; facades are then in the graph, for what is imported as a whole.
    """
    modules = {s.module: s for s in sources if s.module.split(".")[0] == "bilevel"}
    graph = {}
    for module, source in modules.items():
        if through or facades or not is_facade(source):
            found = {resolve(t, modules, through=through) for _, t, _ in imports(source)}
            graph[module] = frozenset(found - {module, ""})
    return graph


def imports_per_module(sources: Iterable[Source]) -> float:
    """Return how many modules of the library one of them imports on average.

    A room that is imported through its facade counts as one; facades themselves are not counted.
    """
    graph = import_graph(sources)
    return sum(map(len, graph.values())) / max(len(graph), 1)


def longest_chain(sources: Sequence[Source]) -> list[str]:
    """Return the longest chain of modules each of which imports the next, without facades.

    Facades are transparent: ``from bilevel.linear import CG`` imports ``bilevel.linear.cg``, and
    the room as a whole (``from bilevel import linear``) all that its facade hands on.
    """
    facades = {s.module for s in sources if is_facade(s)}
    graph = import_graph(sources, through=True)

    graphlib.TopologicalSorter(graph).prepare()  # a cycle has no longest chain

    @functools.cache
    def chain(module: str) -> tuple[str, ...]:
        after = max((chain(target) for target in sorted(graph[module])), key=len, default=())
        return after if module in facades else (module, *after)

    return list(max((chain(module) for module in graph), key=len, default=()))


def room_of(module: str) -> str:
    """Return the room of a module: the folder below `bilevel`, or "" for the package itself."""
    return module.partition(".")[2].partition(".")[0]


def arrows_up(sources: Iterable[Source]) -> Iterator[str]:
    """Yield the imports that point from a room to a higher one, or to a room without a floor."""
    level = {room: i for i, room in enumerate((*FLOORS, *ABOVE, ""))}
    graph = import_graph(sources, facades=True)
    for module, targets in sorted(graph.items()):
        for target in sorted(targets):
            here, there = room_of(module), room_of(target)
            if here not in level:
                yield f"{module}: its room has no floor in tests/repository/rooms.py"
            elif here != there and level.get(there, len(level)) >= level[here]:
                yield f"{module} imports {target}, which lies above it"


def public_definitions(source: Source) -> Iterator[tuple[int, str]]:
    """Yield the line and name of each public function, class and value that a module defines."""
    for node in source.tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names = [node.name]
        elif isinstance(node, ast.Assign):
            names = [target.id for target in node.targets if isinstance(target, ast.Name)]
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            names = [node.target.id]
        else:
            continue
        yield from ((node.lineno, name) for name in names if not name.startswith("_"))


def shadowed_modules(sources: Iterable[Source]) -> Iterator[str]:
    """Yield the modules that share their name with something public beside or inside them.

    A facade that hands on a function of the name of one of its modules hides that module.
    """
    for source in sources:
        if is_facade(source):
            foreign = {n for n, t in source.names.items() if t != f"{source.module}.{n}"}
            below = (s.module.rpartition(".") for s in sources)
            own = {name for folder, _, name in below if folder == source.module}
            for name in sorted(foreign & own):
                yield f"{source.module}.{name} is a module and what {source.path} imports"
