"""Errors in the shape of OpenAI's API: {"error": {"message", "type", "param", "code"}}. Pure."""

from collections.abc import Mapping
from typing import Any

PREFIX = "/openai/v1"

_TYPE_AND_CODE = {
    "unauthorized": ("invalid_request_error", "invalid_api_key"),
    "forbidden": ("invalid_request_error", "insufficient_permissions"),
    "not_found": ("invalid_request_error", "not_found"),
    "method_not_allowed": ("invalid_request_error", "method_not_allowed"),
    "conflict": ("invalid_request_error", "conflict"),
    "payload_too_large": ("invalid_request_error", "payload_too_large"),
    "unsupported_media_type": ("invalid_request_error", "unsupported_media_type"),
    "misdirected_request": ("invalid_request_error", "misdirected_request"),
    "invalid_input": ("invalid_request_error", "invalid_value"),
    "rate_limited": ("rate_limit_error", "rate_limit_exceeded"),
    "infra_unavailable": ("server_error", "service_unavailable"),
    "internal": ("server_error", "internal_error"),
}


def is_openai_path(path: str) -> bool:
    """Whether a path belongs to this API."""
    return path == PREFIX or path.startswith(f"{PREFIX}/")


def openai_error(code: str, message: str, details: Mapping[str, Any] | None) -> dict[str, Any]:
    """The body of an error. code: of this service's table; `details` may replace it with `code`, and name a `field`."""
    kind, openai_code = _TYPE_AND_CODE[code]
    details = details or {}
    return {
        "error": {
            "message": message,
            "type": kind,
            "param": details.get("field"),
            "code": details.get("code", openai_code),
        }
    }


def openai_status(code: str, status: int) -> int:
    """The status of an error: 400 for invalid input, where this service answers 422."""
    return 400 if code == "invalid_input" else status


def openai_headers(code: str, headers: Mapping[str, str]) -> dict[str, str]:
    """The headers of an error. The `openai` package repeats a call after a 409 unless it is told not to."""
    return {**headers, "X-Should-Retry": "false"} if code == "conflict" else dict(headers)
