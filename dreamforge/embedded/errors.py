"""What can go wrong with the embedded services.

EmbeddedError
└── HomeInUse
"""


class EmbeddedError(Exception):
    """An embedded service cannot run; the message says why, where its log lies and what to do."""


class HomeInUse(EmbeddedError):
    """Another process runs its services in the same home."""
