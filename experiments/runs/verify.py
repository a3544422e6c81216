"""The hypergradient of a run against its task's closed form, where there is one."""

from typing import Any

import numpy as np
from jax.flatten_util import ravel_pytree

import bilevel as bl


def against_exact(task: Any, result: bl.Result) -> list[dict[str, float]]:
    """Distance of the last estimate from the exact value and hypergradient at the same `hyper`.

    `grad_error` = |g - g*| / |g*| and `cosine` of the angle between the two; near a minimum of the
    outer loss g* vanishes and the relative error says little, so `grad_norm` = |g*| stands beside.
    """
    if task.exact is None:
        return []
    estimate, hyper = result.estimate, result.state.hyper
    value, grad = task.exact(hyper)
    exact = np.asarray(ravel_pytree(grad)[0], float)
    formed = np.asarray(ravel_pytree(estimate.grad)[0], float)
    scale = float(np.linalg.norm(exact))
    lengths = scale * float(np.linalg.norm(formed))
    return [
        {
            "step": int(result.state.step) - 1,
            "value_error": abs(float(estimate.value) - float(value)) / abs(float(value)),
            "grad_error": float(np.linalg.norm(formed - exact)) / scale if scale else float("nan"),
            "cosine": float(formed @ exact) / lengths if lengths else float("nan"),
            "grad_norm": scale,
        }
    ]
