"""What users see of a model, event by event; the order of models, and what may be asked of each kind."""

from datetime import timedelta
from hashlib import sha256
from uuid import UUID

import msgspec
import pytest

from eventstore.ids import new_id
from model_registry.registry import default_schema
from model_registry.view import ModelView, evolve, sort_in_default_order
from orchestrator import codec
from orchestrator.events import DomainEvent, JobFinish, ModelDisabled, ModelEnabled, ModelFile, ModelVerified
from orchestrator.parameters import Generate
from runners.selection import model_ref
from tests.kit import NOON, decoded_event, job_created, model_registered

DAMAGED = ModelVerified(intact=False, problems=["weights.bin has changed"])
INTACT = ModelVerified(intact=True, problems=[])


def seen(*bodies: DomainEvent) -> ModelView:
    """The model after these events, which follow its registration."""
    model_id = new_id()
    found = codec.fold(
        evolve, (decoded_event(body, n, job_id=model_id) for n, body in enumerate((model_registered(), *bodies), 1))
    )
    assert found is not None
    return found


def model(kind: str, capability: str, minutes: int) -> ModelView:
    """A model registered some minutes after noon."""
    registered = model_registered(kind=kind, capabilities=[capability])
    found = codec.fold(evolve, [decoded_event(registered, 1, job_id=new_id(), ts=NOON + timedelta(minutes=minutes))])
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("paths", "expected"),
    [
        (["castles.safetensors"], "castles.safetensors"),
        (["config.json", "unet/weights.BIN"], "unet/weights.BIN"),
        (["unet/weights.safetensors", "vae/weights.safetensors"], None),
        (["config.json"], None),
    ],
)
def test_one_file_of_weights_is_what_others_know_a_model_by(paths: list[str], expected: str | None) -> None:
    files = [ModelFile(path=path, sha256=sha256(path.encode()).hexdigest(), size=1) for path in paths]
    found = codec.fold(evolve, [decoded_event(model_registered(files=files), 1, job_id=new_id())])
    assert found is not None
    digest = None if expected is None else sha256(expected.encode()).hexdigest()
    assert (found.weights_sha256, model_ref(found).weights_sha256) == (digest, digest)


def test_a_registered_model_is_installed_and_waits_to_be_enabled() -> None:
    found = seen()
    assert (found.installed, found.enabled, found.available) == (True, False, False)
    assert (found.registered_at, found.stream_version) == (NOON, 1)


@pytest.mark.parametrize(
    ("bodies", "available"),
    [
        ([ModelEnabled()], True),
        ([ModelEnabled(), ModelDisabled()], False),
        ([ModelEnabled(), DAMAGED], False),
        ([DAMAGED, ModelEnabled()], False),
        ([ModelEnabled(), DAMAGED, INTACT], True),
        ([DAMAGED, INTACT], False),
    ],
)
def test_jobs_may_use_a_model_that_is_enabled_and_whose_files_are_intact(
    bodies: list[DomainEvent],
    available: bool,  # noqa: FBT001  # a column
) -> None:
    assert seen(*bodies).available is available


def test_a_damaged_model_says_what_is_wrong_until_it_is_intact_again() -> None:
    assert seen(DAMAGED).problems == ("weights.bin has changed",)
    assert seen(DAMAGED, INTACT).problems == ()


def test_the_history_of_a_job_is_no_model() -> None:
    job_id = new_id()
    history = [
        decoded_event(job_created(), 1, job_id=job_id),
        decoded_event(JobFinish(status="succeeded"), 2, job_id=job_id),
    ]
    assert codec.fold(evolve, history) is None


def test_an_event_of_a_later_release_is_passed_over_and_counted() -> None:
    """An append after it must expect the stream's true version."""
    unknown = msgspec.structs.replace(decoded_event(ModelEnabled(), 2, job_id=UUID(int=1)), body=None)
    found = codec.fold(evolve, [decoded_event(model_registered(), 1, job_id=UUID(int=1)), unknown])
    assert found is not None
    assert (found.enabled, found.stream_version) == (False, 2)


def test_generators_come_before_upscalers_each_as_they_were_registered() -> None:
    gan, late = model("gan-upscaler", "upscale", 0), model("generator", "generate", 3)
    diffusion, early = model("diffusion-upscaler", "upscale", 2), model("generator", "generate", 1)
    assert sort_in_default_order([gan, late, diffusion, early]) == [early, late, gan, diffusion]


def test_a_generators_schema_has_the_bounds_of_a_request() -> None:
    schema = default_schema("generator")
    assert schema["required"] == ["prompt"]
    assert schema["properties"]["width"] == {"type": "integer", "minimum": 16, "maximum": 4096, "default": 1024}
    assert schema["properties"].keys() == set(Generate.__struct_fields__) - {"type", "model_id", "provider", "engine"}


@pytest.mark.parametrize("kind", ["gan-upscaler", "diffusion-upscaler"])
def test_an_upscaler_may_be_asked_for_a_scale(kind: str) -> None:
    schema = default_schema(kind)  # type: ignore[arg-type]  # a parameter of a test is any text
    assert schema["required"] == []
    assert schema["properties"] == {
        "scale": {"enum": [2, 4], "default": 2},
        "strict_scale": {"type": "boolean", "default": False},
    }
