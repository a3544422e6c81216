"""The rules of the layers, each a function from one parsed file to its violations."""

import ast
import graphlib
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import PurePosixPath

STDLIB = frozenset(sys.stdlib_module_names)
# The standard library without files, clocks, processes, arguments and logs.
PURE = frozenset({"__future__", "abc", "collections", "contextlib", "copy", "dataclasses", "enum"})
PURE |= {"fnmatch", "fractions", "functools", "graphlib", "inspect", "itertools", "math", "numbers"}
PURE |= {"operator", "string", "textwrap", "types", "typing", "warnings"}
CORE = PURE | {"jax", "optax", "numpy", "bilevel"}
EDGE = STDLIB | CORE | {"flax", "sklearn", "scipy", "pandas", "tasks"}
EDGE |= {"threadpoolctl"}  # comes with scikit-learn
EDGE |= {"pyarrow"}  # with pandas: it reads the columns of a Parquet file


@dataclass(frozen=True)
class Layer:
    """What a folder may import: the roots in `allow` (None: any), never those in `deny`."""

    allow: frozenset[str] | None = None
    deny: frozenset[str] = frozenset()


LAYERS = {
    "bilevel": Layer(CORE),
    "bilevel/checks/cost.py": Layer(
        CORE | {"time"}
    ),  # the one clock of the library: what a call costs
    # A signal that comes while XLA compiles is lost unless someone remembers it.
    "bilevel/utils/interrupts.py": Layer(CORE | {"signal", "threading"}),
    # The next minibatches are read while a step runs.
    "bilevel/tuning/streaming.py": Layer(CORE | {"concurrent"}),
    # JAX reads the size of its thread pool from the environment alone.
    "bilevel/utils/thread_pool.py": Layer(CORE | {"os"}),
    "bilevel/utils/types.py": Layer(CORE | {"jaxtyping"}),  # where it is installed
    # A command: it reads the version of what is installed, and writes.
    "bilevel/__main__.py": Layer(CORE | {"importlib", "sys"}),
    "bilevel/sklearn": Layer(CORE | {"sklearn", "scipy", "threadpoolctl"}),
    "tasks": Layer(EDGE),
    "conf": Layer(frozenset()),
    "experiments": Layer(deny=frozenset({"tests"})),
    "tests": Layer(),
    "benchmarks": Layer(),
    "docs": Layer(),
    ".ci": Layer(STDLIB),
}
# `tune` and `hypergradient` are the two verbs that compile on the user's behalf, and `confidence`
# asks once, after a run, for derivatives of third order.
JIT_FILES = frozenset(
    {
        "bilevel/tuning/tune.py",
        "bilevel/tuning/ending.py",
        "bilevel/estimators/call.py",
        "bilevel/checks/confidence.py",
    }
)
# Tools that run whole solves, which eager only compile longer; and `fit`, which nobody composes:
# it is called with NumPy arrays, and its one program is compiled once for each shape.
JIT_FOLDERS = ("bilevel/testing/", "bilevel/sklearn/")
FILE_LINES, FUNCTION_LINES = 260, 60

Violations = Iterator[tuple[int, str]]
FunctionNode = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True)
class Source:
    """A Python file: its path from the root, its text and tree, and what its names stand for."""

    path: str
    text: str = field(repr=False)
    tree: ast.Module = field(init=False, repr=False)
    names: dict[str, str] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "tree", ast.parse(self.text, self.path))
        object.__setattr__(self, "names", _bound_names(self))

    @property
    def module(self) -> str:
        """The dotted name that the file is imported by."""
        parts = PurePosixPath(self.path).with_suffix("").parts
        return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)

    @property
    def package(self) -> list[str]:
        """The folder that relative imports start from."""
        return list(PurePosixPath(self.path).parent.parts)

    def dotted(self, node: ast.expr) -> str:
        """Spell out `jnp.zeros` as `jax.numpy.zeros`; empty for anything but a chain of names."""
        if isinstance(node, ast.Name):
            return self.names.get(node.id, node.id)
        if isinstance(node, ast.Attribute) and (base := self.dotted(node.value)):
            return f"{base}.{node.attr}"
        return ""


def imports(source: Source) -> Iterator[tuple[int, str, str]]:
    """Yield (line, full dotted target, name bound), for imports at any depth."""
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name, alias.asname or ""
        elif isinstance(node, ast.ImportFrom):
            up = source.package[: len(source.package) - node.level + 1] if node.level else []
            base = ".".join([*up, *([node.module] if node.module else [])])
            for alias in node.names:
                yield node.lineno, f"{base}.{alias.name}", alias.asname or alias.name


def library(sources: Iterable[Source]) -> list[Source]:
    """Return the files of `bilevel/`."""
    return [source for source in sources if source.path.startswith("bilevel/")]


def _bound_names(source: Source) -> dict[str, str]:
    return {bound: target for _, target, bound in imports(source) if bound}


