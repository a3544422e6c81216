"""From a grid of penalties to a descent by hypergradient; nothing of scikit-learn in it."""
