"""Local minima and over-fitting of the outer loop."""
