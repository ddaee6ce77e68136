"""The registry of models: what a model is made of, and its history in the log."""

import asyncio
import os
import shutil
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from eventstore.ids import new_id
from eventstore.log import CATEGORY_EVENTS_SQL, Append, Batch, Log
from eventstore.subscription import Handler, Subscription
from model_registry.catalogue import ModelCatalogue
from model_registry.registry import (
    ModelRegistry,
    NoSuchModel,
    RegistryError,
    find_file_problems,
    hash_model_files,
    make_registration_event,
)
from orchestrator import codec
from orchestrator.events import ModelDisabled
from orchestrator.process_manager import Orchestrator
from orchestrator.step_errors import ProviderError
from projections.projector import Projector
from runners.selection import ModelFilesChecker, model_ref
from tests.kit import Store, connect, event, job_created


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model of two files."""
    folder = tmp_path / "castles"
    (folder / "unet").mkdir(parents=True)
    (folder / "unet" / "weights.safetensors").write_bytes(b"weights")
    (folder / "index.json").write_bytes(b"{}")
    return folder


@pytest.fixture
def registry(store: Store) -> ModelRegistry:
    """The registry, as one command would hold it."""
    return ModelRegistry(store.log, "test")


async def added(registry: ModelRegistry, folder: Path, **more: Any) -> Any:
    """A new model of a folder."""
    model, new = await registry.add(make_registration_event(str(folder), "generator", **more))
    assert new
    return model


def test_files_are_listed_by_path_with_size_and_digest(folder: Path) -> None:
    files = hash_model_files(folder)
    assert [(file.path, file.size) for file in files] == [("index.json", 2), ("unet/weights.safetensors", 7)]
    assert files[1].sha256 == sha256(b"weights").hexdigest()


def test_a_single_file_is_a_model_too(folder: Path) -> None:
    registered = make_registration_event(str(folder / "unet" / "weights.safetensors"), "gan-upscaler")
    assert (registered.name, registered.capabilities) == ("weights", ["upscale"])
    assert [file.path for file in registered.files] == ["weights.safetensors"]


def test_a_models_version_follows_from_its_files_unless_given(folder: Path) -> None:
    first = make_registration_event(str(folder), "generator").version
    assert make_registration_event(str(folder), "generator").version == first
    assert make_registration_event(str(folder), "generator", version="7").version == "7"
    (folder / "index.json").write_bytes(b"[]")
    assert make_registration_event(str(folder), "generator").version != first


def test_a_link_to_the_folder_stands_for_the_folder(folder: Path, tmp_path: Path) -> None:
    """What is registered is where the files lie, also when the link is moved on."""
    (tmp_path / "current").symlink_to(folder)
    assert make_registration_event(str(tmp_path / "current"), "generator").local_path == str(folder)


def test_a_link_within_the_folder_is_followed_and_one_out_of_it_rejected(folder: Path) -> None:
    (folder / "alias.safetensors").symlink_to("unet/weights.safetensors")
    (folder / "folder").symlink_to("unet")
    assert [file.path for file in hash_model_files(folder)] == [
        "alias.safetensors",
        "index.json",
        "unet/weights.safetensors",
    ]
    (folder / "unet" / "out").symlink_to("/etc/hostname")
    with pytest.raises(RegistryError, match=r"unet/out is a link that leads out of the folder"):
        hash_model_files(folder)


@pytest.mark.parametrize(
    ("name", "message"),
    [("nowhere", "no such folder"), ("empty", "holds no file"), ("pipe", "no such folder"), ("odd", "neither a file")],
)
def test_what_is_no_model_is_rejected(tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / "empty" / "more").mkdir(parents=True)
    (tmp_path / "odd").mkdir()
    for pipe in (tmp_path / "pipe", tmp_path / "odd" / "pipe"):
        os.mkfifo(pipe)
    with pytest.raises(RegistryError, match=message):
        make_registration_event(str(tmp_path / name), "generator")


def test_a_name_that_is_no_unicode_is_rejected(folder: Path) -> None:
    """It could neither be stored nor sent."""
    (folder / "caf\udce9").touch()
    with pytest.raises(RegistryError, match="not valid UTF-8"):
        make_registration_event(str(folder), "generator")


@pytest.mark.parametrize("name", ["unet/weights.bin", "pipeline.py", "old.CKPT"])
def test_what_may_run_code_is_registered_only_where_it_is_trusted(folder: Path, name: str) -> None:
    (folder / name).write_bytes(b"code")
    with pytest.raises(RegistryError, match=rf"holds {name}, .*--trust"):
        make_registration_event(str(folder), "generator")
    assert make_registration_event(str(folder), "generator", trust=True).trusted


def test_a_generator_that_no_runner_opens_is_rejected(folder: Path) -> None:
    checkpoint = folder / "old.ckpt"
    checkpoint.write_bytes(b"weights")
    with pytest.raises(RegistryError, match=r"one \.safetensors file"):
        make_registration_event(str(checkpoint), "generator", trust=True)
    assert make_registration_event(str(checkpoint), "gan-upscaler", trust=True).trusted


def test_what_the_hub_notes_of_its_downloads_is_no_part_of_a_model(folder: Path) -> None:
    notes = folder / ".cache" / "huggingface" / "download"
    notes.mkdir(parents=True)
    (notes / "index.json.metadata").touch()
    (folder / ".cache" / "mine.json").touch()
    assert [file.path for file in hash_model_files(folder)] == [
        ".cache/mine.json",
        "index.json",
        "unet/weights.safetensors",
    ]


async def test_a_model_is_registered_and_enabled_in_one_commit(
    store: Store, registry: ModelRegistry, folder: Path
) -> None:
    model = await added(registry, folder, name="C", version="2")
    assert await store.codes(model.model_id) == ["model.registered", "model.enabled"]
    assert (model.name, model.version, model.available) == ("C", "2", True)
    assert (model.local_path, model.source_uri) == (str(folder), folder.as_uri())
    assert {one.category for one in await store.log.read_stream(model.model_id)} == {"model"}


async def test_the_same_files_in_the_same_place_are_the_same_model(registry: ModelRegistry, folder: Path) -> None:
    """Given other files or another kind, it is another one."""
    model = await added(registry, folder)
    again, new = await registry.add(make_registration_event(str(folder), "generator", name="other"))
    assert (again, new) == (model, False)
    assert (await registry.add(make_registration_event(str(folder), "gan-upscaler")))[1]
    (folder / "index.json").write_bytes(b"[]")
    await added(registry, folder)
    assert len(await registry.all()) == 3


async def test_trust_reaches_the_engine_and_makes_another_model(registry: ModelRegistry, folder: Path) -> None:
    model = await added(registry, folder)
    assert (model.trusted, model_ref(model).trusted) == (False, False)
    trusted = await added(registry, folder, trust=True)
    assert (trusted.trusted, model_ref(trusted).trusted) == (True, True)


async def test_of_two_who_add_one_model_at_once_one_registers_it(store: Store, folder: Path) -> None:
    wanted = make_registration_event(str(folder), "generator")
    found = await asyncio.gather(*(ModelRegistry(store.log, f"{n}").add(wanted) for n in range(4)))
    assert sorted(new for _, new in found) == [False, False, False, True]
    assert len({model.model_id for model, _ in found}) == 1


def test_links_in_a_circle_are_named(folder: Path) -> None:
    """Given a link to itself, in a model or in its place, then it is rejected in a sentence."""
    loop = folder / "loop"
    loop.symlink_to(loop)
    for source in (folder, loop):
        with pytest.raises(RegistryError, match=r"loop|no such"):
            make_registration_event(str(source), "generator")


async def test_enabling_and_disabling_twice_is_one_event_each(
    store: Store, registry: ModelRegistry, folder: Path
) -> None:
    model, _ = await registry.add(make_registration_event(str(folder), "generator"), enabled=False)
    changes = (registry.enable, registry.enable, registry.disable, registry.disable)
    assert [(await change(model.model_id))[1] for change in changes] == [True, False, True, False]
    assert await store.codes(model.model_id) == ["model.registered", "model.enabled", "model.disabled"]


async def test_a_damaged_model_is_not_installed_until_it_is_whole_again(registry: ModelRegistry, folder: Path) -> None:
    model = await added(registry, folder)
    (folder / "index.json").write_bytes(b"[]")
    (folder / "unet" / "weights.safetensors").rename(folder / "unet" / "moved.safetensors")
    damaged = await registry.verify(model)
    assert damaged.problems == (
        "unet/weights.safetensors is missing",
        "index.json has changed",
        "unet/moved.safetensors is new",
    )
    assert not damaged.available
    (folder / "index.json").write_bytes(b"{}")
    (folder / "unet" / "moved.safetensors").rename(folder / "unet" / "weights.safetensors")
    assert (await registry.verify(model)).available


async def test_a_file_that_was_added_keeps_a_model_from_being_rendered_with(
    registry: ModelRegistry, folder: Path
) -> None:
    """Libraries prefer some files to those that were registered; the hub's own notes are none of them."""
    model = await added(registry, folder)
    files = ModelFilesChecker()
    files.check(model)
    notes = folder / ".cache" / "huggingface"
    notes.mkdir(parents=True)
    (notes / "notes.json").touch()
    files.check(model)
    (folder / "unet" / "weights.safetensors.index.json").touch()
    with pytest.raises(ProviderError, match=r"unet/weights\.safetensors\.index\.json is new"):
        files.check(model)


