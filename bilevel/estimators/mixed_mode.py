"""Mixed-mode second derivatives: the gradient's pull-back as a forward-over-reverse product.

Reverse mode through an inner loop needs, at every step, the pull-back of the map
``(w, h) -> grad_w g(w, h)``. The Hessian of ``g`` in ``(w, h)`` is symmetric, so the pull-back of
a cotangent ``a`` is the push-forward ``(H a, C^T a) = d/de grad_{(w,h)} g(w + e a, h)``: one
Jacobian-vector product of the gradient, cheaper in time and memory than reverse-over-reverse
(Kemaev et al., ICML 2025).
"""

from typing import TypeAlias

import jax

from bilevel.core import Loss
from bilevel.utils import DataTree, Hyper, Params, PyTree, Scalar

Saved: TypeAlias = tuple[PyTree, ...]  # params, hyper, batch


def mixed_mode(loss: Loss) -> Loss:
    """Return the same loss, whose ``jax.grad`` in ``params`` is pulled back in mixed mode.

    Any solver that calls ``jax.grad(loss)`` or ``jax.value_and_grad(loss)`` profits unchanged. The
    result supports reverse mode only.
    """

    @jax.custom_vjp
    def gradient(params: Params, hyper: Hyper, batch: DataTree) -> Params:
        return jax.grad(loss)(params, hyper, batch)

    def gradient_forward(*at: PyTree) -> tuple[Params, Saved]:
        return gradient(*at), _fenced(*at)

    def gradient_backward(saved: Saved, cotangent: Params) -> tuple[Params, Hyper, None]:
        params, hyper, batch = saved

        def both(params: Params) -> tuple[Params, Hyper]:
            return jax.grad(loss, argnums=(0, 1))(params, hyper, batch)

        return *jax.jvp(both, (params,), (cotangent,))[1], None

    gradient.defvjp(gradient_forward, gradient_backward)

    @jax.custom_vjp
    def value(params: Params, hyper: Hyper, batch: DataTree) -> Scalar:
        return loss(params, hyper, batch)

    def value_forward(*at: PyTree) -> tuple[Scalar, Saved]:
        return loss(*at), _fenced(*at)

    def value_backward(saved: Saved, cotangent: Scalar) -> tuple[Params, Hyper, None]:
        params, hyper, batch = saved
        in_params = gradient(params, hyper, batch)
        in_hyper = jax.grad(loss, argnums=1)(params, hyper, batch)
        return *(jax.tree.map(lambda g: cotangent * g, t) for t in (in_params, in_hyper)), None

    value.defvjp(value_forward, value_backward)
    return value


def _fenced(*saved: PyTree) -> tuple[PyTree, ...]:
    """Return what a backward pass keeps, as values of its own.

    A custom rule inside ``scan`` that keeps its own inputs loses their batch axis when the scan is
    differentiated in reverse twice (JAX 0.10): the second derivative is then wrong, or fails.
    """
    return jax.lax.optimization_barrier(saved)
