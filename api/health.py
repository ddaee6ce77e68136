"""Is the service alive, and is it ready?"""

import asyncio
import time

from starlette.requests import Request
from starlette.responses import Response

from api.responses import json_response
from api.services import Check, Services

_CHECK_S = 3.0


async def healthz(_request: Request) -> Response:
    """The process answers."""
    return json_response({"status": "ok", "ts": int(time.time())})


async def readyz(request: Request) -> Response:
    """Everything that the process needs is there; 503 names what isn't."""
    services: Services = request.app.state.services
    found = await asyncio.gather(*(_verdict(check) for check in services.checks.values()))
    checks = dict(zip(services.checks, found, strict=True))
    ready = all(verdict == "ok" for verdict in found)
    return json_response({"status": "ready" if ready else "unavailable", "checks": checks}, 200 if ready else 503)


async def _verdict(check: Check) -> str:
    try:
        async with asyncio.timeout(_CHECK_S):
            await check()
    except TimeoutError:
        return f"no answer within {_CHECK_S:g} s"
    except Exception as error:  # noqa: BLE001  # whatever is wrong is the answer
        return str(error) or type(error).__name__
    return "ok"
