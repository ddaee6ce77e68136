"""What a job's events say of the request that caused them, in histories of this release and of earlier ones."""

from msgspec.structs import replace

from orchestrator import codec
from orchestrator.events import CancelRequested, JobErased, Meta, PersonalText
from orchestrator.service import prepare_append
from orchestrator.state import apply
from tests.kit import History, decoded_event

TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
CAUSE = Meta(request_id="ours", actor="api-1")


def test_a_traceparent_is_read_from_where_each_release_put_it() -> None:
    """Given one in `private`, or as before in `meta`, then runners hear of it; no new event repeats it."""
    history = History()
    first = history.events[0]
    now = replace(first, meta=CAUSE, private=PersonalText(prompt="a castle", traceparent=TRACE))
    before = replace(first, meta=replace(CAUSE, traceparent=TRACE))
    for created in (now, before):
        state = codec.fold(apply, [created])
        assert state is not None
        assert state.traceparent == TRACE
        [event] = prepare_append(state, [CancelRequested()], "runner-1")[0].events
        assert event.meta == codec.encode(Meta(request_id="ours", actor="runner-1"))


def test_the_newest_request_is_the_cause() -> None:
    """Given a cancel with a trace of its own, then it is the one from then on; without one there is none."""
    history = History()
    created = replace(history.events[0], private=PersonalText(traceparent=TRACE))
    for given in (TRACE.replace("0af", "1af"), None):
        cancel = decoded_event(CancelRequested(), 2, job_id=history.job_id, private=PersonalText(traceparent=given))
        state = codec.fold(apply, [created, cancel])
        assert state is not None
        assert state.traceparent == given


def test_what_the_client_says_goes_with_the_request_alone() -> None:
    """Given several events of one request, then its private part is kept once; erasure leaves none."""
    history = History()
    state = history.state
    said = PersonalText(request_id="jane.doe", traceparent=TRACE)
    both = prepare_append(state, [CancelRequested(), CancelRequested()], "api-1", CAUSE, said)[0].events
    assert [event.private for event in both] == [codec.encode(said), None]
    erased = codec.fold(
        apply, [replace(history.events[0], private=said), decoded_event(JobErased(erased=[]), 2, job_id=history.job_id)]
    )
    assert erased is not None
    assert (erased.private, erased.traceparent) == (PersonalText(), None)
