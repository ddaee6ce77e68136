"""Examples for the OpenAPI document: what may be sent, and what comes back. Pure."""

from typing import Any

import msgspec


class Example(msgspec.Struct, frozen=True):
    """What may be sent or come back."""

    summary: str
    value: Any


_GENERATE_REQUEST = {"type": "generate", "prompt": "a castle", "width": 64, "height": 64, "steps": 2, "count": 3}
LEGACY_JOB_EXAMPLE = Example("A single step, as clients of the old service send it", {**_GENERATE_REQUEST, "seed": 7})
CHAINED_JOB_EXAMPLE = Example("Generate, then upscale", {**_GENERATE_REQUEST, "chain": {"upscale": {"scale": 2}}})
PIPELINE_JOB_EXAMPLE = Example(
    "The same as a pipeline", {"pipeline": [_GENERATE_REQUEST, {"type": "upscale", "scale": 2, "mode": "image"}]}
)
_JOB_ID = "01a204f7-8c43-7f1f-ac1f-b63bbe99ace6"
_STEP_ID = "01a204f7-8c48-7c94-9e3d-dc342df0c5a3"
_JOB_LINKS = {
    "self": f"/v1/jobs/{_JOB_ID}",
    "artifacts": f"/v1/jobs/{_JOB_ID}/artifacts",
    "progress": f"/v1/jobs/{_JOB_ID}/progress",
    "stream": f"/v1/jobs/{_JOB_ID}/progress/stream",
    "events": f"/v1/jobs/{_JOB_ID}/events",
}
JOB_ANSWER_EXAMPLE = Example(
    "A job that waits for its first step",
    {
        "job": {
            "id": _JOB_ID,
            "status": "queued",
            "type": "generate",
            "created_at": "2026-01-02T12:00:00.000000Z",
            "links": _JOB_LINKS,
        }
    },
)
SSE_TRANSCRIPT_EXAMPLE = Example(
    "The end of a chained job of one image",
    "retry: 2000\n"
    "event: log\n"
    'data: {"ts":"2026-01-02T12:00:00.100000Z","level":"info","code":"step.start",'
    '"message":"Step upscale started, attempt 1.",'
    f'"step_id":"{_STEP_ID}","step":"upscale","attempt":1,"runner":"r-1",'
    f'"payload":{{"step_id":"{_STEP_ID}","step":"upscale","attempt":1,"runner":"r-1"}}}}\n'
    "id: 6\n\n"
    "event: artifact\n"
    'data: {"ts":"2026-01-02T12:00:00.200000Z","level":"info","code":"artifact.written","step":"upscale",'
    f'"item_index":0,"artifact_id":"{_JOB_ID}",'
    f'"s3_key":"dreamforge/default/jobs/{_JOB_ID}/upscale/20260102T120000_0_128x128_7.png",'
    '"format":"png","width":128,"height":128,"seed":7,"payload":{"attempt":1,"item_index":0}}\n'
    "id: 7\n\n"
    "event: log\n"
    'data: {"ts":"2026-01-02T12:00:00.300000Z","level":"info","code":"job.finish","message":"Job succeeded.",'
    '"status":"succeeded","payload":{"status":"succeeded"}}\n'
    "id: 9\n\n"
    "event: progress\n"
    'data: {"progress":1.0,"items":[{"item_index":0,"progress":1.0}],'
    '"stages":[{"name":"generate","weight":0.5},{"name":"upscale","weight":0.5}]}\n\n',
)
LOG_LINES_EXAMPLE = Example(
    "Two lines",
    f'{{"ts":"2026-01-02T12:00:00.100000Z","level":"info","code":"step.finish","message":"Step upscale succeeded.",'
    f'"job_id":"{_JOB_ID}","step_id":"{_STEP_ID}","step":"upscale","attempt":1,"status":"succeeded"}}\n'
    f'{{"ts":"2026-01-02T12:00:00.200000Z","level":"info","code":"job.finish","message":"Job succeeded.",'
    f'"job_id":"{_JOB_ID}","status":"succeeded"}}\n',
)
