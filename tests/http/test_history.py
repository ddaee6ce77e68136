"""GET /v1/jobs/{id}/events: the whole history, for auditors."""

import json
import re
from typing import Any

import msgspec
import pytest

from eventstore.integrity.chain import STREAM_GENESIS, event_chain, event_hash
from eventstore.integrity.reader import AuditReader
from eventstore.integrity.verifier import AuditEvent
from tests.http.conftest import Scribe, invalid, succeeded
from tests.kit import NOBODY, Api, codes

EVENT = {"version", "event_id", "code", "ts", "level", "step", "data", "meta", "hash"}
PROOF = {
    *("stream_id", "category", "tenant", "schema_version", "partition", "position", "recorded_at"),
    *("private_digest", "hash", "chain", "previous_hash", "previous_chain"),
}
LATER = "2030-01-02T03:04:05.000006Z"


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
    """Nor in its proof, which says nothing of the salt either."""
    job_id = lone.create(prompt="swordfish", negative_prompt="swordfish", metadata={"a": "swordfish"})
    assert "swordfish" not in str(lone.history(job_id))
    [created] = proven(lone, job_id)
    assert "swordfish" not in str(created)
    assert created["proof"].keys() == PROOF
    assert created["proof"]["private_digest"]
    assert lone.job(job_id)["params"]["prompt"] == "swordfish"


def proven(api: Api, job_id: object, **params: Any) -> list[Any]:
    """A page of a job's history, with proofs."""
    return list(api.get(f"/v1/jobs/{job_id}/events", include="proof", **params)["events"])


def audit_event(event: Any) -> AuditEvent:
    """An answered event as the chains' formulas take it, made of nothing but the answer."""
    return msgspec.convert({**event, **event["proof"], "private": None, "private_salt": None}, AuditEvent)


def proven_by(event: Any) -> bool:
    """Are both hashes of an answered event those of its content? At position 1 the chain begins with the log's id."""
    one = audit_event(event)
    if event_hash(one.previous_hash or STREAM_GENESIS, one) != one.hash:
        return False
    return one.position == 1 or (one.previous_chain is not None and event_chain(one.previous_chain, one) == one.chain)


async def test_a_proof_verifies_from_the_answer_alone(lone: Api, scribe: Scribe) -> None:
    """From any page on, and after an erasure; the rest of the answer is what it is without."""
    job_id = await scribe.write(succeeded())
    events = proven(lone, job_id)
    assert all(proven_by(event) for event in events)
    assert [{name: value for name, value in event.items() if name != "proof"} for event in events] == lone.history(
        job_id
    )
    assert [bytes.fromhex(event["hash"]) for event in events] == [audit_event(event).hash for event in events]
    assert [audit_event(event).previous_hash for event in events] == [
        None,
        *(audit_event(one).hash for one in events[:-1]),
    ]
    assert proven(lone, job_id, after_version=3, limit=2) == events[3:5]
    await scribe.store.database.execute_once("select eventstore.erase($1)", job_id)
    assert proven(lone, job_id) == events


async def test_a_proof_is_what_a_bundle_holds(lone: Api, scribe: Scribe) -> None:
    """Field for field, but for the private text."""
    job_id = await scribe.write(succeeded())
    whole = await AuditReader(scribe.store.database).read_stream(audit_event(proven(lone, job_id)[0]).stream_id)
    exported = [msgspec.structs.replace(one, private=None, private_salt=None) for one in whole]
    assert [audit_event(event) for event in proven(lone, job_id)] == exported
    for event, one in zip(proven(lone, job_id), msgspec.to_builtins(exported), strict=True):
        told = {name: value for name, value in event["proof"].items() if name != "recorded_at"}
        assert told.items() <= one.items()


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(("version", 9), ("event_id", str(NOBODY)), ("code", "job.finish"), ("ts", LATER)),
        *(("data", "{}"), ("meta", '{"actor":"somebody"}')),
    ],
)
async def test_a_changed_field_fails(lone: Api, scribe: Scribe, field: str, value: object) -> None:
    event = proven(lone, await scribe.write(succeeded()))[1]
    assert proven_by(event)
    assert not proven_by(event | {field: value})


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(("stream_id", str(NOBODY)), ("category", "model"), ("tenant", "other"), ("schema_version", 2)),
        *(("position", 2**40), ("recorded_at", LATER)),
        *((name, "A" * 43 + "=") for name in ("private_digest", "hash", "chain", "previous_hash", "previous_chain")),
    ],
)
async def test_a_changed_proof_fails(lone: Api, scribe: Scribe, field: str, value: object) -> None:
    event = proven(lone, await scribe.write(succeeded()))[1]
    assert proven_by(event)
    assert not proven_by(event | {"proof": event["proof"] | {field: value}})


@pytest.mark.parametrize("include", ["", "proofs", "step", "proof,step", "proof,"])
def test_nothing_but_proofs_can_be_included(lone: Api, include: str) -> None:
    job_id = lone.create()
    answer = lone.http.get(f"/v1/jobs/{job_id}/events", params={"include": include})
    assert invalid(answer, "include") == "must be proof"
