"""Mixed-mode second derivatives: the gradient's pull-back as a forward-over-reverse product.

Reverse mode through an inner loop needs, at every step, the pull-back of the map
``(w, h) -> grad_w g(w, h)``. The Hessian of ``g`` in ``(w, h)`` is symmetric, so the pull-back of
a cotangent ``a`` is the push-forward ``(H a, C^T a) = d/de grad_{(w,h)} g(w + e a, h)``: one
Jacobian-vector product of the gradient, cheaper in time and memory than reverse-over-reverse
(Kemaev et al., ICML 2025).
"""

from typing import Any

import jax
from jax import Array

from bilevel.core import Loss
from bilevel.utils import DataTree, Hyper, Params, PyTree


def mixed_mode(loss: Loss) -> Loss:
    """The same loss, whose ``jax.grad`` in ``params`` is pulled back in mixed mode.

    Any solver that calls ``jax.grad(loss)`` or ``jax.value_and_grad(loss)`` profits unchanged. The
    result supports reverse mode only.
    """

    @jax.custom_vjp
    def gradient(params: Params, hyper: Hyper, batch: DataTree) -> PyTree:
        return jax.grad(loss)(params, hyper, batch)

    def gradient_forward(params: Params, hyper: Hyper, batch: DataTree) -> Any:
        return gradient(params, hyper, batch), (params, hyper, batch)

    def gradient_backward(saved: Any, cotangent: PyTree) -> Any:
        params, hyper, batch = saved

        def both(params: Params) -> Any:
            return jax.grad(loss, argnums=(0, 1))(params, hyper, batch)

        return *jax.jvp(both, (params,), (cotangent,))[1], None

    gradient.defvjp(gradient_forward, gradient_backward)

    @jax.custom_vjp
    def value(params: Params, hyper: Hyper, batch: DataTree) -> Array:
        return loss(params, hyper, batch)

    def value_forward(params: Params, hyper: Hyper, batch: DataTree) -> Any:
        return loss(params, hyper, batch), (params, hyper, batch)

    def value_backward(saved: Any, cotangent: Array) -> Any:
        params, hyper, batch = saved
        in_params = gradient(params, hyper, batch)
        in_hyper = jax.grad(loss, argnums=1)(params, hyper, batch)
        return *(jax.tree.map(lambda g: cotangent * g, t) for t in (in_params, in_hyper)), None

    value.defvjp(value_forward, value_backward)
    return value
