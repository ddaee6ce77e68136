"""The exceptions of the client.

ClientError
├── Unreachable         no service answers, or something else does
│   └── ResponseLost    the connection broke before the response: the service may have executed the request
├── ApiError            the service returned an error
├── AmbiguousId         several jobs have an id that begins with the given text
└── DamagedDownload     a downloaded image differs from what the service recorded
"""

from collections.abc import Mapping
from typing import Any


class ClientError(Exception):
    """A request has no usable response."""


class Unreachable(ClientError):
    """No service answers at the address, or something else does."""


class ResponseLost(Unreachable):
    """The connection broke before the response arrived. The service may have executed the request."""


class AmbiguousId(ClientError):
    """Several jobs have an id that begins with the given text."""


class ApiError(ClientError):
    """The service returned an error. details: of the error body."""

    def __init__(self, status: int, code: str, message: str, details: Mapping[str, Any] | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message
        self.details = details or {}


class DamagedDownload(ClientError):
    """A downloaded artifact differs from what the service recorded."""
