"""The service's login can append and read; neither it nor a bug of its can change or remove what happened."""

import asyncpg
import pytest

from dreamforge.backends import replace_url_login
from eventstore.database import Database
from eventstore.errors import DatabaseAccessDenied
from eventstore.ids import new_id
from eventstore.log import Append, Batch, Log, Send
from eventstore.outbox import Outbox
from orchestrator import step_command
from orchestrator.events import KeyCreated
from orchestrator.step_command import StepCommand
from tests.kit import SERVICE_LOGIN, connect, event, some_append


class LaterCommand(StepCommand, frozen=True, kw_only=True):
    """A command of a later release, which knows another kind of step."""

    def __post_init__(self) -> None:
        return


FORBIDDEN = [
    "update eventstore.events set code = 'x'",
    "delete from eventstore.events",
    "update eventstore.envelopes set code = 'x'",
    "delete from eventstore.envelopes",
    "truncate eventstore.envelopes",
    "insert into eventstore.envelopes select * from eventstore.envelopes",
    "delete from eventstore.envelopes_to_4194304",
    "truncate eventstore.envelopes_to_4194304",
    "drop table eventstore.envelopes_to_4194304",
    "select eventstore.add_leaves(9999999)",
    "update eventstore.private set text = null, salt = null",
    "delete from eventstore.private",
    "truncate eventstore.private",
    "insert into eventstore.private select * from eventstore.private",
    "select eventstore.erase('018f0000-0000-7000-8000-000000000001')",
    "alter table eventstore.envelopes disable trigger all",
    "drop table eventstore.envelopes",
    "drop view eventstore.events",
    "create or replace function eventstore.refuse_change() returns trigger language sql as 'select null'",
    "update eventstore.checkpoints set position = 0",
    "update eventstore.log set log_id = gen_random_uuid()",
    "update eventstore.secrets set secret = ''",
    "delete from readmodel.jobs",
    "delete from pgmq.q_generate",
    "set session_replication_role = replica",
    "set role dreamforge",
]


@pytest.mark.parametrize("statement", FORBIDDEN)
async def test_the_service_can_do_nothing_but_its_work(db_url: str, statement: str) -> None:
    """Given the service's own login, then every way round the one way in is closed."""
    owner = Database(db_url)
    await Log(owner).commit(Batch(appends=[some_append()]))
    await owner.close()
    connection = await connect(replace_url_login(db_url, *SERVICE_LOGIN))
    with pytest.raises((asyncpg.InsufficientPrivilegeError, asyncpg.InvalidParameterValueError)):
        await connection.execute(statement)
    await connection.close()


async def test_the_projectors_function_writes_into_the_read_model_alone(db_url: str) -> None:
    """Given tables of the service's own, then what runs with the owner's rights does not touch them."""
    owner = await connect(db_url)
    await owner.execute("select eventstore.subscribe('readmodel')")
    await owner.close()
    connection = await connect(replace_url_login(db_url, *SERVICE_LOGIN))
    await connection.execute("create temp table jobs (job_id uuid)")
    for schema in ("pg_temp", "readmodel_before", "eventstore"):
        with pytest.raises(asyncpg.PostgresError, match="there is no read model"):
            await connection.fetch("select projector.project($1, 1, null, '[]', '[]', '[]', '[]')", schema)
    await connection.close()


async def test_the_service_needs_no_more_than_it_has(db_url: str) -> None:
    """Append, send, claim, extend, settle, archive: all with the service's login."""
    database = Database(replace_url_login(db_url, *SERVICE_LOGIN))
    log, outbox = Log(database), Outbox(database, ["generate"], step_command.decode)
    one = some_append()
    command = StepCommand(job_id=one.stream, step_id=new_id(), step="generate", version=1)
    unreadable = LaterCommand(job_id=one.stream, step_id=new_id(), step="nothing", version=1)
    sends = [Send(stream=one.stream, queue="generate", message=message) for message in (command, unreadable)]
    await log.subscribe("orchestrator")
    await log.commit(Batch(appends=[one], sends=sends))
    [claim] = await outbox.claim(2, 60)
    assert await outbox.extend([claim], 60) == []
    await log.commit(Batch(acks=[claim.ack()]))
    assert await outbox.claim(2, 60) == []
    assert len(await log.read_stream(one.stream)) == 1
    await database.close()


async def test_the_service_can_make_no_key(db_url: str) -> None:
    """Given the service's login, then an append to a key's stream is rejected, and the owner's is not."""
    key = KeyCreated(name="mine", scopes=["jobs", "audit", "admin"], digest="0" * 64)
    made = Append(stream=new_id(), expected=0, events=(event(key),), category="key", tenant="acme")
    service, owner = Database(replace_url_login(db_url, *SERVICE_LOGIN)), Database(db_url)
    with pytest.raises(DatabaseAccessDenied, match="owner"):
        await Log(service).commit(Batch(appends=[some_append(), made]))
    assert await Log(service).read_category("key") == {}
    await Log(owner).commit(Batch(appends=[made]))
    await service.close()
    await owner.close()


async def test_a_login_without_rights_is_told_what_it_lacks(db_url: str) -> None:
    """Given a login that was granted nothing, then the message names the role and the command."""
    owner = await connect(db_url)
    await owner.execute("create role df_test_stranger login password 'x'")
    database = Database(replace_url_login(db_url, "df_test_stranger", "x"))
    try:
        with pytest.raises(DatabaseAccessDenied, match="dreamforge_service"):
            await Log(database).read_head()
    finally:
        await database.close()
        await owner.execute("drop role df_test_stranger")
        await owner.close()
