"""What the noise of SGD does to a hypergradient, predicted or measured."""
