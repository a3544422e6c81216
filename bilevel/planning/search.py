"""The cheapest run that meets a tolerance: step size, late start, window, replicas, batch size."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple, Protocol

import numpy as np

_TOO_LONG, _DOUBLINGS = "needs more than max_steps steps", 11
MOST_PRODUCTS = 0.5  # of the variance: theory knows them as if the noise were normal
MOST_DOUBT = 0.2  # standard error of the bias, of what is asked for
TANGENT = 2.0  # a tangent of one example costs as much as two of its gradients


@dataclass(frozen=True)
class Candidate:
    """One way to run the estimator.

    Parameters
    ----------
    batch_size, step_size, replicas : ``batch_size=None`` is the full batch.
    start, wait, window : the derivative begins at step ``start``, the average of the last
        ``window`` iterates ``wait`` steps later.
    error : predicted, relative to the hypergradient: root mean square over runs.
    cost : gradients of single examples, a tangent counted as two.
    verdict : why it is not cheaper, or why there is none.
    """

    batch_size: int | None
    step_size: float = math.nan
    start: int = 0
    wait: int = 0
    window: int = 0
    replicas: int = 1
    error: float = math.nan
    cost: float = math.inf
    verdict: str = ""

    @property
    def steps(self) -> int:
        """Return steps of one run."""
        return self.start + self.wait + self.window

    @property
    def batch(self) -> str:
        """Return the batch size for people."""
        return "full" if self.batch_size is None else str(self.batch_size)

    @property
    def lengths(self) -> tuple[int, int, int]:
        """Return ``(start, wait, window)``."""
        return self.start, self.wait, self.window


class Price(NamedTuple):
    """Gradients of single examples: for each of a step's examples, and ``once`` for a run.

    ``plain`` before the derivative begins, ``derived`` after.
    """

    plain: float
    derived: float
    once: float = 0.0


class Demand(NamedTuple):
    """What is asked for: ``tolerance`` times ``scale`` (the size of the hypergradient), and how.

    ``window`` is that of the average, ``None`` for whichever is cheapest.
    """

    tolerance: float
    scale: float
    price: Price
    replicas: int | None
    max_steps: int
    window: int | None = None

    @property
    def target(self) -> float:
        """Return the largest root mean square error."""
        return self.tolerance * self.scale


class Predictor(Protocol):
    """The errors of all runs at one step size and batch size, ``[p]`` each."""

    earliest: int  # the first step at which the derivative may begin
    noisy: bool
    period: int  # averages are of whole epochs of so many steps, which end with the run
    noise_doubt: float  # relative standard error of the noise, known from some orders only
    nonlinearity: (
        float  # distance of the stationary mean from the solution, over the spread around it
    )

    @property
    def doubt(self) -> np.ndarray | float:
        """Return the standard error of the bias, where it is known from some orders only."""
        ...

    def stationary_error(self, window: int) -> tuple[np.ndarray, np.ndarray]:
        """Return bias and variance of the average of ``window`` iterates."""
        ...

    def product_share(self, window: int) -> float:
        """Return the share of the variance that products of noise have, if it is known."""
        ...

    def transient(self, start: int, wait: int, window: int) -> np.ndarray:
        """Return what the average still shows of the start."""
        ...

    def left(self, start: int, wait: int, window: int) -> np.ndarray:
        """Return the same from above: what the search keeps small."""
        ...


def cost(candidate: Candidate, demand: Demand, batch: int) -> float:
    """Return the cost in gradients of single examples."""
    price, derived = demand.price, candidate.wait + candidate.window
    each = candidate.start * price.plain + derived * price.derived
    return float(candidate.replicas * (batch * each + price.once))


def find_cheapest(run: Predictor, demand: Demand, batch: int, empty: Candidate) -> Candidate:
    """Return the cheapest lengths at one setting, or ``empty`` with a verdict if none do."""
    fixed = demand.replicas is not None or not run.noisy
    for replicas in [demand.replicas or 1] if fixed else [2**k for k in range(_DOUBLINGS)]:
        found = _fitted(run, demand, batch, replicas, empty)
        if found.verdict != _TOO_LONG:
            return found
    return replace(empty, verdict=_TOO_LONG)


def _fitted(
    run: Predictor, demand: Demand, batch: int, replicas: int, empty: Candidate
) -> Candidate:
    """Return lengths by bisection: the window for the noise, then the waits for the start."""
    target = demand.target
    # The start may leave a quarter of the error: it falls geometrically, noise as a root only.
    share = 0.25 * target if run.noisy else 0.8 * target

    def noisy(window: int) -> bool:
        bias, variance = run.stationary_error(window)
        mean = np.linalg.norm(bias) + share
        if mean**2 + np.sum(variance) / replicas > target**2:
            return True
        return run.product_share(window) > MOST_PRODUCTS

    def refused(why: str) -> Candidate:
        return replace(empty, replicas=replicas, verdict=why)

    if np.linalg.norm(run.doubt) > MOST_DOUBT * target:
        return refused("moments over epochs grow, or their mean is not known from some orders")
    longest, unit = demand.window or demand.max_steps, demand.window or run.period
    if run.noisy and np.linalg.norm(run.stationary_error(longest)[0]) + share > target:
        return refused("the stationary mean is off by more than the tolerance")
    most = max(longest // unit, 1)
    epochs = _first(lambda k: not noisy(k * unit), 1, most) if run.noisy else 1
    if epochs is None:
        return refused(_TOO_LONG if demand.window is None else _noisy(run, demand.window))
    window = _round(epochs) * unit
    best = refused(_TOO_LONG)

    def late(start: int, wait: int) -> bool:
        return bool(np.linalg.norm(run.left(start, wait, window)) <= share)

    least = _first(lambda q: late(demand.max_steps, q), 0, demand.max_steps)
    if least is None:
        return best
    # A longer wait lets the derivative begin earlier; which is cheaper depends on p.
    for stretch in (1.0, 1.2, 1.5):
        wait = _round(max(int(stretch * least), 1))
        start = _first(lambda k, wait=wait: late(k, wait), run.earliest, demand.max_steps)
        if start is None:
            continue
        start = _round(start)
        lengths = {"start": start, "wait": wait + -(start + wait + window) % run.period}
        candidate = replace(empty, **lengths, window=window, replicas=replicas, verdict="")
        candidate = replace(candidate, cost=cost(candidate, demand, batch))
        if candidate.steps <= demand.max_steps and candidate.cost < best.cost:
            best = candidate
    return best


def _noisy(run: Predictor, window: int) -> str:
    """Return why an average of so many iterates does not do."""
    if run.product_share(window) > MOST_PRODUCTS:
        return "products of noise are most of the error: theory knows them for normal noise only"
    return "the noise is above the tolerance"


def _first(holds: Callable[[int], bool], low: int, high: int) -> int | None:
    """Return about the smallest integer in ``low .. high`` from which ``holds``, or ``None``."""
    if holds(low):
        return low
    step, last = 1, low
    while not holds(min(low + step, high)):
        if low + step >= high:
            return None
        last, step = low + step, 2 * step
    first = min(low + step, high)
    while first - last > max(1, last // 50):
        middle = (first + last) // 2
        first, last = (middle, last) if holds(middle) else (first, middle)
    return first


def _round(count: int) -> int:
    """Return the count rounded up to two digits."""
    unit = 10 ** max(len(str(count)) - 2, 0)
    return -(-count // unit) * unit
