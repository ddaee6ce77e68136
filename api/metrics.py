"""Prometheus metrics of the API."""

from functools import cache

from prometheus_client import Counter, Gauge, Histogram
from starlette.types import Message, Scope

_STANDARD_HTTP_METHODS = {"DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT"}

HTTP_REQUESTS_TOTAL = Counter(
    "df_http_requests_total",
    "Requests answered, streams when they begin; `route` is the template, `unmatched` if there is none.",
    ["method", "route", "status"],
)
HTTP_REQUEST_SECONDS = Histogram(
    "df_http_request_seconds",
    "From a request to the beginning of its answer, streams left out.",
    ["method", "route"],
    buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60),
)
OPEN_SSE_STREAMS = Gauge(
    "df_sse_clients", "Live streams that are open: `job` of one job, `log` of the log.", ["stream"]
)
for _stream in ("job", "log"):
    OPEN_SSE_STREAMS.labels(_stream)
# A gauge, since it keeps the old service's name: a counter's would have to end in _total.
HEALTHZ_HITS = Gauge("df_api_healthz_hits", "Requests for /healthz.")
HEALTHZ_REQUESTS = Counter("df_healthz_requests_total", "The same, as a counter.")


def count_response(scope: Scope, message: Message, seconds: float) -> None:
    """Count a request when its response begins, and observe the time until then, except for streams."""
    method, route = _method_label(scope), _route_template_label(scope)
    _requests_total(method, route, message["status"]).inc()
    if not any(
        name == b"content-type" and value.startswith(b"text/event-stream") for name, value in message["headers"]
    ):
        _request_seconds(method, route).observe(seconds)


# `labels` takes a lock and makes text of every value. There are few combinations: none comes from the client.
_requests_total = cache(HTTP_REQUESTS_TOTAL.labels)
_request_seconds = cache(HTTP_REQUEST_SECONDS.labels)


def _method_label(scope: Scope) -> str:
    # Each method that a client makes up would be a time series.
    method: str = scope["method"]
    return method if method in _STANDARD_HTTP_METHODS else "other"


def _route_template_label(scope: Scope) -> str:
    """The route's template from Starlette's scope: with raw paths, each job would be a time series."""
    return getattr(scope.get("route"), "path", "unmatched")
