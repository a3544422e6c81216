r"""How gradient noise becomes spread of the iterates, and spread becomes gradient noise again.

In the eigenbasis of the mean Hessian (eigenvalues ``h``) a rule moves coordinate j by the small
matrix ``A_j = T - L h_j e_0^T``. Constant gradient noise ``V`` leads to the stationary moment
``kappa o V``,

    kappa_jl = [(I - A_j (x) A_l)^{-1} (L (x) L)]_00     (SGD: eta / (h_j + h_l - eta h_j h_l))

and minibatches feed it back: ``V = p c(P)``, ``c(P) = K(P) - H P H``. So the stationary second
moment solves ``P = P_0 + p kappa o c(P)``, an equation for one ``[n, n]`` matrix whatever the
rule. ``P -> p kappa o c(P)`` keeps matrices positive semidefinite: its largest eigenvalue, the
*feedback*, is below 1 exactly where second moments stay bounded. For SGD, heavy ball and Nesterov
kappa is positive, so that the operator is self-adjoint after scaling by ``sqrt(kappa)``.

``kappa`` without momentum: Mulayoff and Michaeli, COLT 2024; with the heavy ball: Liu, Ziyin,
Ueda, ICML 2021 (their covariance equation in the eigenbasis). The feedback form is derived here,
and tested against the dense lifted operator.
"""

from collections.abc import Callable
from typing import NamedTuple, Protocol

import jax.numpy as jnp
import numpy as np
from jax import Array

from bilevel.linear import Eigenvalue, largest_on_matrices
from bilevel.noise import checks
from bilevel.noise.moments.rules import Rule
from bilevel.utils import is_traced, require_definite


class Multiplicative(Protocol):
    """What limits need of a process; :class:`LeastSquares` and :class:`Ridge` have it."""

    @property
    def curvature(self) -> Array:
        """Return the mean Hessian, ``[n, n]``."""
        ...

    @property
    def factor(self) -> float | Array:
        """Return the noise fraction p of a batch: :func:`bilevel.noise.batch_factor`."""
        ...

    def fluctuation(self, P: Array) -> Array:
        """Return ``c(P)``, second moment of ``(H_i - H) u`` where that of ``u`` is ``P``.

        ``[n, n]``.
        """
        ...


class Response(NamedTuple):
    """The mean dynamics in the eigenbasis: ``vectors [n, n]``, ``maps`` ``A_j [n, s, s]``."""

    vectors: Array
    maps: Array

    @classmethod
    def from_process(cls, owner: str, process: Multiplicative, rule: Rule) -> "Response":
        """Return the response of a process, validated to have a stable mean."""
        h, vectors = jnp.linalg.eigh(require_curvature(owner, process))
        reads = jnp.zeros(rule.slots, h.dtype).at[0].set(1)
        maps = rule.transition - h[:, None, None] * jnp.outer(rule.gain, reads)
        if not is_traced(maps):
            roots = np.abs(np.linalg.eigvals(np.asarray(maps)))
            what = f"{describe_rule(rule)}: the factor per step by which the mean itself grows"
            checks.below_limit(owner, roots.max(), 1.0, what)
        return cls(vectors, maps)

    def stationary_moment(self, source: Array) -> Array:
        """Return the ``P`` with ``P = A P A^T + source``; ``[s, n, s, n]`` in the eigenbasis."""
        s, n = source.shape[:2]
        pairs = jnp.einsum("jab,lcd->jlacbd", self.maps, self.maps).reshape(n, n, s * s, s * s)
        moved = source.transpose(1, 3, 0, 2).reshape(n, n, s * s, 1)
        solved = jnp.linalg.solve(jnp.eye(s * s) - pairs, moved)
        return solved.reshape(n, n, s, s).transpose(2, 0, 3, 1)

    def kappa(self, owner: str, rule: Rule) -> Array:
        """Return the stationary moment of unit noise between each two coordinates, ``[n, n]``."""
        n = len(self.vectors)
        unit = jnp.einsum("a,b,jl->ajbl", rule.gain, rule.gain, jnp.ones((n, n)))
        kappa = self.stationary_moment(unit)[0, :, 0]
        if not is_traced(kappa) and not bool((kappa > 0).all()):
            raise ValueError(
                f"{owner}: the response to gradient noise is not positive, so "
                f"{describe_rule(rule)} is none of rules.sgd. Pass the plain rule; an averaging "
                "slot has no stationary law."
            )
        return kappa

    def rotate(self, block: Array) -> Array:
        """Return a block ``[s, n, s, n]`` in the eigenbasis."""
        return jnp.einsum("aibk,ij,kl->ajbl", block, self.vectors, self.vectors)

    def back(self, block: Array) -> Array:
        """Return a block ``[s, n, s, n]`` out of the eigenbasis."""
        return jnp.einsum("ajbl,ij,kl->aibk", block, self.vectors, self.vectors)

    def fluctuation(self, process: Multiplicative, P: Array) -> Array:
        """Return ``p c(P)`` in the eigenbasis, ``[n, n]``."""
        U = self.vectors
        return process.factor * (U.T @ process.fluctuation(U @ P @ U.T) @ U)

    def feedback(self, process: Multiplicative, kappa: Array) -> Callable[[Array], Array]:
        """Return ``Y -> p sqrt(kappa) o c(sqrt(kappa) o Y)``, self-adjoint on ``[n, n]``."""
        root = jnp.sqrt(kappa)
        return lambda Y: root * self.fluctuation(process, root * Y)


