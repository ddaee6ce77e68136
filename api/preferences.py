"""What a request prefers (RFC 7240): to wait for a job's end before it is answered."""

import asyncio
import re
from uuid import UUID

from starlette.requests import Request

from api.services import Services
from eventstore.errors import EventStoreError
from projections.job_view import JobView

_LONGEST_S = 60
# A preference is `name`, or `name=value` with the value perhaps quoted; parameters after `;` mean nothing here.
_WAIT = re.compile(r'\s*wait\s*=\s*(?:"(\d{1,9})"|(\d{1,9}))\s*(?:;.*)?', re.IGNORECASE | re.ASCII)
_NAME = re.compile(r"\s*wait\s*(?:[=;].*)?", re.IGNORECASE)


def wait(request: Request) -> int | None:
    """For how many seconds the client would wait, 60 at most; None if it named no number that can be read.

    Of several the first counts (RFC 7240, section 2).
    """
    preferences = [one for header in request.headers.getlist("prefer") for one in header.split(",")]
    first = next((one for one in preferences if _NAME.fullmatch(one)), "")
    found = _WAIT.fullmatch(first)
    return min(int(found[1] or found[2]), _LONGEST_S) if found else None


def applied(seconds: int | None) -> dict[str, str]:
    """The header that says which preference was honoured."""
    return {} if seconds is None else {"Preference-Applied": f"wait={seconds}"}


async def until_terminal(services: Services, tenant: str, job_id: UUID, seconds: float) -> JobView | None:
    """A job once it has ended, or as it is `seconds` later, or when the server stops; None if it can't be read."""
    view: JobView | None = None
    loop = asyncio.get_running_loop()
    deadline = loop.time() + seconds
    async with services.tailer.follow(job_id) as wake_signal:
        while True:
            try:
                if view is None:
                    view = await services.queries.job(tenant, job_id)
                    if view is None:
                        return None
                view = await services.queries.fold_onto(view, await services.tailer.after(job_id, view.version)) or view
            except EventStoreError:
                return view
            left = deadline - loop.time()
            if view.terminal or left <= 0 or services.stopping.is_set():
                return view
            await wake_signal.wait(left)
