"""Mixed-mode second derivatives: the gradient's pull-back as a forward-over-reverse product.

Reverse mode through an inner loop needs, at every step, the pull-back of the map
``(w, h) -> grad_w g(w, h)``. The Hessian of ``g`` in ``(w, h)`` is symmetric, so the pull-back of
a cotangent ``a`` is the push-forward ``(H a, C^T a) = d/de grad_{(w,h)} g(w + e a, h)``: one
Jacobian-vector product of the gradient, cheaper in time and memory than reverse-over-reverse
(Kemaev et al., ICML 2025).
"""

from collections.abc import Callable
from dataclasses import replace
from typing import TypeAlias

import jax
from jax import Array

from bilevel.core import Equation, Loss, ShownBatch
from bilevel.utils import DataTree, Hyper, Params, PyTree, Scalar, partition

Saved: TypeAlias = tuple[PyTree, ...]  # params, hyper, batch


def mixed_mode(loss: Loss, *, once: bool = False) -> Loss:
    """Return the same loss, whose ``jax.grad`` in ``params`` is pulled back in mixed mode.

    Any solver that calls ``jax.grad(loss)`` or ``jax.value_and_grad(loss)`` profits unchanged. The
    result supports reverse mode only. ``once`` says that nobody differentiates it again: what is
    the same in all steps of a loop is then kept once, and not at every step.
    """
    if isinstance(loss, Equation):  # whose Jacobian is not symmetric
        return loss
    keep = _unfenced if once else _fenced

    @jax.custom_vjp
    def gradient(params: Params, hyper: Hyper, batch: DataTree) -> Params:
        return jax.grad(loss)(params, hyper, batch)

    def gradient_forward(*at: PyTree) -> tuple[Params, Saved]:
        return gradient(*at), keep(*at)

    def gradient_backward(saved: Saved, cotangent: Params) -> tuple[Params, Hyper, PyTree]:
        params, hyper, batch = saved
        floats, rebuild, cotangent_of = _model_floats(batch)

        def all_three(params: Params) -> tuple[Params, Hyper, list[Array]]:
            def of_floats(params: Params, hyper: Hyper, floats: list[Array]) -> Scalar:
                return loss(params, hyper, rebuild(floats))

            return jax.grad(of_floats, argnums=(0, 1, 2))(params, hyper, floats)

        in_params, in_hyper, in_floats = jax.jvp(all_three, (params,), (cotangent,))[1]
        return in_params, in_hyper, cotangent_of(in_floats)

    gradient.defvjp(gradient_forward, gradient_backward)

    @jax.custom_vjp
    def value(params: Params, hyper: Hyper, batch: DataTree) -> Scalar:
        return loss(params, hyper, batch)

    def value_forward(*at: PyTree) -> tuple[Scalar, Saved]:
        return loss(*at), keep(*at)

    def value_backward(saved: Saved, cotangent: Scalar) -> tuple[Params, Hyper, PyTree]:
        params, hyper, batch = saved
        floats, rebuild, cotangent_of = _model_floats(batch)

        def of_floats(hyper: Hyper, floats: list[Array]) -> Scalar:
            return loss(params, hyper, rebuild(floats))

        found = gradient(params, hyper, batch), *jax.grad(of_floats, (0, 1))(hyper, floats)
        in_params, in_hyper, in_floats = jax.tree.map(lambda g: cotangent * g, found)
        return in_params, in_hyper, cotangent_of(in_floats)

    value.defvjp(value_forward, value_backward)
    return value


def _model_floats(
    batch: PyTree,
) -> tuple[list[Array], Callable[[list[Array]], PyTree], Callable[[list[Array]], PyTree]]:
    """Return the floats of a batch that have a derivative: those of the model state shown with it.

    Also the batch with other ones, and the cotangent of a batch from theirs; data have none.
    """
    if not isinstance(batch, ShownBatch):
        return [], lambda floats: batch, lambda cotangents: None
    moving, fixed, merge = partition(batch.model_state)

    def rebuild(floats: list[Array]) -> ShownBatch:
        return replace(batch, model_state=merge(floats, fixed))

    def cotangent_of(cotangents: list[Array]) -> ShownBatch:
        none = [None] * len(fixed)
        return ShownBatch(None, merge(cotangents, none), None)  # pyright: ignore

    return moving, rebuild, cotangent_of


def _fenced(*saved: PyTree) -> tuple[PyTree, ...]:
    """Return what a backward pass keeps, as values of its own.

    A custom rule inside ``scan`` that keeps its own inputs loses their batch axis when the scan is
    differentiated in reverse twice (JAX 0.10): the second derivative is then wrong, or fails.
    """
    return jax.lax.optimization_barrier(saved)


def _unfenced(*saved: PyTree) -> tuple[PyTree, ...]:
    return saved
