"""How much noise a minibatch has, and which minibatches the formulas are for."""

from bilevel.core import INDEPENDENT
from bilevel.utils import require_positive_int


def batch_factor(examples: int, batch_size: int | None, sampling: str = "iid") -> float:
    r"""Return noise fraction ``p`` of a batch: covariance of a batch mean over that of one example.

    ``1 / B`` for ``"iid"`` (with replacement), ``(m - B) / (B (m - 1))`` for
    ``"without_replacement"`` (B different examples, drawn anew at every step), 0 for the full
    batch. For second moments a batch is then the mixture "full batch with weight 1 - p, one example
    with weight p" (Mulayoff and Michaeli, COLT 2024).

    Parameters
    ----------
    examples, batch_size : m and B; ``batch_size=None`` is the full batch.

    Raises
    ------
    ValueError : ``"epoch"``, whose batches depend on one another; another unknown sampling; B
        outside ``1 .. m``.

    Examples
    --------
    >>> from bilevel import noise
    >>> noise.batch_factor(50, 4), noise.batch_factor(9, 3, "without_replacement")
    (0.25, 0.25)
    """
    require_positive_int("batch_factor", "examples", examples)
    if sampling == "epoch":
        raise ValueError(
            "batch_factor: sampling='epoch' makes the batches of one epoch depend on one another, "
            "and formulas for independent batches would be up to two orders of magnitude too large "
            "in flat directions. Use noise.epochs, or simulate."
        )
    if sampling not in INDEPENDENT:
        raise ValueError(f"batch_factor: sampling must be one of {INDEPENDENT}, got {sampling!r}.")
    if batch_size is None:
        return 0.0
    require_positive_int("batch_factor", "batch_size", batch_size)
    if batch_size > examples:
        raise ValueError(
            f"batch_factor: batch_size={batch_size} is larger than the number of examples, "
            f"{examples}. Use a smaller batch, or batch_size=None for the full batch."
        )
    if sampling == "iid":
        return 1 / batch_size
    return (examples - batch_size) / (batch_size * max(examples - 1, 1))
