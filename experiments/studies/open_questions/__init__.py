"""Open questions, each with an experiment."""
