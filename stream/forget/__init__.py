"""Forgetting a stream: taking it out of every file that a run keeps, and proving it."""
