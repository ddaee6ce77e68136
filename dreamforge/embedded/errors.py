"""Errors of the embedded services.

EmbeddedError
└── HomeInUse
"""


class EmbeddedError(Exception):
    """An embedded service cannot run; the message says why, where its log is, and what to do."""


class HomeInUse(EmbeddedError):
    """Another process has locked the home."""
