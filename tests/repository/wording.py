"""The rules of names, docstrings and annotations, each a function from files to violations."""

import ast
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator

from tests.repository.architecture import FunctionNode, Source, import_time
from tests.repository.rooms import is_facade, public_definitions

# A function is a verb and its object (`estimate_cost`), unless one word is the field's own: a verb
# that needs no object, a term of linear algebra, or the noun that a topic of `bl.noise` computes.
TERMS = frozenset(
    {"attribute", "cast", "check", "chunk", "confidence", "describe", "draw", "evaluate"}
)
TERMS |= {
    "factorise",
    "flatten",
    "linearise",
    "minimise",
    "normalise",
    "pack",
    "pad",
    "partition",
    "plan",
}
TERMS |= {"predict", "run", "sample", "solve", "transform", "tune", "unpack", "update"}
TERMS |= {"axpy", "basis", "descend", "dtype", "extremes", "nbytes", "norm", "residual", "size"}
TERMS |= {"tridiagonal", "vdot"}
TERMS |= {"averaged", "balance", "certificate", "coefficients", "contraction", "cost"}
TERMS |= {"covariance", "curvature", "divergence", "drift", "floor", "gaussian", "hypergradient"}
TERMS |= {"limit", "moments", "path", "population", "restarts", "spread", "stationary"}
TERMS |= {"strength", "validity"}
TERMS |= {"adam", "linear", "logistic", "mlp", "newton", "preset", "ridge"}
TERMS |= {"sgd"}  # names of methods and models
# Names that two modules define: each with the reason why nobody takes one for the other.
OF_TWO_MODULES = {
    "Auto": "bl.Auto estimates and bl.outer.Auto moves: the room is part of the public name",
    "LBFGS": "bl.LBFGS solves the inner problem and bl.outer.LBFGS the outer one",
    "SGD": "bl.SGD steps; that of single_loop takes a direction and is no public name of bl",
    "SAGA": "bl.SAGA steps; that of single_loop takes a direction and is no public name of bl",
    "SVRG": "bl.SVRG steps; that of single_loop takes a direction and is no public name of bl",
    "covariance": "a module of noise is used by its name: noise.steady_state.covariance",
    "step_limit": "a module of noise is used by its name: noise.minibatch.step_limit",
    "path": "a module of noise is used by its name: noise.bounds.path",
}


def one_word_functions(source: Source) -> Iterator[str]:
    """Yield the public functions of one word that is no term of the field."""
    for node in source.tree.body:
        if isinstance(node, FunctionNode) and "_" not in node.name and node.name not in TERMS:
            yield f"{source.path}:{node.lineno}: {node.name} is no verb_object and no term"


def names_of_two_modules(sources: Iterable[Source]) -> Iterator[str]:
    """Yield the public names that several modules define, unless there is a reason."""
    places = defaultdict(set)
    for source in sources:
        for _, name in public_definitions(source):
            places[name].add(source.path)
    for name, paths in sorted(places.items()):
        if len(paths) > 1 and name not in OF_TWO_MODULES and name != "__all__":
            yield f"{name} is defined in {', '.join(sorted(paths))}"


def documented(tree: ast.AST) -> Iterator[ast.Module | ast.ClassDef | FunctionNode]:
    """Yield a module and its public classes, functions and methods."""
    if isinstance(tree, ast.Module):
        yield tree
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.ClassDef | FunctionNode) and not node.name.startswith("_"):
            yield node
            if isinstance(node, ast.ClassDef):
                yield from documented(node)


def unfinished_docstrings(source: Source) -> Iterator[str]:
    """Yield the public docstrings whose first line is no sentence that ends with a full stop."""
    for node in documented(source.tree):
        first = (ast.get_docstring(node) or "").split("\n")[0]
        if first and not (first.endswith(".") and (first[0].isupper() or not first[0].isalpha())):
            line = 1 if isinstance(node, ast.Module) else node.lineno
            yield f"{source.path}:{line}: {first!r} is no sentence"


def annotations(source: Source) -> Iterator[ast.expr]:
    """Yield every annotation of arguments, results and variables."""
    for node in ast.walk(source.tree):
        if isinstance(node, FunctionNode):
            a = node.args
            for argument in [*a.posonlyargs, *a.args, *a.kwonlyargs, a.vararg, a.kwarg]:
                if argument is not None and argument.annotation is not None:
                    yield argument.annotation
            if node.returns is not None:
                yield node.returns
        elif isinstance(node, ast.AnnAssign):
            yield node.annotation


def aliases_of_any(sources: Iterable[Source]) -> frozenset[str]:
    """Return the full names that stand for a bare Any, however many steps away."""
    found, sources = {"typing.Any"}, list(sources)
    while True:
        before = len(found)
        for source in sources:
            for node in source.tree.body:
                if isinstance(node, ast.Assign | ast.AnnAssign) and node.value is not None:
                    if _full(source, node.value) in found:
                        targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                        found |= {f"{source.module}.{ast.unparse(t)}" for t in targets}
                elif isinstance(node, ast.ImportFrom):
                    names = [alias.asname or alias.name for alias in node.names]
                    found |= {f"{source.module}.{n}" for n in names if source.names[n] in found}
        if len(found) == before:
            return frozenset(found)


def _full(source: Source, node: ast.expr) -> str:
    """The dotted name, of the module itself where it is imported from nowhere."""
    if isinstance(node, ast.Constant) and str(node.value).isidentifier():
        node = ast.Name(str(node.value))
    if isinstance(node, ast.Name) and node.id not in source.names:
        return f"{source.module}.{node.id}"
    return source.dotted(node)


def share_of_any(sources: Iterable[Source]) -> float:
    """Return which part of all annotations is Any or a bare alias of it."""
    sources = list(sources)
    bare = aliases_of_any(sources)
    all_of_them = [_full(s, annotation) in bare for s in sources for annotation in annotations(s)]
    return sum(all_of_them) / max(len(all_of_them), 1)


def unformatted(source: Source) -> Iterator[str]:
    """Yield the statements that ask the formatter to leave them alone."""
    for line, text in enumerate(source.text.splitlines(), 1):
        if re.search(r"#\s*fmt:\s*(skip|off)\b", text):
            yield f"{source.path}:{line}: {text.strip()[-60:]}"


def facades_without_all(sources: Iterable[Source]) -> Iterator[str]:
    """Yield the `__init__` files that hand on names of their package without an `__all__`."""
    for source in filter(is_facade, sources):
        root = source.module.split(".")[0]
        handed_on = any(target.split(".")[0] == root for target in source.names.values())
        names = [name for node in import_time(source.tree) for name in _assigned(node)]
        if handed_on and "__all__" not in names:
            yield f"{source.path}: hands on names without an __all__"


def _assigned(node: ast.AST) -> Iterator[str]:
    if isinstance(node, ast.Assign):
        yield from (target.id for target in node.targets if isinstance(target, ast.Name))