async def test_a_folder_that_went_away_is_damage(registry: ModelRegistry, folder: Path) -> None:
    model = await added(registry, folder)
    shutil.rmtree(folder)
    assert find_file_problems(model) == [f"{folder}: there is no such folder or file"]


async def test_a_change_that_another_came_before_is_decided_again(store: Store, folder: Path) -> None:
    """Given a model disabled between read and append, then disabling it adds no second event."""
    model = await added(ModelRegistry(store.log, "test"), folder)

    class ConcurrentlyChanged(Log):
        """A log in which another's append comes first, once."""

        async def commit(self, batch: Batch) -> Any:
            if len(await self.read_stream(model.model_id)) == 2:
                other = Append(stream=model.model_id, category="model", expected=2, events=(event(ModelDisabled()),))
                await super().commit(Batch(appends=[other]))
            return await super().commit(batch)

    _, new = await ModelRegistry(ConcurrentlyChanged(store.database), "late").disable(model.model_id)
    assert not new
    assert await store.codes(model.model_id) == ["model.registered", "model.enabled", "model.disabled"]


async def test_a_model_is_found_by_its_id_or_by_a_name_of_its_own(registry: ModelRegistry, folder: Path) -> None:
    model = await added(registry, folder, name="one")
    assert (await registry.find(str(model.model_id)), await registry.find("one")) == (model, model)
    with pytest.raises(NoSuchModel, match="two"):
        await registry.find("two")
    await registry.add(make_registration_event(str(folder), "gan-upscaler", name="one"))
    with pytest.raises(RegistryError, match="2 models are called one"):
        await registry.find("one")


