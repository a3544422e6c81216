"""What is understood of a command line before JAX is imported."""
