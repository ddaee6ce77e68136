"""The event store serves another application: a bank, with accounts and transfers and no image job anywhere."""

import re
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from uuid import UUID

import msgspec
import pytest

import eventstore
from eventstore import schema
from eventstore.committer import Committer, Transition
from eventstore.database import Database
from eventstore.errors import EventRejected
from eventstore.events import NewEvent, RecordedEvent
from eventstore.ids import new_id
from eventstore.integrity import bundle
from eventstore.integrity.bundle import BundleHeader, BundleWriter
from eventstore.integrity.reader import AuditReader
from eventstore.integrity.verifier import Verifier
from eventstore.log import Append, Batch, CheckpointMove, CheckpointMoveOutcome, Log, Send
from eventstore.notifier import Notifier
from eventstore.outbox import Outbox
from eventstore.subscription import Subscription
from tests.kit import connect

KNOWN = {"account.opened", "money.deposited", "transfer.ordered"}
SOURCES = sorted(Path(eventstore.__file__).parent.rglob("*.py")) + sorted(
    Path(eventstore.__file__).parent.glob("*.sql")
)


class Transfer(msgspec.Struct, frozen=True, kw_only=True):
    """A command: move money from an account."""

    account: UUID
    amount: int

    @property
    def stream(self) -> UUID:
        """The account's stream."""
        return self.account


@dataclass
class Bank:
    """The store of a database that holds nothing else."""

    database: Database
    log: Log = field(init=False)
    notifier: Notifier = field(init=False)
    committer: Committer = field(init=False)

    def __post_init__(self) -> None:
        self.log = Log(self.database)
        self.notifier = Notifier(self.database)
        self.committer = Committer(self.log, self.notifier)

    def outbox(self) -> Outbox[Transfer]:
        """A claimer of transfers."""
        return Outbox(self.database, ["transfers"], msgspec.json.Decoder(Transfer).decode)


class Clearing:
    """A handler that sends a command for each ordered transfer, in the commit that moves its checkpoint."""

    name = "clearing"

    def __init__(self, log: Log) -> None:
        self._log = log

    async def handle(
        self, events: Sequence[RecordedEvent], moves: Sequence[CheckpointMove]
    ) -> Mapping[int, CheckpointMoveOutcome] | None:
        sends = [
            Send(stream=one.stream_id, queue="transfers", message=Transfer(account=one.stream_id, amount=amount(one)))
            for one in events
            if one.code == "transfer.ordered"
        ]
        return (await self._log.commit(Batch(sends=sends, moves=moves))).moves

    async def commit_moves(self, moves: Sequence[CheckpointMove]) -> Mapping[int, CheckpointMoveOutcome]:
        return (await self._log.commit(Batch(moves=moves))).moves

    async def quarantine(self, rejected: EventRejected) -> bool:
        raise AssertionError(rejected)


@pytest.fixture
async def bank(empty_url: str) -> AsyncIterator[Bank]:
    """The store's SQL alone, with one queue."""
    database = Database(empty_url)
    assert await schema.install(database)
    await schema.check_release(database)
    await database.execute_once("select eventstore.create_queue('transfers')")
    bank = Bank(database)
    yield bank
    await bank.committer.stop()
    await database.close()


def entry(code: str, cents: int, owner: str | None = None) -> NewEvent:
    """An event of an account."""
    return NewEvent(
        event_id=new_id(),
        code=code,
        schema_version=1,
        ts=datetime.now(UTC),
        data=f'{{"amount":{cents}}}',
        meta="{}",
        private=owner,
    )


def amount(event: RecordedEvent) -> int:
    """The cents that an event is about."""
    return int(msgspec.json.decode(event.data)["amount"])


def at(account: UUID, expected: int, *events: NewEvent) -> Append:
    """An append to an account."""
    return Append(stream=account, category="account", expected=expected, events=events)


async def opened(bank: Bank, account: UUID) -> None:
    """An account with ten euros, two of which are to be transferred."""
    events = (entry("account.opened", 0, "Ada Byron"), entry("money.deposited", 1000), entry("transfer.ordered", 200))
    answer = await bank.committer.commit(Transition(append=at(account, 0, *events)))
    assert (answer.verdict, answer.version) == ("accepted", 3)


