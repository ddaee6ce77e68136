"""`make demo`: a stack of its own, and a job run on it."""
