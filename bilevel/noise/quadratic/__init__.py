"""Closed forms for SGD on quadratics with a given Hessian and noise."""
