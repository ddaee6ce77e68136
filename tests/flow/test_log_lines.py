"""What the processes' own logs tell, a line an event."""

import json
from typing import Any

from eventstore.ids import new_id
from tests.kit import Api, Service, eventually

TRACE_ID = "0af7651916cd43dd8448eb211c80319c"
TRACE = f"00-{TRACE_ID}-b7ad6b7169203331-01"


def lines(service: Service, **wanted: str) -> list[Any]:
    """The lines that have these members."""
    found = [json.loads(line) for line in service.lines]
    return [line for line in found if wanted.items() <= line.items()]


async def test_a_request_and_its_steps_are_told_with_tenant_and_trace(service: Service, api: Api) -> None:
    """Given a traceparent, then its trace names the request's line, and those of the steps that came of it."""
    asked = str(new_id())
    answer = api.post(
        {"type": "generate", "prompt": "a castle", "width": 64, "height": 64, "chain": {"upscale": {}}},
        **{"traceparent": TRACE, "X-Request-Id": asked},
    )
    job_id = answer.json()["job"]["id"]
    api.finished(job_id)

    async def told() -> list[Any]:
        return lines(service, job_id=job_id, event="step succeeded")

    both = await eventually(told)
    while len(both) < 2:
        both = await eventually(told)
    assert [line["step"] for line in both] == ["generate", "upscale"]
    [request] = lines(service, client_request_id=asked)
    assert (request["event"], request["http_status"], request["path"]) == ("request", 202, "/v1/jobs")
    for line in (request, *both):
        assert (line["tenant"], line["trace_id"]) == ("default", TRACE_ID)


async def test_probes_scrapes_and_the_server_itself_are_not_told(service: Service, api: Api) -> None:
    """Given probes every few seconds, then they fill no log; nor does uvicorn tell of what the roles do."""
    asked = str(new_id())
    for path in ("/healthz", "/readyz", "/metrics", "/v1/"):
        assert api.http.get(path, headers={"X-Request-Id": asked}).status_code == 200

    async def told() -> list[Any]:
        return lines(service, client_request_id=asked)

    assert [line["path"] for line in await eventually(told)] == ["/v1/"]
    assert not [line for line in lines(service, level="info") if line["logger"].startswith("uvicorn")]
