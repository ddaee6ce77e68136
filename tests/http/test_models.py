"""GET /v1/models, GET /v1/models/{id}, and a job's `model_id`."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from artifacts.object_store import S3Config
from eventstore.ids import new_id
from eventstore.log import Append, Batch
from model_registry.registry import ModelRegistry, make_registration_event
from model_registry.view import ModelView
from orchestrator.events import ModelEnabled, ModelKind
from tests.conftest import Backends, fresh_database
from tests.http.conftest import consumer, invalid, running
from tests.kit import NOBODY, Api, Service, Store, event, model_registered, roles_environ

SUMMARY = {"id", "name", "kind", "version", "installed", "enabled", "parameters_schema"}


class Models:
    """An API, and the models that its database holds, by name."""

    def __init__(self, api: Api, registered: dict[str, ModelView]) -> None:
        self.api = api
        self.registered = registered

    def names(self, **params: Any) -> list[str]:
        """The names that the list answers."""
        return [model["name"] for model in self.api.get("/v1/models", **params)["models"]]

    def show(self, name: str) -> Any:
        """The answer for one model."""
        return self.api.get(f"/v1/models/{self.registered[name].model_id}")


@asynccontextmanager
async def registry(url: str) -> AsyncIterator[ModelRegistry]:
    """The registry of a database, as a command would hold it."""
    store = Store(url, listen=False)
    try:
        yield ModelRegistry(store.log, "test")
    finally:
        await store.close()


async def register(url: str, folder: Path) -> dict[str, ModelView]:
    """Upscalers before generators, one of them disabled, one damaged."""
    kinds: dict[str, ModelKind] = {
        "gan": "gan-upscaler",
        "damaged": "generator",
        "first": "generator",
        "disabled": "generator",
        "diffusion": "diffusion-upscaler",
        "second": "generator",
    }
    models: dict[str, ModelView] = {}
    async with registry(url) as held:
        for name, kind in kinds.items():
            (folder / name).mkdir()
            (folder / name / "weights.safetensors").write_text(name)
            wanted = make_registration_event(str(folder / name), kind, version="1")
            models[name], _ = await held.add(wanted, enabled=name != "disabled")
        (folder / "damaged" / "weights.safetensors").unlink()
        await held.verify(models["damaged"])
    return models


@pytest.fixture(scope="module")
def models(backends: Backends, s3_config: S3Config, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Models]:
    """A service over a database in which models were registered after its start."""
    with fresh_database(backends) as url:
        service = Service("up", roles_environ(url, s3_config))
        api = Api(service.url)
        try:
            yield Models(api, asyncio.run(register(url, tmp_path_factory.mktemp("models"))))
        finally:
            api.close()
            service.stop()


def test_the_list_holds_what_jobs_may_use_the_default_generator_first_and_upscalers_last(models: Models) -> None:
    answer = models.api.get("/v1/models")
    assert [model["name"] for model in answer["models"]] == ["first", "second", "gan", "diffusion"]
    assert (answer["page"], answer["limit"], answer["total"]) == (1, 50, 4)
    assert answer == models.api.get("/v1/models", enabled="true")
    for model in answer["models"]:
        assert model.keys() == SUMMARY
        assert (model["installed"], model["enabled"]) == (True, True)


def test_the_others_are_listed_apart(models: Models) -> None:
    answer = models.api.get("/v1/models", enabled="false")
    states = {model["name"]: (model["installed"], model["enabled"]) for model in answer["models"]}
    assert states == {"damaged": (False, True), "disabled": (True, False)}


def test_pages_follow_one_another(models: Models) -> None:
    assert models.names(limit=3) == ["first", "second", "gan"]
    assert models.names(limit=3, page=2) == ["diffusion"]
    assert models.api.get("/v1/models", limit=3, page=9) == {"models": [], "page": 9, "limit": 3, "total": 4}


@pytest.mark.parametrize(
    ("field", "value"),
    [("enabled", "maybe"), ("enabled", ""), ("page", "0"), ("page", "x"), ("limit", "0"), ("limit", "201")],
)
def test_a_bad_parameter_is_named(api: Api, field: str, value: str) -> None:
    answer = api.http.get("/v1/models", params={field: value})
    assert answer.status_code == 422
    assert answer.json()["details"]["field"] == field


def test_one_model_tells_what_it_is_made_of(models: Models) -> None:
    first = models.registered["first"]
    answer = models.show("first")
    assert answer.keys() == SUMMARY | {"capabilities", "source_uri", "local_path", "files_json"}
    assert (answer["kind"], answer["version"], answer["capabilities"]) == ("generator", "1", ["generate"])
    assert (answer["local_path"], answer["source_uri"]) == (first.local_path, Path(first.local_path).as_uri())
    assert answer["files_json"] == [{"path": "weights.safetensors", "sha256": first.files[0].sha256, "size": 5}]
    assert answer["parameters_schema"]["properties"]["steps"]["maximum"] == 200
    assert models.show("gan")["capabilities"] == ["upscale"]


def test_a_model_that_jobs_cannot_use_is_shown_all_the_same(models: Models) -> None:
    assert (models.show("damaged")["installed"], models.show("disabled")["enabled"]) == (False, False)


async def test_a_model_takes_what_its_schema_admits(db_url: str, s3_config: S3Config, tmp_path: Path) -> None:
    """Given a model's own bounds, then a job beyond them is rejected, in either form, and the field named."""
    schema = {"properties": {"width": {"maximum": 256}, "steps": {"maximum": 4}, "scheduler": {"enum": ["euler"]}}}
    (tmp_path / "weights.safetensors").write_text("tiny")
    wanted = make_registration_event(str(tmp_path), "generator", name="tiny", parameters_schema=schema)
    async with registry(db_url) as held:
        model, _ = await held.add(wanted, enabled=True)
    body = {"type": "generate", "prompt": "a castle", "width": 64, "height": 64, "steps": 2}
    given = body | {"model_id": str(model.model_id)}
    with running("api", db_url, s3_config, DF_EAGER_TIMEOUT_S="0.3") as service, consumer(service) as api:
        for field, value in {"width": 512, "steps": 5, "scheduler": "ddim"}.items():
            assert "tiny" in invalid(api.post(given | {field: value}), field)
            pipeline = {"pipeline": [given | {field: value}, {"type": "upscale"}]}
            invalid(api.post(pipeline), f"pipeline[0].{field}")
            assert api.post(body | {field: value}).status_code in {200, 202}
        assert api.post(given).status_code in {200, 202}