def strength(process: Multiplicative, rule: Rule, steps: int = 60) -> Eigenvalue:
    """Return the factor by which minibatch noise feeds itself.

    Below 1 exactly for bounded second moments.

    ``steps`` products with ``c``, O(m n^2) each; the value is a lower bound within its error.

    Raises
    ------
    ValueError : an indefinite or singular Hessian; a step at which the mean diverges.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from bilevel.noise import LeastSquares, feedback, rules
    >>> process = LeastSquares.from_data(jnp.array([[1.0], [2.0]]), jnp.ones(2), batch_size=1)
    >>> found = feedback.strength(process, rules.sgd(0.2))
    >>> round(float(found.value), 4)  # 0.2 (8.5 - 6.25) / (2 2.5 - 0.2 6.25)
    0.12
    """
    response = Response.from_process("feedback.strength", process, rule)
    kappa = response.kappa("feedback.strength", rule)
    return _largest(process, response, kappa, steps)


def require_stable(owner: str, process: Multiplicative, rule: Rule) -> tuple[Response, Array]:
    """Return the response and its kappa, after validating that second moments stay bounded."""
    response = Response.from_process(owner, process, rule)
    kappa = response.kappa(owner, rule)
    found = _largest(process, response, kappa, 60)
    limit = "beyond the mean-square limit: the factor by which noise feeds itself"
    what = f"{describe_rule(rule)} is {limit}"
    checks.below_limit(owner, found.value, 1.0, what)
    return response, kappa


def require_curvature(owner: str, process: Multiplicative) -> Array:
    """Return the mean Hessian, validated to be positive definite."""
    cure = "Add a ridge penalty, or drop dependent features."
    return require_definite(owner, "the Hessian of the inner loss", process.curvature, cure)


def describe_rule(rule: Rule) -> str:
    """Return the rule as the subject of a sentence."""
    if is_traced(rule.gain):
        return "this rule"
    kinds = {1: "", 2: " with momentum"}
    return f"step size {float(rule.gain[0]):.6g}{kinds.get(rule.slots, ' with extra slots')}"


def _largest(process: Multiplicative, response: Response, kappa: Array, steps: int) -> Eigenvalue:
    product = response.feedback(process, kappa)
    return largest_on_matrices(product, len(kappa), steps, kappa.dtype)
