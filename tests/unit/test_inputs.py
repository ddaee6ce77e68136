"""What requests carry beside their JSON, as it is understood."""

from datetime import UTC, datetime, timedelta
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.requests import Request

from api.errors import ApiError
from api.inputs import path_job_id, time_query
from api.waiting import preference_applied_header, preferred_wait_s
from tests.kit import NOBODY

NOON = datetime(2026, 1, 2, 12, 0, tzinfo=UTC)


def asked(query: str, *headers: tuple[str, str]) -> Request:
    """A GET with a query as it was typed, and headers."""
    raw = [(name.encode(), value.encode("latin-1")) for name, value in headers]
    return Request({"type": "http", "method": "GET", "path": "/", "query_string": query.encode(), "headers": raw})


@pytest.mark.parametrize(
    "text",
    [
        "2026-01-02T12:00:00Z",
        "2026-01-02t12:00:00z",
        "2026-01-02T12:00:00",
        "2026-01-02 12:00:00",
        "2026-01-02T14:00:00%2B02:00",
        "2026-01-02T14:00:00+02:00",
        "2026-01-02+14:00:00+02:00",
        "2026-01-02T14:00:00.000000+0200",
        "2026-01-02T07:00-05:00",
    ],
)
def test_a_time_with_any_offset(text: str) -> None:
    """None means UTC, and a plus that was not escaped, so arrives as a blank, is still a plus."""
    assert time_query(asked(f"at={text}"), "at") == NOON


@pytest.mark.parametrize(
    "text",
    ["", "now", "12:00", "2026-13-01T00:00:00Z", "0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-14:00", "٢٠٢٦"],
)
def test_anything_else_is_rejected_by_name(text: str) -> None:
    with pytest.raises(ApiError) as caught:
        time_query(asked(f"since_ts={quote(text)}"), "since_ts")
    assert caught.value.details == {"field": "since_ts", "reason": "must be a time like 2026-01-02T12:00:00Z"}


def test_a_long_text_costs_no_time() -> None:
    """Given tens of kilobytes, which would keep the pattern for a blank's place busy for hours, then it is rejected."""
    with pytest.raises(ApiError):
        time_query(asked("at=" + "T00" * 20_000), "at")


@pytest.mark.parametrize("given_id", ["{%s}", "urn:uuid:%s", "%s0"])
def test_an_id_is_a_uuid_in_its_one_form(given_id: str) -> None:
    request = asked("")
    request.scope["path_params"] = {"job_id": given_id % NOBODY}
    with pytest.raises(ApiError) as caught:
        path_job_id(request)
    assert caught.value.code == "not_found"
    request.scope["path_params"] = {"job_id": str(NOBODY).upper()}
    assert path_job_id(request) == NOBODY


@given(st.text(max_size=30))
def test_no_text_breaks_the_clock(text: str) -> None:
    try:
        found = time_query(asked(f"at={quote(text)}"), "at")
    except ApiError:
        return
    assert found is not None
    assert found.utcoffset() == timedelta(0)


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        ("wait=5", 5),
        ("WAIT = 5", 5),
        ('wait="5"', 5),
        ("respond-async, wait=7; foo=bar", 7),
        ("wait=3600", 60),
        ("wait=0", 0),
        ("wait=3, wait=9", 3),
        ("wait=x, wait=9", None),
        ("wait", None),
        ("wait=-1", None),
        ("wait=1.5", None),
        ("await=5", None),
        ("", None),
    ],
)
def test_the_preference_to_wait(header: str, seconds: int | None) -> None:
    """At most 60 seconds; of several the first counts, and one that is malformed counts for nothing."""
    assert preferred_wait_s(asked("", ("prefer", header))) == seconds
    assert preference_applied_header(seconds) == ({} if seconds is None else {"Preference-Applied": f"wait={seconds}"})


def test_preferences_in_several_headers_are_one_list() -> None:
    assert preferred_wait_s(asked("", ("prefer", "respond-async"), ("prefer", "wait=4"))) == 4