async def test_a_model_with_a_schema_that_cannot_be_used_takes_no_job(db_url: str, s3_config: S3Config) -> None:
    """Given one that an earlier release registered, then the job is rejected, and the service does not break."""
    bad = model_registered(parameters_schema={"$ref": "https://example.org/schema.json"})
    append = Append(stream=new_id(), category="model", expected=0, events=(event(bad), event(ModelEnabled())))
    store = Store(db_url, listen=False)
    await store.log.commit(Batch(appends=[append]))
    await store.close()
    with running("api", db_url, s3_config) as service, consumer(service) as api:
        answer = api.post({"type": "generate", "prompt": "x", "model_id": str(append.stream)})
    assert "leads to nothing" in invalid(answer, "model_id")


@pytest.mark.parametrize("model_id", [str(NOBODY), "first"])
def test_an_unknown_model_is_not_found(models: Models, model_id: str) -> None:
    answer = models.api.http.get(f"/v1/models/{model_id}")
    assert (answer.status_code, answer.json()["code"]) == (404, "not_found")


def test_a_job_names_the_model_that_it_is_generated_by(models: Models) -> None:
    """In its parameters, in its history and in its step."""
    first = str(models.registered["first"].model_id)
    job_id = models.api.create(scale=None, model_id=first)
    job = models.api.finished(job_id)
    assert (job["params"]["model_id"], job["steps"][0]["metadata"]["model_id"]) == (first, first)
    [selected] = [one for one in models.api.history(job_id) if one["code"] == "model.selected"]
    assert json.loads(selected["data"])["model_id"] == first


@pytest.mark.parametrize("name", ["disabled", "damaged", "gan", "diffusion", None])
def test_a_model_that_cannot_generate_now_is_rejected(models: Models, name: str | None) -> None:
    """Disabled, damaged, an upscaler, or unknown."""
    model_id = new_id() if name is None else models.registered[name].model_id
    answer = models.api.post({"type": "generate", "prompt": "x", "model_id": str(model_id)})
    assert (answer.status_code, answer.json()["details"]["field"]) == (422, "model_id")


def test_a_job_is_no_model(api: Api) -> None:
    assert api.http.get(f"/v1/models/{api.create()}").status_code == 404


def test_head_works_and_other_methods_do_not(models: Models) -> None:
    for path in ("/v1/models", f"/v1/models/{models.registered['first'].model_id}"):
        head = models.api.http.head(path)
        assert (head.status_code, head.content) == (200, b"")
        post = models.api.http.post(path)
        assert (post.status_code, set(post.headers["Allow"].split(", "))) == (405, {"GET", "HEAD"})
