"""The routes of health and metrics. Every role serves them."""

import asyncio
import time
from collections.abc import Mapping

import msgspec
from prometheus_client import REGISTRY, disable_created_metrics, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, choose_encoder
from starlette.requests import Request
from starlette.responses import Response

from api.access import NO_SCOPES
from api.errors import invalid_field_error
from api.metrics import HEALTHZ_HITS, HEALTHZ_REQUESTS
from api.openapi.service import GET_HEALTH, GET_METRICS, GET_READINESS
from api.responses import json_response
from api.routing import ApiRoute
from api.schemas import Liveness, Readiness
from api.services import HealthCheck
from eventstore.database import run_with_time_limit
from eventstore.metrics import BacklogGauges
from eventstore.write_probe import WriteProbe

_CHECK_TIMEOUT_S = 3.0
_WRITES_CHECK_NAME = "writes"

# Otherwise every counter and histogram has a second series with its creation time.
disable_created_metrics()  # type: ignore[no-untyped-call]  # it has no annotations


class HealthSources(msgspec.Struct, frozen=True):
    """What the handlers report. checks: of /readyz, by name; roles add theirs when they start.

    writes: tries a commit. needs_writes: whether the process is not ready without writes; an API still serves reads.
    notices: checks that are reported only: the process is ready although one fails.
    """

    checks: Mapping[str, HealthCheck]
    backlog: BacklogGauges
    writes: WriteProbe
    needs_writes: bool = True
    notices: Mapping[str, HealthCheck] = {}


async def get_liveness(_request: Request) -> Response:
    """GET /healthz: the process answers."""
    HEALTHZ_HITS.inc()
    HEALTHZ_REQUESTS.inc()
    return json_response(Liveness(ts=int(time.time())))


async def get_readiness(request: Request) -> Response:
    """GET /readyz: 503 unless all checks pass."""
    need = request.query_params.get("need")
    if need not in {None, _WRITES_CHECK_NAME}:
        raise invalid_field_error("need", f"must be {_WRITES_CHECK_NAME!r} if it is given")
    health: HealthSources = request.app.state.health
    checks = {**health.checks, **health.notices, _WRITES_CHECK_NAME: health.writes.check}
    found = await asyncio.gather(*(_run_check(check) for check in checks.values()))
    verdicts = dict(zip(checks, found, strict=True))
    spared = set(health.notices) if need or health.needs_writes else {_WRITES_CHECK_NAME, *health.notices}
    ready = all(verdict == "ok" for name, verdict in verdicts.items() if name not in spared)
    answer = Readiness(status="ready" if ready else "unavailable", checks=verdicts)
    return json_response(answer, 200 if ready else 503)


async def get_metrics(request: Request) -> Response:
    """GET /metrics: all metrics of the process, in the format that the scraper accepts."""
    health: HealthSources = request.app.state.health
    await asyncio.gather(health.backlog.refresh(), health.writes.refresh())
    body, content_type = _encode_metrics(", ".join(request.headers.getlist("accept")))
    return Response(body, headers={"Content-Type": content_type})


async def _run_check(check: HealthCheck) -> str:
    try:
        await run_with_time_limit(_CHECK_TIMEOUT_S, check())
    except TimeoutError:
        return f"no answer within {_CHECK_TIMEOUT_S:g} s"
    except Exception as error:  # noqa: BLE001  # the error is the verdict
        return str(error) or type(error).__name__
    return "ok"


def _encode_metrics(accept_header: str) -> tuple[bytes, str]:
    try:
        encode, content_type = choose_encoder(accept_header)
        return encode(REGISTRY), content_type
    except TypeError:  # the library's error for a version that is not a number
        return generate_latest(REGISTRY), CONTENT_TYPE_PLAIN_0_0_4


ROUTES = [
    ApiRoute("GET", "/healthz", get_liveness, NO_SCOPES, GET_HEALTH),
    ApiRoute("GET", "/readyz", get_readiness, NO_SCOPES, GET_READINESS),
    ApiRoute("GET", "/metrics", get_metrics, NO_SCOPES, GET_METRICS),
]
