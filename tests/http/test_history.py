"""GET /v1/jobs/{id}/events: the whole history, for auditors."""

import json
import re

from tests.http.conftest import Scribe, succeeded
from tests.kit import Api, codes

EVENT = {"version", "event_id", "code", "ts", "level", "step", "data", "meta", "hash"}


async def test_the_history_is_the_log_to_the_letter(lone: Api, scribe: Scribe) -> None:
    """`data` and `meta` are the hashed texts verbatim, `hash` is lower-case hex."""
    job_id = await scribe.write(succeeded())
    rows = await scribe.store.database.read(
        "select version, event_id::text, code, data::text, meta::text, encode(hash, 'hex') as hash "
        "from eventstore.events where stream_id = $1 order by version",
        job_id,
    )
    history = lone.history(job_id)
    assert [{name: event[name] for name in dict(rows[0])} for event in history] == [dict(row) for row in rows]
    for event in history:
        assert event.keys() == EVENT
        assert re.fullmatch("[0-9a-f]{64}", event["hash"])
        assert event["step"] == json.loads(event["data"]).get("step")


async def test_it_is_paged_by_version(lone: Api, scribe: Scribe) -> None:
    """100 at once unless told otherwise; after the last page there is nothing more."""
    path = f"/v1/jobs/{await scribe.write(succeeded(count=60))}/events"
    whole = lone.get(path, limit=1000)
    assert (whole["has_more"], whole["next_after_version"]) == (False, None)
    assert [one["version"] for one in whole["events"]] == list(range(1, 127))
    first = lone.get(path)
    assert (first["has_more"], first["next_after_version"], len(first["events"])) == (True, 100, 100)
    rest = lone.get(path, after_version=100)
    assert (rest["has_more"], rest["next_after_version"]) == (False, None)
    assert first["events"] + rest["events"] == whole["events"]
    assert lone.get(path, limit=26, after_version=100) == rest
    assert lone.get(path, after_version=126) == {"events": [], "next_after_version": None, "has_more": False}


def test_a_jobs_life_has_these_events(api: Api) -> None:
    """Every step that starts also finishes; a model is selected after every start of generate."""
    job_id = api.create(count=1)
    api.finished(job_id)
    assert codes(api.history(job_id)) == [
        *("job.created", "step.start", "model.selected", "artifact.written", "step.finish"),
        *("step.start", "artifact.written", "step.finish", "job.finish"),
    ]


def test_prompts_and_metadata_stand_in_no_event(lone: Api) -> None:
    job_id = lone.create(prompt="swordfish", negative_prompt="swordfish", metadata={"a": "swordfish"})
    assert "swordfish" not in str(lone.history(job_id))
    assert lone.job(job_id)["params"]["prompt"] == "swordfish"
