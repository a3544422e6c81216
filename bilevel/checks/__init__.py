"""Reports on a problem before a run: are the hypergradients right, what do they cost.

:func:`bilevel.check` is in ``hypergradient.py``, ``estimate_cost`` in ``cost.py``, ``check_noise``
(predicted against measured noise) in ``noise.py``.
"""
