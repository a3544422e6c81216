"""Tasks whose model is a deep network of a kind of its own: an equilibrium, a transformer."""
