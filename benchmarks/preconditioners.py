"""Error of the adjoint against products used, by preconditioner, where the dense answer is known.

    python -m benchmarks.preconditioners

Digits, a network of up to 2000 weights trained by L-BFGS; ``H v = b`` with the Gauss-Newton matrix
and the gradient of the validation loss. Products count those that make a preconditioner.
"""

import argparse
import itertools

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

import bilevel as bl
from bilevel.linear import Operator
from tasks.datasets.images import images
from tasks.parts.networks import perceptron
from tasks.parts.weighting import cross_entropy, square

BUDGETS = (12, 25, 50, 100, 200, 400)


def make_system(hidden: int, decay: float, seed: int) -> tuple[Operator, jax.Array, np.ndarray]:
    """Return the operator on flat params, the right side, and the dense solution."""
    parts = images("digits", train=500, validation=300, seed=seed)
    model, start = perceptron((64, hidden, 10), seed)
    flat, unravel = ravel_pytree(start)
    inner = bl.OutputLoss(
        outputs=lambda w, h, batch: model(unravel(w["w"]), batch[0]),
        loss=lambda z, w, h, batch: jnp.mean(cross_entropy(z, batch[1])) + decay * square(w),
    )
    raise NotImplementedError
