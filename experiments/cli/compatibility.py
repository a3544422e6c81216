"""Nouns that do not fit each other, and what a choice does not do; all from the settings alone."""

import re
from typing import Any

from experiments.common.errors import BadInputError

_COORDINATES = "tasks.judges.exact_sparse.external"
_META, _SAMPLED = "tasks.meta.meta", "bilevel.Sampled"
_POSITIVE = "tasks.solvers.online_reweighting.positive_part"
_WEIGHTS = ("tasks.imbalance.imbalance", "tasks.cleaning.cleaning")
_UNROLLED = ("bilevel.Forward", "bilevel.Reverse", "bilevel.UORO")
_SPARSE = ("lasso", "elastic_net")
_UNKNOWN = re.compile(r"((?:task|solver|estimator|outer)\.[\w.]+): \S+ has no such setting")


def refuse_mismatched(settings: dict[str, Any], choices: dict[str, str]) -> None:
    """Raise where a noun cannot do what another asks of it.

    Raises
    ------
    BadInputError : a solver of another problem, an estimator of many inner problems for one, a
        step that goes uphill.
    """
    task, solver, estimator = (settings[name] for name in ("task", "solver", "estimator"))
    named = {name: choices.get(name, "of a leaf of your own") for name in ("task", "estimator")}
    fn = solver.get("fn")
    coordinates = isinstance(fn, dict) and fn.get("_target_") == _COORDINATES
    if coordinates and uses_solver(estimator) and not _is_sparse(task):
        raise BadInputError(
            f"solver=coordinate_descent minimises a lasso or elastic net, and task={named['task']} "
            "is another problem. Use it with task=lasso or task=lasso_elastic, or another solver."
        )
    samples = estimator.get("_target_") == _SAMPLED
    if task.get("_target_") == _META and not samples:
        raise BadInputError(
            f"task={named['task']} has many inner problems, and estimator={named['estimator']} is "
            "for one. Use estimator=sampled, and this one for each of them: "
            "estimator@estimator.estimator=NAME."
        )
    many = samples and estimator.get("draw") is None
    own = str(task.get("_target_")).startswith("tasks.") and not _is_open(task)
    if many and own:
        raise BadInputError(
            f"estimator=sampled takes some of many inner problems, and task={named['task']} has "
            "one. Use it with task=meta, or give estimator.draw=FUNCTION."
        )
    factory = settings["outer"].get("factory")
    weighs = isinstance(factory, dict) and factory.get("_target_") == _POSITIVE
    if weighs and own and task["_target_"] not in _WEIGHTS:
        raise BadInputError(
            f"outer=positive_part makes weights of examples, and the hyperparameters of task="
            f"{named['task']} are none. Use it with task=imbalance or task=cleaning."
        )
    _refuse_adam_at_zero(task, solver, estimator)
    for name in ("learning_rate", "first", "scale", "longest"):
        value = settings["outer"].get(name)
        if isinstance(value, int | float) and not value > 0:
            raise BadInputError(f"outer.{name}: expected a number above 0, got {value}")


def _refuse_adam_at_zero(
    task: dict[str, Any], solver: dict[str, Any], estimator: dict[str, Any]
) -> None:
    """Raise where Adam's step is differentiated at a gradient of 0, by whose size it divides."""
    tx = solver.get("tx")
    factory = tx.get("factory") if isinstance(tx, dict) else None
    adam = isinstance(factory, dict) and factory.get("_target_") == "optax.adam"
    weights_of_zero = task.get("_target_") == _WEIGHTS[0] and task.get("weights") == "examples"
    if adam and weights_of_zero and estimator.get("_target_") in _UNROLLED:
        raise BadInputError(
            "solver=adam divides by the size of the gradient, which is 0 at the weights that "
            "task=imbalance begins with: its steps have no derivative there. Use solver=sgd, or "
            "task.weights=network."
        )


def _is_sparse(task: dict[str, Any]) -> bool:
    """Whether the task is a lasso or an elastic net, which the solver knows."""
    if task.get("_target_") == "tasks.lasso.lasso":
        return task.get("kind", "lasso") in _SPARSE
    return task.get("family") in _SPARSE or task.get("function") is not None


def _is_open(task: dict[str, Any]) -> bool:
    """Whether the task may have many inner problems: the built-in one that does, and yours."""
    return task["_target_"] == _META or task.get("function") is not None


def uses_solver(estimator: dict[str, Any]) -> bool:
    """Whether the estimator, or one that it wraps, takes a solver."""
    nested = [child for child in estimator.values() if isinstance(child, dict)]
    return "solver" in estimator or any(map(uses_solver, nested))


def unused_solver(settings: dict[str, Any], facts: dict[str, Any]) -> str | None:
    """What to say once where a solver was asked for and nothing uses it."""
    if uses_solver(settings["estimator"]):
        return None
    asked = [o for o in facts["overrides"] if re.match(r"[+~]*solver[.=]", o)]
    if not asked:
        return None
    estimator = facts["choices"].get("estimator", "this")
    return f"not used        {' '.join(asked)}: estimator={estimator} takes no solver"


def blame(text: str, facts: dict[str, Any]) -> str:
    """The text, and where a setting comes from that the command line did not give."""
    found = _UNKNOWN.search(text)
    experiment = facts["choices"].get("experiment")
    if not found or not experiment:
        return text
    name = found[1]
    if any(override.split("=")[0].lstrip("+~") == name for override in facts["overrides"]):
        return text
    return (
        f"{text} It is experiment={experiment} that sets {name}, for the leaf that it chooses "
        f"itself; with another one add ~{name} or leave the experiment out."
    )
