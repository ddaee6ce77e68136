"""A further kind of step is one entry of the table: a chain of three steps runs without other code."""

from collections.abc import AsyncIterator
from typing import Any

import pytest
from msgspec import Struct
from msgspec.structs import replace
from PIL import Image, ImageFilter
from prometheus_client import REGISTRY

from artifacts.encoding import image_size
from artifacts.lineage import LaterStepInputs, read_lineage
from artifacts.object_store import ObjectStore, S3Config
from eventstore.errors import UndecodableEvent
from eventstore.ids import new_id
from eventstore.log import Append, Batch
from eventstore.outbox import Outbox
from eventstore.subscription import Subscription
from orchestrator import codec, step_command
from orchestrator.events import DomainEvent, PersonalText, PlannedStep
from orchestrator.process_manager import Orchestrator
from orchestrator.reconciler import OutboxReconciler
from orchestrator.service import JobService
from orchestrator.step_command import StepCommand
from orchestrator.step_kinds import STEP_KINDS, ImageSize, StepKind
from projections.job_view import JobView, fold_history
from projections.progress import Stage, job_progress
from runners import metrics
from runners.engines.protocol import ModelRef, Work
from runners.fake_renderer import FakeRenderer
from runners.faults import FaultPlan
from runners.item_renderer import ItemRenderer
from runners.selection import ModelChoices, SelectedEngine
from runners.steps import RetryPolicy, StepRunner
from runners.threads import UnboundedThreadExecutor
from runners.worker import StepItem
from tests.kit import Store, connect, event, eventually, job_created

SIZES = {"generate": (64, 48), "upscale": (128, 96), "sharpen": (120, 88)}
COUNT = 2


class SharpenParams(Struct, frozen=True, kw_only=True):
    """Sharpen, and cut the frame off."""

    percent: int
    margin: int = 4


class SharpenWorker:
    """Sharpens with Pillow."""

    async def select(self, selection: ModelChoices, parameters: SharpenParams) -> SelectedEngine:
        """Nothing to choose from."""
        del selection, parameters
        return SelectedEngine(engine="pillow", source="fake")

    def render(self, item: StepItem) -> Image.Image:
        """Sharpen the image of the step before, without its frame."""
        parameters: SharpenParams = item.parameters
        width, height = item.source.size
        inner = (parameters.margin, parameters.margin, width - parameters.margin, height - parameters.margin)
        return item.source.filter(ImageFilter.UnsharpMask(percent=parameters.percent)).crop(inner)

    def build_request(self, model: ModelRef, item: StepItem, previous_rendering: Any = None) -> Work:
        """No model can do it."""
        raise NotImplementedError


def sharpened(parameters: SharpenParams, before: ImageSize) -> ImageSize:
    return before[0] - 2 * parameters.margin, before[1] - 2 * parameters.margin


SHARPEN = StepKind(
    name="sharpen",
    request_type=SharpenParams,
    recorded_type=SharpenParams,
    shown_parameters=("percent",),
    weight=1.0,
    output_size=sharpened,
    worker=f"{__name__}:SharpenWorker",
)


class Chain:
    """One job of three steps, and what runs it."""

    def __init__(self, store: Store, objects: ObjectStore) -> None:
        self._store = store
        self._subscription = Subscription(
            store.log, store.notifier, Orchestrator(store.log, store.committer, "test"), codec.is_known
        )
        self._outbox = Outbox(store.database, list(reversed(STEP_KINDS)), step_command.decode)
        self._runner = StepRunner(
            JobService(store.log, store.committer, "r"),
            objects,
            ItemRenderer(FakeRenderer(faults=FaultPlan(), max_pixels=1_000_000), UnboundedThreadExecutor()),
            retry=RetryPolicy(max_attempts=1, first_delay_s=0, longest_delay_s=0),
            name="r",
        )
        chained = job_created(scale=2, width=64, height=48, count=COUNT)
        third = PlannedStep(step_id=new_id(), name="sharpen", params={"percent": 150})
        self.created = replace(chained, steps=[*chained.steps, third])
        self.job_id = new_id()
        self.claimed: list[StepCommand] = []

    async def submit(self) -> None:
        """Create the job."""
        created = event(self.created, private=PersonalText(prompt="a castle"))
        first = Append(stream=self.job_id, category="job", expected=0, events=(created,))
        await self._store.log.subscribe(Orchestrator.name)
        await self._store.log.commit(Batch(appends=[first]))

    async def run(self) -> None:
        """Run the job to its end with the real process manager, outbox and step runner."""

        async def ended() -> bool:
            await self._run_next()
            return (await self._store.state(self.job_id)).outcome is not None

        await eventually(ended, what="the job's end")

    async def run_up_to(self, step: str) -> None:
        """Run the steps before one, until its command is sent."""

        async def sent() -> bool:
            await self._run_next()
            await self._subscription.poll_once()
            return bool(await self._store.database.read(f"select from pgmq.q_{step}"))

        await eventually(sent, what="the command")

    async def _run_next(self) -> None:
        await self._subscription.poll_once()
        for claim in await self._outbox.claim(1, 60):
            self.claimed.append(claim.command)
            await self._runner.run(claim)

    async def history(self) -> list[DomainEvent]:
        """The job's events."""
        return [
            body
            for one in await self._store.log.read_stream(self.job_id)
            if (body := codec.decode_body(one)) is not None
        ]

    async def view(self) -> JobView:
        """The job as its users see it."""
        view = fold_history(await self._store.log.read_stream(self.job_id))
        assert view is not None
        return view