def layer_of(path: str) -> Layer | None:
    """Return the rule of the file itself or of the innermost folder that has one."""
    folders = [path, *(str(parent) for parent in PurePosixPath(path).parents)]
    return next((LAYERS[folder] for folder in folders if folder in LAYERS), None)


def forbidden_imports(source: Source) -> Violations:
    """Imports against the direction of the layers, or in a folder without a rule."""
    layer = layer_of(source.path)
    if layer is None:
        yield 1, "this folder has no rule in tests/repository/architecture.py"
        return
    in_core = source.path.startswith("bilevel/")
    for line, target, _ in imports(source):
        root, *rest = target.split(".")
        if root in layer.deny or (layer.allow is not None and root not in layer.allow):
            yield line, f"may not import {target}"
        elif in_core and not source.path.startswith("bilevel/sklearn/"):
            if target.startswith("bilevel.sklearn"):
                yield line, f"may not import {target}: only its users do"
            elif root != "bilevel" and any(part.startswith("_") for part in rest):
                yield line, f"may not import {target}: private to {root}"


def impure_code(source: Source) -> Violations:
    """Printing, files, JAX's global settings, and imports that no static rule can see."""
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Call):
            name = source.dotted(node.func)
            if name in {"print", "input", "open", "__import__", "jax.debug.print"}:
                yield node.lineno, f"calls {name}"
        if isinstance(node, ast.Attribute | ast.Name):
            name = source.dotted(node)
            if name == "jax.config":
                yield node.lineno, f"touches {name}"


def own_jit(source: Source) -> Violations:
    """Compilation on the user's behalf outside the two verbs."""
    if source.path in JIT_FILES or source.path.startswith(JIT_FOLDERS):
        return
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Attribute | ast.Name) and source.dotted(node) == "jax.jit":
            yield node.lineno, "uses jax.jit, which belongs to the verbs"


def import_time(tree: ast.Module) -> Iterator[ast.AST]:
    """Yield what runs on import: all but the bodies of functions; defaults and decorators run."""
    stack: list[ast.AST] = [tree]
    while stack:
        node = stack.pop()
        yield node
        if isinstance(node, FunctionNode):
            stack += [node.args, *node.decorator_list]
        elif isinstance(node, ast.Lambda):
            stack.append(node.args)
        else:
            stack += ast.iter_child_nodes(node)


def import_time_arrays(source: Source) -> Violations:
    """Arrays and keys made on import, also as default arguments: they start JAX's backend."""
    harmless = {"finfo", "iinfo", "dtype"}
    for node in import_time(source.tree):
        if isinstance(node, ast.Call):
            module, _, function = source.dotted(node.func).rpartition(".")
            if module in {"jax.numpy", "jax.random", "numpy"} and function not in harmless:
                yield node.lineno, f"calls {module}.{function} on import"


def hidden_keys(source: Source) -> Violations:
    """Random keys that the caller did not give: a default that is one, or a key from a literal.

    ``key=None`` is no key: the function then has to do without, or say that it needs one.
    """
    for node in ast.walk(source.tree):
        if isinstance(node, FunctionNode):
            positional = [*node.args.posonlyargs, *node.args.args]
            last = positional[len(positional) - len(node.args.defaults) :]
            named = zip(node.args.kwonlyargs, node.args.kw_defaults, strict=True)
            for argument, default in [*zip(last, node.args.defaults, strict=True), *named]:
                absent = default is None or (
                    isinstance(default, ast.Constant) and default.value is None
                )
                if argument.arg in {"key", "rng", "rng_key"} and not absent:
                    yield argument.lineno, f"{node.name} has a default for {argument.arg}"
        elif isinstance(node, ast.Call):
            name = source.dotted(node.func)
            literal = node.args and isinstance(node.args[0], ast.Constant)
            if literal and name in {"jax.random.key", "jax.random.PRNGKey"}:
                yield node.lineno, f"makes a key from a literal with {name}"


def oversized(source: Source) -> Violations:
    """Files longer than FILE_LINES, functions longer than FUNCTION_LINES beside the docstring."""
    lines = len(source.text.splitlines())
    if lines > FILE_LINES:
        yield 1, f"{lines} lines, at most {FILE_LINES}"
    for node in ast.walk(source.tree):
        if isinstance(node, FunctionNode):
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            if ast.get_docstring(node, clean=False) is not None:
                docstring = node.body[0]
                length -= (docstring.end_lineno or docstring.lineno) - docstring.lineno + 1
            if length > FUNCTION_LINES:
                yield node.lineno, f"{node.name} has {length} lines, at most {FUNCTION_LINES}"


def import_cycle(sources: Iterable[Source]) -> list[str]:
    """Return one cycle of imports among the modules, first name repeated last; [] for none."""
    by_module = {source.module: source for source in sources}
    graph: dict[str, set[str]] = {}
    for module, source in by_module.items():
        targets = {target for _, target, _ in imports(source)}
        owners = {t if t in by_module else t.rpartition(".")[0] for t in targets}
        graph[module] = owners & by_module.keys()
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        return error.args[1]
    return []
