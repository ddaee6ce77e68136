"""AC-6: the stream tells every transition, and ends with the job."""

from tests.kit import Api, Sse, codes


def transitions(events: list[Sse], kind: str) -> list[tuple[str, str]]:
    """Starts and finishes of steps that came under one event name."""
    return [
        (one.data["code"], one.data["step"])
        for one in events
        if one.event == kind and one.data["code"] in {"step.start", "step.finish"}
    ]


BOTH = [(code, step) for step in ("generate", "upscale") for code in ("step.start", "step.finish")]


def test_step_transitions_are_log_events_by_default(api: Api) -> None:
    """No new event types: artifact, progress and log are all that comes."""
    events = api.stream(api.create(count=2))
    assert {one.event for one in events} == {"artifact", "progress", "log"}
    assert transitions(events, "log") == BOTH
    artifacts = [(one.data["step"], one.data["item_index"]) for one in events if one.event == "artifact"]
    assert sorted(artifacts) == [(step, index) for step in ("generate", "upscale") for index in (0, 1)]


def test_step_transitions_are_step_events_on_request(api: Api) -> None:
    """E5-5: include=step names them `event: step`."""
    events = api.stream(api.create(), include="step")
    assert transitions(events, "step") == BOTH
    assert transitions(events, "log") == []


def test_the_ids_are_the_versions_of_the_history(api: Api) -> None:
    """Every event of the log comes once, in order; progress carries no id."""
    job_id = api.create(count=3)
    events = api.stream(job_id)
    history = api.history(job_id)
    numbered = [one for one in events if one.id is not None]
    assert [int(one.id or 0) for one in numbered] == [one["version"] for one in history]
    assert [one.data["code"] for one in numbered] == codes(history)
    assert all(one.id is None for one in events if one.event == "progress")
    assert events[-1].event == "progress"
    assert events[-1].data["progress"] == 1.0
    assert numbered[-1].data["code"] == "job.finish"


def test_a_resumed_stream_continues_after_the_last_event_id(api: Api) -> None:
    """Wherever a client stopped, the rest follows without gap or repetition."""
    job_id = api.create()
    whole = [one.id for one in api.stream(job_id) if one.id is not None]
    for cut in (1, 4, len(whole) - 1):
        rest = [one.id for one in api.stream(job_id, last_event_id=str(cut)) if one.id is not None]
        assert rest == whole[cut:]
        by_query = [one.id for one in api.stream(job_id, last_event_id=str(cut)) if one.id is not None]
        assert by_query == rest


def test_a_client_that_has_seen_the_end_gets_204(api: Api) -> None:
    """204 ends an EventSource's reconnects."""
    job_id = api.create()
    last = api.stream(job_id)
    version = [one.id for one in last if one.id is not None][-1]
    path = f"/v1/jobs/{job_id}/progress/stream"
    assert api.http.get(path, headers={"Last-Event-ID": version or ""}).status_code == 204
    for wrong in ("999", "x", "-1"):
        answer = api.http.get(path, headers={"Last-Event-ID": wrong})
        assert answer.status_code == 422
        assert answer.json()["details"]["field"] == "Last-Event-ID"


def test_the_transcript_is_to_the_letter(api: Api) -> None:
    """Retry first; then frames of event, data, id, in this order, with LF."""
    job_id = api.create()
    api.finished(job_id)
    answer = api.http.get(f"/v1/jobs/{job_id}/progress/stream")
    assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert answer.headers["cache-control"] == "no-store"
    assert answer.headers["x-accel-buffering"] == "no"
    frames = answer.text.split("\n\n")
    assert frames[0].startswith("retry: 2000\nevent: log\n")
    frames[0] = frames[0].removeprefix("retry: 2000\n")
    assert "\r" not in answer.text
    for frame in frames[:-1]:
        names = [line.split(":")[0] for line in frame.split("\n")]
        assert names in (["event", "data", "id"], ["event", "data"])
    first = api.stream(job_id)[0].data
    assert first["payload"]["type"] == "generate"
    assert first["message"]
