"""Engines make images of requests: one process with models, and what speaks with it."""
