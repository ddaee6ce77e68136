"""Waiting for a job's end before the response, as `Prefer: wait` asks for (RFC 7240)."""

import asyncio
import re
from uuid import UUID

from starlette.requests import Request

from api.services import Services
from eventstore.errors import EventStoreError
from projections.job_view import JobView

_MAX_WAIT_S = 60
# A preference is `name` or `name=value`, with an optionally quoted value; parameters after `;` are ignored.
_WAIT_PREFERENCE_PATTERN = re.compile(r'\s*wait\s*=\s*(?:"(\d{1,9})"|(\d{1,9}))\s*(?:;.*)?', re.IGNORECASE | re.ASCII)
_WAIT_NAME_PATTERN = re.compile(r"\s*wait\s*(?:[=;].*)?", re.IGNORECASE)


def preferred_wait_s(request: Request) -> int | None:
    """The seconds of the first `wait` preference (RFC 7240, section 2), 60 at most; None if absent or malformed."""
    preferences = [one for header in request.headers.getlist("prefer") for one in header.split(",")]
    first = next((one for one in preferences if _WAIT_NAME_PATTERN.fullmatch(one)), "")
    found = _WAIT_PREFERENCE_PATTERN.fullmatch(first)
    return min(int(found[1] or found[2]), _MAX_WAIT_S) if found else None


def preference_applied_header(seconds: int | None) -> dict[str, str]:
    """The response header for a preference that was honoured."""
    return {} if seconds is None else {"Preference-Applied": f"wait={seconds}"}


async def wait_until_terminal(services: Services, tenant: str, job_id: UUID, timeout_s: float) -> JobView | None:
    """A job when it has ended, `seconds` have passed, or the process stops; None if there is none to be read."""
    view: JobView | None = None
    loop = asyncio.get_running_loop()
    deadline = loop.time() + timeout_s
    async with services.tailer.follow(job_id) as wake_signal:
        while True:
            try:
                view = view or await services.queries.job_view(tenant, job_id)
                if view is None:
                    return None
                view = (
                    await services.queries.fold_events_onto_view(
                        view, await services.tailer.stream_events_after(job_id, view.version)
                    )
                    or view
                )
            except EventStoreError:
                return view
            left = deadline - loop.time()
            if view.terminal or left <= 0 or services.stopping.is_set():
                return view
            await wake_signal.wait(left)