@pytest.fixture
async def objects(s3_config: S3Config) -> AsyncIterator[ObjectStore]:
    """The bucket."""
    opened = ObjectStore(s3_config)
    yield opened
    await opened.close()


@pytest.fixture
async def chain(
    store: Store, db_url: str, objects: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Chain]:
    """A job of three steps, where the third kind of step has its entry in the table, and its queue."""
    monkeypatch.setitem(STEP_KINDS, SHARPEN.name, SHARPEN)
    await execute(db_url, "select eventstore.create_queue('sharpen')")
    made = Chain(store, objects)
    await made.submit()
    yield made
    for counters in (
        metrics.STEPS_STARTED,
        metrics.STEPS_SUCCEEDED,
        metrics.STEPS_FAILED,
    ):  # those of the process, for other tests
        if (counter := counters.pop(SHARPEN.name, None)) is not None:
            REGISTRY.unregister(counter)


async def execute(url: str, statement: str) -> None:
    """Run a statement as the database's owner."""
    owner = await connect(url)
    await owner.execute(statement)
    await owner.close()


async def test_each_step_writes_its_images_in_its_size_and_with_their_sources(
    chain: Chain, objects: ObjectStore
) -> None:
    """Given two items and three steps, then there are six images; each file of the last names its whole way."""
    await chain.run()
    view = await chain.view()
    assert (view.status, view.completed) == ("succeeded", COUNT)
    names = {step.step_id: step.name for step in view.steps}
    written = {(names[one.step_id], one.item_index): one for one in view.artifacts}
    assert written.keys() == {(name, item) for name in SIZES for item in range(COUNT)}
    assert all((one.width, one.height) == SIZES[name] for (name, _), one in written.items())
    for item in range(COUNT):
        body = await objects.get(written["sharpen", item].s3_key)
        found = read_lineage(body)
        assert found is not None
        assert found.upscale is not None
        assert found.upscale.parent_sha256 == written["generate", item].sha256
        third = LaterStepInputs(
            step="sharpen",
            params={"percent": 150, "margin": 4},
            size=SIZES["sharpen"],
            parent_sha256=written["upscale", item].sha256,
            rendering=None,
        )
        assert (found.later, found.size, found.last) == ([third], image_size(body), ("sharpen", None))


async def test_each_command_follows_the_end_of_the_step_before(chain: Chain) -> None:
    """Given the version that each command was decided at, then the event there is what the command waited for."""
    await chain.run()
    history = await chain.history()
    assert [command.step for command in chain.claimed] == list(SIZES)
    waited = [history[command.version - 1] for command in chain.claimed]
    assert [(body.code, body.step) for body in waited] == [
        ("job.created", None),
        ("step.finish", "generate"),
        ("step.finish", "upscale"),
    ]


async def test_a_third_step_has_its_share_of_the_progress(chain: Chain) -> None:
    """By its weight in the table; and its parameters are shown as the table says."""
    await chain.run()
    view = await chain.view()
    whole = job_progress(view, per_step=True)
    assert (whole.progress, whole.per_step) == (1.0, dict.fromkeys(SIZES, 1.0))
    assert whole.stages == [Stage("generate", 0.25), Stage("upscale", 0.25), Stage("sharpen", 0.5)]
    before = replace(view, steps=(*view.steps[:2], replace(view.steps[2], completed=1)))
    assert job_progress(before).progress == 0.75
    assert view.steps[2].metadata == {"percent": 150}
    assert view.params["chain"]["sharpen"] == {"percent": 150, "margin": 4}


async def test_a_lost_command_of_a_third_step_is_sent_again(chain: Chain, store: Store, db_url: str) -> None:
    """Given its queue emptied, then the reconciler finds the command missing, and the job goes on after a rebuild."""
    await chain.run_up_to("sharpen")
    await execute(db_url, "delete from pgmq.q_sharpen")
    reconciler = OutboxReconciler(store.database, "operator")
    assert {queue.queue: queue.missing for queue in await reconciler.queue_statuses()} == dict.fromkeys(SIZES, 0) | {
        "sharpen": 1
    }
    assert [one.step for one in await reconciler.rebuild(0)] == ["sharpen"]
    await chain.run()
    assert (await chain.view()).status == "succeeded"


async def test_a_process_that_does_not_know_the_kind_rejects_the_job(
    chain: Chain, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Given a release without its entry in the table, then the job's first event can't be decoded."""
    monkeypatch.delitem(STEP_KINDS, SHARPEN.name)
    [created] = await store.log.read_stream(chain.job_id)
    with pytest.raises(UndecodableEvent, match="unknown kind of step 'sharpen'"):
        codec.decode_event(created)
