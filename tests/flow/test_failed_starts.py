"""Steps that fail before they start: counted from the log like every attempt, and bounded like them."""

from contextlib import ExitStack
from typing import Any

from artifacts.object_store import S3Config
from eventstore.ids import new_id
from eventstore.log import Append, Batch
from orchestrator.events import ModelDisabled, ModelEnabled
from tests.flow.test_fleet import Fleet
from tests.kit import Store, codes, event, model_registered, roles_environ

# Each attempt at selecting a model for an upscale breaks on it: a schema that is none.
BROKEN = model_registered(kind="gan-upscaler", capabilities=["upscale"], parameters_schema={"type": 5})
GAN = {"upscale": {"scale": 2, "impl": "gan"}}


async def test_a_step_that_cannot_start_fails_for_good_and_can_be_retried(
    store: Store, db_url: str, s3_config: S3Config
) -> None:
    """Given a model on which every selection breaks, then its job fails after three attempts, and others go on."""
    model = new_id()
    broken = Append(stream=model, category="model", expected=0, events=(event(BROKEN), event(ModelEnabled())))
    assert (await store.log.commit(Batch(appends=[broken]))).streams[model].committed
    with ExitStack() as stack:
        environ = roles_environ(db_url, s3_config, DF_FAKE_RUNNER="0", DF_RETRY_BASE_S="0")
        fleet = Fleet(environ, stack)
        api = fleet.api()
        for role in ("orchestrator", "projector", "runner"):
            fleet.start(role)
        job = api.finished(api.create(scale=None, chain=GAN))
        assert (job["status"], job["error_code"]) == ("failed", "internal")
        assert "unexpected BadSchema" in job["error_message"]
        upscale: dict[str, Any] = job["steps"][1]
        assert (upscale["status"], upscale["attempt"], upscale["started_at"]) == ("failed", 3, None)
        tail = codes(api.history(job["id"]))[-5:]
        assert tail == ["step.retry", "step.retry", "error", "step.finish", "job.finish"]
        assert api.finished(api.create(scale=None))["status"] == "succeeded"

        disabled = Append(stream=model, category="model", expected=2, events=(event(ModelDisabled()),))
        assert (await store.log.commit(Batch(appends=[disabled]))).streams[model].committed
        assert api.http.post(f"/v1/jobs/{job['id']}/retry").status_code == 202
        # No gan-upscaler is left: that is a reason of its own, found out after the start.
        again = api.finished(job["id"])
        assert (again["error_code"], again["steps"][1]["attempt"]) == ("invalid_input", 4)