async def test_an_account_is_committed_under_its_expected_version(bank: Bank) -> None:
    """Given a second opening, then it conflicts; the same one again is recognised; the balance can be folded."""
    account = new_id()
    await opened(bank, account)
    deposit = at(account, 3, entry("money.deposited", 50))
    answers = [(await bank.log.commit(Batch(appends=[deposit]))).streams[account].verdict for _ in range(2)]
    assert answers == ["accepted", "already_committed"]
    late = await bank.log.commit(Batch(appends=[at(account, 0, entry("account.opened", 0))]))
    assert (late.streams[account].verdict, late.streams[account].version) == ("conflict", 4)
    [history] = (await bank.log.read_category("account")).values()
    assert sum(amount(one) for one in history if one.code == "money.deposited") == 1050


async def test_a_subscription_sends_each_transfer_once(bank: Bank) -> None:
    """Given two processes of one subscription, then one command is sent, claimed, extended and acknowledged."""
    account = new_id()
    await opened(bank, account)
    for _ in range(2):
        await Subscription(bank.log, bank.notifier, Clearing(bank.log), lambda code, _: code in KNOWN).poll_once()
    outbox = bank.outbox()
    [claim] = await outbox.claim(5, 60)
    assert claim.command == Transfer(account=account, amount=200)
    assert await outbox.claim(5, 60) == []
    assert await outbox.extend([claim], 60) == []
    settled = Transition(append=at(account, 3, entry("money.deposited", -200)), settle=claim.ack())
    assert (await bank.committer.commit(settled)).committed
    assert await bank.database.read("select * from eventstore.queue_lengths()") == [("transfers", 0)]


async def test_a_subscription_stops_before_what_the_bank_does_not_know(bank: Bank) -> None:
    """Given an event of a later release of the bank, then it is not passed."""
    account = new_id()
    await opened(bank, account)
    await bank.log.commit(Batch(appends=[at(account, 3, entry("account.frozen", 0), entry("money.deposited", 1))]))
    subscription = Subscription(bank.log, bank.notifier, Clearing(bank.log), lambda code, _: code in KNOWN)
    await subscription.poll_once()
    assert max((await bank.log.checkpoints("clearing")).values()) == 3


async def test_a_bank_is_verified_and_exported(bank: Bank, empty_url: str) -> None:
    """Given a history, then it verifies in the database and from a file; a forged amount is found in both."""
    account = new_id()
    await opened(bank, account)
    assert await violations(bank) == []
    report = bundle.verify_bundle(await exported(bank, account))
    assert (report.flaws, report.events) == ([], 3)
    assert b"Ada Byron" not in b"".join(await exported(bank, account))

    connection = await connect(empty_url)
    await connection.execute("alter table eventstore.envelopes disable trigger append_only_rows")
    await connection.execute("""update eventstore.events set data = '{"amount":9000}' where version = 2""")
    await connection.close()
    assert [flaw.split(" (")[0] for flaw in await violations(bank)] == ["envelope"]
    assert len(bundle.verify_bundle(await exported(bank, account)).flaws) == 1


async def violations(bank: Bank) -> list[str]:
    """The fields in which the whole log violates its chains."""
    reader = AuditReader(bank.database)
    verifier = Verifier(await reader.read_log_identity(), whole=True)
    found = [
        violation
        for partition in await reader.nonempty_partitions()
        async for page in reader.read_pages(partition)
        for event in page
        for violation in verifier.check_event(event)
    ]
    return [violation.field for violation in [*found, *verifier.take_open_violations()]]


async def exported(bank: Bank, account: UUID) -> list[bytes]:
    """The lines of a bundle of one account, without private text."""
    reader = AuditReader(bank.database)
    header = BundleHeader(
        log=await reader.read_log_identity(), exported_at=datetime.now(UTC), stream=account, since=None, private=False
    )
    writer = BundleWriter(header)
    return [writer.header_line(), *map(writer.event_line, await reader.read_stream(account)), writer.end_line()]


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.name)
def test_the_store_knows_no_application(source: Path) -> None:
    """Neither its code nor its SQL names what Dream Forge stores; `job` is a member of a published file format."""
    text = source.read_text("utf-8").replace('name="job"', "")
    words = r"\b(?:jobs?|images?|generate|upscale|artifacts?|diffusion|prompts?|gpu|api keys?)\b"
    assert re.findall(words, text, re.IGNORECASE) == []
    assert not re.search(
        r"^\s*(?:from|import) (?:api|artifacts|dreamforge|model_registry|orchestrator|projections|runners)\b",
        text,
        re.MULTILINE,
    )
