"""Calls that a client repeats without an Idempotency-Key, and the jobs that they asked for before."""

from datetime import UTC, datetime, timedelta
from uuid import UUID

from starlette.requests import Request

from api.access import caller_of
from api.requests import Submission, job_created_event
from api.services import Services
from orchestrator import codec
from orchestrator.events import JobCreated

_ENDED_AGO = timedelta(seconds=10)
"""The `openai` package waits 8 s at most before it repeats a call; the job may end meanwhile."""
_CREATED_AGO = timedelta(hours=1)
_JOBS_PER_PAGE = 200
_MOST_PAGES = 10


async def job_of_earlier_attempt(request: Request, services: Services, submission: Submission) -> UUID | None:
    """The newest job of the same API key and request that is in flight, or ended a moment ago."""
    now = datetime.now(UTC)
    older_than = None
    for _ in range(_MOST_PAGES):
        page = await services.queries.list_jobs(
            caller_of(request).tenant, status=None, older_than=older_than, limit=_JOBS_PER_PAGE
        )
        for job in page:
            recent = job.status in {"queued", "running"} or now - job.updated_at < _ENDED_AGO
            if (
                recent
                and job.prompt == submission.request.prompt
                and await _asks_for(request, services, submission, job.job_id)
            ):
                return job.job_id
        if len(page) < _JOBS_PER_PAGE or now - page[-1].created_at > _CREATED_AGO:
            return None
        older_than = (page[-1].created_at, page[-1].job_id)
    return None


async def _asks_for(request: Request, services: Services, submission: Submission, job_id: UUID) -> bool:
    """Whether a job was asked for with the same API key, and would be made from this request."""
    [first] = await services.log.read_stream(job_id, limit=1)
    if not isinstance(codec.decode_body_or_none(first), JobCreated):
        return False
    event = codec.decode_event(first)
    created = event.body
    if not isinstance(created, JobCreated) or event.meta.key_id != caller_of(request).key_id:
        return False
    ids = tuple(step.step_id for step in created.steps)
    expected, private = job_created_event(
        submission,
        seed=created.generate.seed,
        step_ids=(ids[0], ids[-1]),
        max_pixels=services.config.max_pixels,
    )
    earlier = event.private
    return expected == created and (private.prompt, private.negative_prompt, private.metadata) == (
        earlier.prompt,
        earlier.negative_prompt,
        earlier.metadata,
    )
