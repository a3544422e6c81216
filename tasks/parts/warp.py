r"""Small shifts, turns and stretches of images, differentiable in how large they are.

A pixel p of the result, counted from the image's centre, is the image at ``M p + t``, between
pixels by linear interpolation, outside by 0:

    t = shift z_12,   M = exp(zoom z_4) turn(rotation z_3) [[1, shear z_5], [0, 1]]

with five standard normal numbers z per image and four magnitudes.
"""

import jax
import jax.numpy as jnp
from jax import Array

MAGNITUDES = ("shift", "rotation", "zoom", "shear")
NUMBERS = 5  # random numbers per image


def warp(X: Array, magnitudes: Array, z: Array, shape: tuple[int, int]) -> Array:
    """Move images ``X [n, d]`` by ``magnitudes [4]`` times ``z [n, 5]``; ``[n, d]``.

    Shift is in pixels, rotation in radians, zoom and shear are logarithms and slopes.
    """
    return jax.vmap(lambda x, z: _one(x.reshape(shape), magnitudes, z).reshape(-1))(X, z)


def _one(image: Array, magnitudes: Array, z: Array) -> Array:
    shift, rotation, zoom, shear = magnitudes
    angle, stretch, slope = rotation * z[2], jnp.exp(zoom * z[3]), shear * z[4]
    rows, columns = (jnp.arange(n, dtype=image.dtype) for n in image.shape)
    down, right = jnp.meshgrid(rows - rows.mean(), columns - columns.mean(), indexing="ij")
    right = right + slope * down
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    y = stretch * (cos * down - sin * right) + shift * z[0] + rows.mean()
    x = stretch * (sin * down + cos * right) + shift * z[1] + columns.mean()
    # As products with hat functions: on a CPU faster than gathering, and so is the derivative.
    tall, wide = _hat(y.reshape(-1), rows), _hat(x.reshape(-1), columns)
    return jnp.sum((tall @ image) * wide, axis=1)


def _hat(at: Array, nodes: Array) -> Array:
    """Return weights of linear interpolation, ``[p, nodes]``."""
    return jnp.maximum(1 - jnp.abs(at[:, None] - nodes), 0)