async def test_a_job_may_be_generated_by_an_available_generator_alone(
    store: Store, registry: ModelRegistry, folder: Path
) -> None:
    models = ModelCatalogue(store.log)
    generator = await added(registry, folder)
    upscaler, _ = await registry.add(make_registration_event(str(folder), "gan-upscaler"))
    job = Append(stream=new_id(), category="job", expected=0, events=(event(job_created()),))
    await store.log.commit(Batch(appends=[job]))
    assert await models.generator(generator.model_id) == generator
    for other in (upscaler.model_id, job.stream, new_id()):
        assert await models.generator(other) is None
    await registry.disable(generator.model_id)
    assert await models.generator(generator.model_id) is None
    assert [model.model_id for model in await models.all()] == [generator.model_id, upscaler.model_id]


async def test_subscriptions_pass_over_models(store: Store, registry: ModelRegistry, folder: Path) -> None:
    """Their events have no reaction and no row, and stop nobody."""
    model = await added(registry, folder)
    handlers: list[Handler] = [Orchestrator(store.log, store.committer, "test"), Projector(store.database)]
    for handler in handlers:
        subscription = Subscription(store.log, store.notifier, handler, codec.is_known)
        assert not await subscription.poll_once()
        assert [cursor.failure for cursor in subscription.cursors.values() if cursor.failure] == []
        assert sum(cursor.handled_position for cursor in subscription.cursors.values()) == model.stream_version


async def test_models_are_read_past_all_jobs(db_url: str) -> None:
    """By the partial index, since `Log.read_category` names the category by a constant."""
    connection = await connect(db_url)
    await connection.execute("set enable_seqscan = off")
    query = CATEGORY_EVENTS_SQL.format(columns="*", category="model")
    plan = "\n".join(row[0] for row in await connection.fetch(f"explain {query}"))
    await connection.close()
    assert "Index Scan using envelopes_to_4194304_category_stream_id_version_idx" in plan, plan
    assert "Sort" not in plan, plan
