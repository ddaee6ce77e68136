"""GET /v1/jobs/{id}/logs: the history as lines of NDJSON."""

import json
from typing import Any

import pytest

from orchestrator.events import StepError
from tests.http.conftest import Scribe, invalid, minute, succeeded
from tests.kit import Api, History

HEAD = ["ts", "level", "code", "message", "job_id"]


def lines(api: Api, job_id: str, **params: Any) -> list[Any]:
    """The lines that a request answers."""
    answer = api.http.get(f"/v1/jobs/{job_id}/logs", params=params)
    assert answer.status_code == 200, answer.text
    assert answer.headers["Content-Type"] == "application/x-ndjson"
    assert answer.text.endswith("\n") or not answer.text
    return [json.loads(line) for line in answer.text.splitlines()]


def minutes(found: list[Any]) -> list[int]:
    """The versions of lines whose events came a minute apart."""
    return [int(one["ts"][14:16]) for one in found]


async def test_every_event_is_a_line_oldest_first(lone: Api, scribe: Scribe) -> None:
    """With what the event itself says beside the head; its code is the event's."""
    job_id = await scribe.write(succeeded())
    history = lone.history(job_id)
    found = lines(lone, job_id)
    assert [one["code"] for one in found] == [one["code"] for one in history]
    for line, event in zip(found, history, strict=True):
        assert list(line)[:5] == HEAD
        assert (line["ts"], line["level"], line["job_id"]) == (event["ts"], event["level"], job_id)
        assert line["message"] not in {"", line["code"]}
        assert json.loads(event["data"]).items() <= line.items()


async def test_lines_of_steps_name_them_and_others_do_not(lone: Api, scribe: Scribe) -> None:
    history = History(count=1).started("generate").wrote("generate", 0)
    step_id = history.step_id("generate")
    texts: dict[str, Any] = {"error_code": "oom", "error_message": "Out of memory."}
    history.add(StepError(step_id=step_id, step_name="generate", attempt=1, item_index=0, **texts))
    created, started, artifact, error = lines(lone, await scribe.write(history))
    assert not {"step_id", "step"} & created.keys()
    for line in (started, artifact, error):
        assert (line["step_id"], line["step"]) == (str(step_id), "generate")
    assert (artifact["item_index"], artifact["seed"]) == (0, 1)
    assert (error["code"], error["error_code"], error["level"], error["item_index"]) == ("error", "oom", "error", 0)


@pytest.mark.parametrize(
    ("params", "first"),
    [
        ({}, 1),
        ({"tail": 2}, 9),
        ({"tail": 2000}, 1),
        ({"since_ts": minute(5).isoformat()}, 5),
        ({"since_ts": "2026-01-02T12:04:00.000001"}, 5),
        ({"since_ts": minute(0).isoformat()}, 1),
        ({"since_ts": minute(99).isoformat()}, 11),
        ({"since_ts": minute(5).isoformat(), "tail": 3}, 8),
        ({"since_ts": minute(5).isoformat(), "tail": 2000}, 5),
    ],
)
async def test_tail_and_since_choose_the_end(lone: Api, scribe: Scribe, params: dict[str, Any], first: int) -> None:
    """`since_ts` is inclusive; with both, the last `tail` of those."""
    job_id = await scribe.write(succeeded())
    assert minutes(lines(lone, job_id, **params)) == list(range(first, 11))


async def test_without_parameters_the_default_tail_is_answered(tuned: Api, scribe: Scribe) -> None:
    """DF_LOGS_TAIL_DEFAULT, here 3, and at most DF_LOGS_TAIL_MAX, here 5; `since_ts` alone is unlimited."""
    job_id = await scribe.write(succeeded())
    newest = len(tuned.history(job_id))
    assert minutes(lines(tuned, job_id)) == list(range(newest - 2, newest + 1))
    assert len(lines(tuned, job_id, tail=5)) == 5
    invalid(tuned.http.get(f"/v1/jobs/{job_id}/logs", params={"tail": 6}), "tail")
    assert minutes(lines(tuned, job_id, since_ts=minute(1).isoformat())) == list(range(1, newest + 1))


async def test_a_long_history_comes_whole(lone: Api, scribe: Scribe) -> None:
    """More than is read from the database at once; without parameters the last 500."""
    history = History(scale=None, count=100)
    for attempt in range(1, 1201):
        history.started("generate", attempt)
    job_id = await scribe.write(history)
    assert len(lines(lone, job_id)) == 500
    found = lines(lone, job_id, since_ts=minute(0).isoformat())
    assert [one.get("attempt", 0) for one in found] == list(range(1201))
