"""Continuous-time models of SGD: stochastic differential equations and exit times."""
