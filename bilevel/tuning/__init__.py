"""The outer loop: one step, the compiled loop, what it records and what makes it stop."""
