"""How :func:`bilevel.plan` finds its plan: measure the problem once, predict, search."""
