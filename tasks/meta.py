r"""Meta-learning: what many small learning tasks share is learned, so that each needs few examples.

    inner(w, h; task) = loss(w; examples to learn from)   from a start, or near one, or over a body
    outer(w, h; task) = loss(w; other examples of the task),   h what all tasks share

:mod:`tasks.parts.adaptation` has the inner problems by name, and
:mod:`tasks.datasets.task_distributions` the tasks. A run draws tasks at every outer step:
``estimator=sampled``.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

import bilevel as bl
from tasks.base import Metrics, PyTree, Task
from tasks.datasets.task_distributions import Family, omniglot, sinusoids
from tasks.judges import meta_baselines, meta_picture
from tasks.parts.adaptation import KINDS, Adaptation, LearnedRates
from tasks.parts.meta_networks import Convolutions, Dense, Network

# Steps of adaptation after which test tasks are judged; before any, too: what adaptation adds.
REPORTED = {"ridge": (1,), "proximal": (10, 0)}
STEPS = (1, 6, 11, 0)


def meta(
    data: str = "sinusoid",
    adapt: str = "all",
    *,
    shots: int = 10,
    queries: int = 10,
    ways: int = 5,
    step_size: float = 0.01,
    learn_rates: bool = False,
    strength: float = 2.0,
    widths: tuple[int, ...] = (40, 40),
    pool: int = 50_000,
    test_tasks: int = 1000,
    test_queries: int | None = None,
    test_alphabets: int = 10,
    baseline_steps: int = 2000,
    root: str | None = None,
    seed: int = 0,
) -> Task:
    """Make the task of learning a start, a representation or learning rates for many tasks.

    Parameters
    ----------
    data : ``"sinusoid"``, regressions; or ``"omniglot"``, classes of handwritten characters.
    adapt : what each task adapts, and how: ``"all"`` (MAML), ``"head"`` (ANIL), ``"proximal"``
        (iMAML) or ``"ridge"`` (hyper-representation).
    shots, queries : examples to learn from and to be judged by; for Omniglot of each class.
    ways : classes of an Omniglot task.
    step_size : of the steps by which test tasks adapt (all, head); where learned rates start.
    learn_rates : learn one rate for each adapted parameter too; needs the solver's
        ``step_size=tasks.parts.adaptation.LearnedRates()``.
    strength : of the pull towards the start (proximal).
    widths : of the hidden layers; for Omniglot of the convolutions, then the features.
    pool : how many sinusoids are drawn to train on.
    test_tasks, test_queries, test_alphabets : unseen tasks (from unseen alphabets) that judge, and
        the examples (of each class) by which they do; by default 100 for sinusoids, 5 for Omniglot.
    baseline_steps : meta-steps of the baselines that are trained.

    Raises
    ------
    ValueError : an unknown family or way to adapt, rates where nothing steps, no data.

    Examples
    --------
    >>> from tasks.meta import meta
    >>> task = meta("sinusoid", adapt="head", pool=100, test_tasks=10)
    >>> jax.tree.map(jnp.shape, task.params)
    {'bias': (1,), 'kernel': (40, 1)}
    """
    _check(adapt, learn_rates, test_tasks, step_size)
    sizes = {"shots": shots, "queries": queries, "test_tasks": test_tasks, "seed": seed}
    if data == "sinusoid":
        family = sinusoids(**sizes, pool=pool, test_queries=test_queries or 100)
        network = Network(Dense(tuple(widths)), family.shape, family.outputs)
    elif data == "omniglot":
        unseen = {"test_queries": test_queries or 5, "test_alphabets": test_alphabets}
        family = omniglot(**sizes, **unseen, ways=ways, root=root)
        *channels, width = widths
        network = Network(Convolutions(tuple(channels), width), family.shape, family.outputs)
    else:
        raise ValueError(f"data={data!r} must be sinusoid or omniglot.")

    how = Adaptation(network, family.classes, adapt, strength if adapt == "proximal" else 0.0)
    hyper = jax.jit(how.hyper)(jax.random.key(seed))
    params = how.params(hyper)
    if learn_rates:
        hyper["log_rates"] = jax.tree.map(lambda w: jnp.full_like(w, np.log(step_size)), params)
    measure = partial(_metrics, how, family, step_size)
    trained = (network, family, baseline_steps, seed)
    picture = partial(meta_picture.sinusoids, how, _solver(how, step_size, hyper), family.test)
    return Task(
        name=f"meta {data}",
        problem=how.problem(),
        data=family.pool,
        hyper=hyper,
        params=params,
        metrics=lambda hyper, _: measure(hyper),
        baselines=lambda: meta_baselines.run(measure, how, *trained),
        describe=_describe,
        picture=None if family.classes else picture,
        notes=family.notes | {"adapt": adapt, "network": str(widths)},
    )


def _check(adapt: str, learn_rates: bool, test_tasks: int, step_size: float) -> None:
    if adapt not in KINDS:
        raise ValueError(f"adapt={adapt!r} must be one of {', '.join(KINDS)}.")
    if learn_rates and adapt not in ("all", "head"):
        raise ValueError(f"learn_rates needs gradient steps, and adapt={adapt!r} minimises.")
    if test_tasks < 2:
        raise ValueError(f"test_tasks={test_tasks!r} must be at least 2: one has no interval.")
    if not step_size > 0:
        raise ValueError(f"step_size={step_size!r} must be a positive number.")


def _describe(hyper: PyTree) -> dict[str, float]:
    """Return sizes, in natural units."""
    weights = jax.tree.leaves({k: v for k, v in hyper.items() if not k.startswith("log_")})
    squares = sum(float(jnp.sum(w**2)) for w in weights)
    facts = {"rms shared weight": (squares / sum(w.size for w in weights)) ** 0.5}
    for name in ("log_penalty", "log_scale"):
        if name in hyper:
            facts[name.removeprefix("log_")] = float(jnp.exp(hyper[name]))
    if "log_rates" in hyper:
        rates = np.concatenate([np.ravel(np.exp(r)) for r in jax.tree.leaves(hyper["log_rates"])])
        low, middle, high = np.quantile(rates, [0, 0.5, 1])
        facts |= {"smallest rate": low, "median rate": middle, "largest rate": high}
    return facts


def _solver(how: Adaptation, step_size: float, hyper: PyTree) -> Any:
    """Return how test tasks adapt: where the params are a minimiser, to the minimum."""
    if how.kind in ("ridge", "proximal"):
        return bl.Direct() if how.kind == "ridge" else bl.LBFGS()
    return bl.GradientDescent(step_size=LearnedRates() if "log_rates" in hyper else step_size)


def _metrics(how: Adaptation, family: Family, step_size: float, hyper: PyTree) -> Metrics:
    """Return means over the test tasks at each reported step, half their 95 % intervals."""
    solver = _solver(how, step_size, hyper)
    name, metrics, halves = "error" if family.classes else "mse", {}, {}
    for steps in REPORTED.get(how.kind, STEPS):
        at = "" if how.kind == "ridge" else f"@{steps}"
        scores = np.asarray(_scores(how, solver, steps, hyper, family.test))
        mean, spread = float(scores.mean()), float(scores.std(ddof=1))
        metrics[name + at] = mean
        if family.classes:
            metrics["accuracy" + at] = 1 - mean
        halves["±" + at] = 1.96 * spread / len(scores) ** 0.5
    return metrics | halves


@partial(jax.jit, static_argnames=("how", "steps"))
def _scores(how: Adaptation, solver: Any, steps: int, hyper: PyTree, tasks: bl.Data) -> Array:
    """Return error rate, or mean squared error, of each task after it has adapted; ``[tasks]``."""
    problem, key = how.problem(), jax.random.key(0)

    def one(task: bl.Data) -> Array:
        params = how.params(hyper)
        if steps:
            params = bl.solve(problem, solver, hyper, params, task, key, steps=steps)
        X, y = task.outer
        outputs = how.outputs(params, hyper, X)
        if how.classes:
            return jnp.mean((jnp.argmax(outputs, -1) != y).astype(outputs.dtype))
        return jnp.mean((outputs - y) ** 2)

    return jax.vmap(one)(tasks)
