"""Breaks each invariant on purpose, in a copy of the tree, and expects the test that protects it to fail.

`make mutants` runs all; `python scripts/mutants.py NAME …` some, by the beginning of their names. Exits 1 if a mutant
survives.
"""

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent


class Mutant(NamedTuple):
    """An invariant, the edits that break it, and the tests that must notice.

    more: further edits, as path, old and new text, where one is not enough.
    """

    name: str
    path: str
    old: str
    new: str
    tests: str
    more: tuple[tuple[str, str, str], ...] = ()

    def edits(self) -> tuple[tuple[str, str, str], ...]:
        """All of its edits: path, old and new text."""
        return ((self.path, self.old, self.new), *self.more)


MUTANTS = (
    Mutant(
        "1-append-only",
        "eventstore/store.sql",
        "    raise exception 'events are append-only: % refused', tg_op using errcode = 'DF001';",
        "    return coalesce(new, old);",
        "tests/store/test_append_only.py",
    ),
    Mutant(
        "1-erasure-leaves-the-text",
        "eventstore/store.sql",
        "delete from eventstore.private where stream_id = stream returning 1",
        "select 1 from eventstore.private where stream_id = stream",
        "tests/store/test_append_only.py -k erasure",
    ),
    Mutant(
        "1-anyone-erases",
        "eventstore/store.sql",
        "for each row when (current_setting('eventstore.erasing', true) is distinct from 'yes')",
        "for each row when (false)",
        "tests/store/test_append_only.py -k removed",
    ),
    Mutant(
        "1-a-later-leaf-is-truncated",
        "eventstore/store.sql",
        "'alter table eventstore.%I enable always trigger append_only_table'",
        "'alter table eventstore.%I disable trigger append_only_table'",
        "tests/store/test_leaves.py -k guards",
    ),
    Mutant(
        "1-text-stays-in-migrated-rows",
        "dreamforge/migrations/0006.sql",
        "set private = null, private_salt = null",
        "set private_salt = null",
        "tests/store/test_migration.py -k personal_text",
    ),
    Mutant(
        "1-text-appended-during-the-migration-is-lost",
        "dreamforge/migrations/0006.sql",
        "format('old.partition = %s and old.position > %s', p, heads[p + 1])",
        "format('old.partition = %s and old.position < 0', p)",
        "tests/store/test_migration.py -k in_progress",
    ),
    Mutant(
        "2-expected-version-ignored",
        "eventstore/store.sql",
        "when coalesce(h.version, 0) = x.expected then 'accepted'",
        "when coalesce(h.version, 0) >= x.expected then 'accepted'",
        "tests/store/test_commit.py -k exactly_one_wins",
    ),
    Mutant(
        "3-lost-answer-not-recognised",
        "eventstore/store.sql",
        ") then 'mine'",
        ") then 'conflict'",
        "tests/store/test_commit.py -k lost",
    ),
    Mutant(
        "3-one-conflict-spoils-all",
        "eventstore/store.sql",
        "        if subscribed then\n            spoilt := spoilt || array(",
        "        if 'conflict' = any (outcomes) then\n            raise exception 'conflict';\n        end if;\n"
        "        if subscribed then\n            spoilt := spoilt || array(",
        "tests/store/test_commit.py -k does_not_spoil",
    ),
    Mutant(
        "3-refusal-leaves-the-partition-be",
        "eventstore/store.sql",
        "from unnest(parts, outcomes) as x (part, outcome) where x.outcome <> 'accepted');",
        "from unnest(parts, outcomes) as x (part, outcome) where false);",
        "tests/store/test_commit.py tests/store/test_subscription.py -k 'one_rejection or cancel_that_came_first'",
    ),
    Mutant(
        "3-isolation-not-checked",
        "eventstore/store.sql",
        "if current_setting('transaction_isolation') <> 'read committed' then",
        "if false then",
        "tests/store/test_commit.py -k isolation",
    ),
    Mutant(
        "3-transaction-held-open-by-the-client",
        "eventstore/database.py",
        "                    rows: list[asyncpg.Record] = await connection.fetch(sql, *args)",
        "                    async with connection.transaction():\n"
        "                        rows = await connection.fetch(sql, *args)\n"
        "                        await asyncio.sleep(0.02)",
        "tests/store/test_commit.py -k frozen",
    ),
    Mutant(
        "4-a-new-leaf-is-not-seen",
        "eventstore/store.sql",
        "        lock table only eventstore.envelopes in row exclusive mode;",
        "        null;",
        "tests/store/test_leaves.py -k just_added",
    ),
    Mutant(
        "4-a-leaf-is-waited-for",
        "eventstore/store.sql",
        "in share update exclusive mode nowait;",
        "in share update exclusive mode;",
        "tests/store/test_leaves.py -k added_ahead",
    ),
    Mutant(
        "4-a-leaf-is-not-waited-for",
        "eventstore/store.sql",
        "            if head < the_log.leaf_end then",
        "            if true then",
        "tests/store/test_leaves.py -k without_a_leaf",
    ),
    Mutant(
        "4-a-leaf-is-scanned",
        "eventstore/log.py",
        "select position, chain from eventstore.events where partition = p order by position desc limit 1",
        "select position, chain from eventstore.events where partition = p order by position + 0 desc limit 1",
        "tests/store/test_schema.py -k indexes",
    ),
    Mutant(
        "4-no-lock",
        "eventstore/store.sql",
        "            perform pg_advisory_xact_lock(lock_class, p);",
        "            null;",
        "tests/store/test_readers.py -k 'late or concurrent'",
    ),
    Mutant(
        "4-order-by-transaction-id",
        "eventstore/log.py",
        "where partition = c.of_partition and position > c.after order by position limit (select $3::bigint)\n"
        ") as e\norder by e.partition, e.position",
        "where partition = c.of_partition and position > c.after order by (\n"
        "select x.xmin::text::bigint from eventstore.envelopes x\n"
        "where x.partition = events.partition and x.position = events.position), position limit (select $3::bigint)\n"
        ") as e\norder by e.partition",
        "tests/store/test_readers.py -k early",
    ),
    Mutant(
        "4-wait-for-the-oldest-transaction",
        "eventstore/log.py",
        "where partition = c.of_partition and position > c.after order by",
        "where partition = c.of_partition and position > c.after\n"
        "        and xmin::text::bigint < pg_snapshot_xmin(pg_current_snapshot())::text::bigint order by",
        "tests/store/test_readers.py -k elsewhere",
    ),
    Mutant(
        "4-gap-not-noticed",
        "eventstore/log.py",
        "        if event.position != position:",
        "        if event.position < position:",
        "tests/store/test_subscription.py -k removed",
    ),
    Mutant(
        "4-checkpoint-not-compared",
        "eventstore/store.sql",
        ' and c.position = m."from"\n        for update;',
        "\n        for update;",
        "tests/store/test_commit.py tests/store/test_subscription.py -k 'another_moved or competing'",
    ),
    Mutant(
        "5-data-not-hashed",
        "eventstore/store.sql",
        "    data     bytea := convert_to(e.data::text, 'UTF8');",
        "    data     bytea := '';",
        "tests/store/test_hash_chain.py",
    ),
    Mutant(
        "5-chain-without-clock",
        "eventstore/store.sql",
        '    select sha256(previous || int8send("position") || eventstore.micros(recorded_at) || hash)',
        '    select sha256(previous || int8send("position") || hash)',
        "tests/store/test_hash_chain.py",
    ),
    Mutant(
        "6-unknown-events-skipped",
        "eventstore/subscription.py",
        "            if not self._is_known(event.code, event.schema_version):",
        "            if False:",
        "tests/store/test_subscription.py -k does_not_know",
    ),
    Mutant(
        "ring-with-a-gap",
        "eventstore/tailer.py",
        "    expect_gapless(partition, end.position, events)\n    if end",
        "    if end",
        "tests/store/test_tailer.py",
    ),
    Mutant(
        "cursor-of-a-lost-future",
        "api/cursors.py",
        "return self.position == 0 or (chain is not None and chain.startswith(self.chain_prefix))",
        "return self.position == 0 or chain is not None",
        "tests/unit/test_cursors.py tests/http/test_events.py",
    ),
    Mutant(
        "repeated-request-not-compared",
        "api/job_commands.py",
        "if not isinstance(created, JobCreated) or created.idempotency != idempotency:",
        "if not isinstance(created, JobCreated):",
        "tests/http/test_idempotency.py",
    ),
    Mutant(
        "fence-by-version-only",
        "orchestrator/decisions.py",
        " or step.attempt != attempt:\n",
        ":\n",
        "tests/store/test_subscription.py tests/unit/test_decisions.py -k 'zombie or older_attempt'",
    ),
    Mutant(
        "start-not-fenced",
        "orchestrator/decisions.py",
        "    if step.attempt != claimed_attempt:",
        "    if False:",
        "tests/unit/test_decisions.py -k since_the_claim",
    ),
    Mutant(
        "claim-never-runs-out",
        "runners/steps.py",
        "        if time.monotonic() > claim.expires_at_s:",
        "        if False:",
        "tests/store/test_step_runner.py -k ran_out",
    ),
    Mutant(
        "fenced-run-keeps-its-message",
        "runners/steps.py",
        "            await self._jobs.settle(claim.ack())\n\n    async def _load_claimed_step",
        "\n    async def _load_claimed_step",
        "tests/store/test_troubled_steps.py -k fenced",
    ),
    Mutant(
        "hand-back-keeps-its-token",
        "eventstore/store.sql",
        "            update {table} q set read_ct = q.read_ct + 1, vt = ",
        "            update {table} q set vt = ",
        "tests/store/test_outbox.py -k late_heartbeat",
    ),
    Mutant(
        "owner-not-asked",
        "eventstore/store.sql",
        "as mine (msg_id, read_ct) using (msg_id, read_ct)",
        "as mine (msg_id, token) using (msg_id)",
        "tests/store/test_outbox.py -k lost_lease",
    ),
    Mutant(
        "stale-reads",
        "projections/queries.py",
        "        and e.version > coalesce((select version from kept), 0)) as tail",
        "        and e.version > coalesce((select version from kept), 0) and false) as tail",
        "tests/flow/test_fleet.py -k without_a_projector",
    ),
    Mutant(
        "another-tenants-log",
        "api/log_feed.py",
        "            event.tenant == self.tenant\n",
        "            True\n",
        "tests/http/test_access.py",
    ),
    Mutant(
        "revoked-key-opens",
        "projections/key_queries.py",
        "return key if key is not None and key.is_active else None",
        "return key",
        "tests/http/test_access.py",
    ),
    Mutant(
        "token-of-another-job",
        "api/stream_tokens.py",
        " or str(found.job_id) != job_id.lower():",
        ":",
        "tests/http/test_access.py",
    ),
    Mutant(
        "service-may-change-events",
        "eventstore/store.sql",
        "grant select on all tables in schema eventstore, pgmq to dreamforge_service;",
        "grant all on all tables in schema eventstore, pgmq to dreamforge_service;",
        "tests/store/test_rights.py",
    ),
    Mutant(
        "projector-writes-where-it-is-told",
        "schema.sql",
        "    if target not in ('readmodel', 'readmodel_shadow') then\n",
        "    if false then\n",
        "tests/store/test_rights.py -k projectors_function",
    ),
    Mutant(
        "old-rows-written-over-new-ones",
        "schema.sql",
        "        or built.build <> loaded_of\n",
        "",
        "tests/store/test_rebuild.py -k folded_on_the_old_rows",
    ),
    Mutant(
        "swap-while-it-lags",
        "schema.sql",
        "    if lag > max_lag or level and exists (",
        "    if level and exists (",
        "tests/store/test_rebuild.py -k waits_for_the_new_one",
    ),
    Mutant(
        "swap-beside-readers",
        "schema.sql",
        "    lock table readmodel.artifacts, readmodel.generation, readmodel.jobs, readmodel.steps "
        "in access exclusive mode;\n",
        "",
        "tests/store/test_rebuild.py -k waits_for_who_reads",
    ),
    Mutant(
        "what-came-meanwhile-is-lost",
        "projections/rebuild.py",
        " and position <= ($3::bigint[])[partition + 1]\n",
        " and $3::bigint[] is not null and version < 3\n",
        "tests/store/test_rebuild.py -k comes_meanwhile",
    ),
    Mutant(
        "erased-text-put-aside",
        "schema.sql",
        "    perform projector.forget_behind('readmodel');\n",
        "",
        "tests/store/test_rebuild.py -k put_aside",
    ),
    Mutant(
        "loop-embeds-the-lineage",
        "runners/item_renderer.py",
        "            return await self._run_in_thread(partial(self._render_without_model, job, step, index, source))",
        "            return self._render_without_model(job, step, index, source)",
        "tests/unit/test_item_renderer.py",
    ),
    Mutant(
        "loop-parses-pixels",
        "runners/engines/protocol.py",
        'msgspec.msgpack.encode(replace(message, pixels=b"") if pixels else message)',
        "msgspec.msgpack.encode(message)",
        "tests/store/test_batches.py -k pixels",
    ),
    Mutant(
        "loop-stalls-unmeasured",
        "dreamforge/loop_monitor.py",
        "        recent.append(max(0.0, time.monotonic() - due))",
        "        recent.append(0.0)",
        "tests/unit/test_loop_monitor.py",
    ),
    Mutant(
        "plans-artifacts-of-a-job",
        "projections/queries.py",
        "s using (step_id) where a.job_id = $1)",
        "s using (step_id) where a.job_id::text = $1::text)",
        "tests/store/test_plans.py",
    ),
    Mutant(
        "plans-claims-in-order",
        "eventstore/store.sql",
        "order by q.msg_id limit slots for update skip locked",
        "order by q.msg_id + 0 limit slots for update skip locked",
        "tests/store/test_plans.py",
    ),
    Mutant(
        "plans-list-by-its-index",
        "schema.sql",
        "create index jobs_listed on readmodel.jobs (tenant, created_at, job_id);",
        "create index jobs_listed on readmodel.jobs (tenant, job_id);",
        "tests/store/test_plans.py",
    ),
    Mutant(
        "outage-costs-attempts",
        "runners/storing.py",
        "if self._stopping.is_set() or time.monotonic() > deadline:",
        "if True:",
        "tests/store/test_troubled_steps.py",
    ),
    Mutant(
        "rebuild-sends-what-is-there",
        "orchestrator/reconciler.py",
        "return [command for command in pending_commands if str(command.step_id) not in there]",
        "return list(pending_commands)",
        "tests/store/test_reconciler.py",
    ),
    Mutant(
        "seats-without-end",
        "eventstore/store.sql",
        "from generate_series(0, seats - 1) as s",
        "from generate_series(0, 999) as s",
        "tests/store/test_wake_ups.py",
    ),
    Mutant(
        "events-wake-runners",
        "eventstore/notifier.py",
        "if not channels.isdisjoint(wake_signal.channels):",
        "if channels:",
        "tests/store/test_wake_ups.py",
        more=(
            (
                "eventstore/notifier.py",
                "if channel in wake_signal.channels and wake_signal.remote_delay_s is not None:",
                "if wake_signal.remote_delay_s is not None:",
            ),
        ),
    ),
    Mutant(
        "refusals-read-the-request",
        "api/app.py",
        "_add_outer_middleware(AdmissionGate(app, services), ",
        "_add_outer_middleware(app, ",
        "tests/http/test_limits.py -k refusal",
    ),
    Mutant(
        "retry-after-ignores-what-was-added",
        "api/admission.py",
        "fall, seconds = self._last + written - found,",
        "fall, seconds = self._last - found,",
        "tests/http/test_limits.py -k drains",
    ),
    Mutant(
        "loop-starts-threads",
        "runners/threads.py",
        "            self._idle.append(calls)\n            settle()",
        "            settle()",
        "tests/unit/test_threads.py",
    ),
    Mutant(
        "fleet-all-wake",
        "runners/consumer.py",
        "None if seat is None else seat * _SEAT_DELAY_S",
        "0.0",
        "tests/flow/test_fleet_costs.py",
    ),
    Mutant(
        "fleet-commands-wake-readers",
        "eventstore/committer.py",
        "([LOG_CHANNEL] if batch.appends else [])",
        "([LOG_CHANNEL] if batch.appends or batch.sends else [])",
        "tests/flow/test_fleet_costs.py",
    ),
    Mutant(
        "bytes-of-an-index",
        "schema.sql",
        "(category, stream_id, version) where category <> 'job';",
        "(category, stream_id, version, (data::text));",
        "tests/flow/test_bytes.py",
    ),
    Mutant(
        "everybody-listens",
        "eventstore/notifier.py",
        "            if wake_signal.remote_delay_s is not None\n            for channel",
        "            for channel",
        "tests/store/test_wake_ups.py",
    ),
    Mutant(
        "seats-outlive-their-consumers",
        "runners/consumer.py",
        "await self._outbox.forget_process()",
        "pass",
        "tests/store/test_wake_ups.py -k stops",
    ),
    Mutant(
        "full-batches-wait-for-the-poll",
        "eventstore/subscription.py",
        "return is_left or len(batch) == _BATCH_SIZE",
        "return is_left",
        "tests/store/test_subscription.py -k full_batch",
    ),
    Mutant(
        "busy-subscriptions-gather-nothing",
        "eventstore/subscription.py",
        "self._busy_gather_s if self._served_several_streams else 0.0",
        "0.0",
        "tests/store/test_subscription.py -k busy",
    ),
    Mutant(
        "sends-though-nobody-listens",
        "eventstore/notifier.py",
        "return channels & self._listened_channels",
        "return channels",
        "tests/store/test_wake_ups.py -k nobody_listens",
    ),
    Mutant(
        "sends-to-nobody-who-listens",
        "eventstore/notifier.py",
        "and pid is distinct from $2",
        "and pid is not distinct from $2",
        "tests/store/test_wake_ups.py -k nobody_listens",
    ),
    Mutant(
        "others-claim-what-is-taken",
        "runners/consumer.py",
        "self._wake_signal.takes_all = not self._commands_may_wait",
        "pass",
        "tests/store/test_wake_ups.py -k no_slot_for",
    ),
    Mutant(
        "others-hear-nothing-of-what-is-left",
        "runners/consumer.py",
        "            self._notifier.notify_others(untold | self._wake_signal.take_untold())",
        "            pass",
        "tests/store/test_wake_ups.py -k no_slot_for",
    ),
    Mutant(
        "each-free-slot-claims",
        "runners/consumer.py",
        "self._commands_may_wait = len(claims) == free_slots",
        "self._commands_may_wait = True",
        "tests/store/test_wake_ups.py -k may_wait",
    ),
    Mutant(
        "full-consumers-forget-who-waits",
        "runners/consumer.py",
        "self._commands_may_wait = len(claims) == free_slots",
        "self._commands_may_wait = 0 < len(claims) == free_slots",
        "tests/store/test_wake_ups.py -k was_woken",
    ),
    Mutant(
        "busy-committers-gather-nothing",
        "eventstore/committer.py",
        "if len(self._pending) >= self._last_size or self._stopped:",
        "if True:",
        "tests/store/test_committer.py -k waits_for_more",
    ),
    Mutant(
        "each-subscription-reads",
        "eventstore/subscription.py",
        "source or _LogReader(log, notifier)",
        "_LogReader(log, notifier)",
        "tests/store/test_subscription.py -k share_a_reader",
    ),
    Mutant(
        "subscriptions-believe-what-was-lost",
        "eventstore/subscription.py",
        "                self._source.forget()  # a failover sets a checkpoint back, too\n",
        "",
        "tests/store/test_subscription.py -k set_back",
    ),
    Mutant(
        "tailer-goes-on-in-another-log",
        "eventstore/tailer.py",
        "if end.position and event_chain(end.chain, events[0]) != events[0].chain:",
        "if False:",
        "tests/store/test_tailer.py -k set_back",
    ),
    Mutant(
        "rows-of-unknown-steps",
        "projections/rows.py",
        "expect_known_steps(*(step.name for step in self.steps))",
        "expect_known_steps()",
        "tests/unit/test_views.py -k no_kind",
    ),
    Mutant(
        "reactions-read-what-they-were-given",
        "orchestrator/process_manager.py",
        "if job_id not in undecodable_jobs and _may_follow(base, group):",
        "if False:",
        "tests/flow/test_round_trips.py",
    ),
    Mutant(
        "kept-connections-starve-who-waits",
        "eventstore/pool.py",
        "if self._waiting or connection.is_closed():",
        "if connection.is_closed():",
        "tests/store/test_pool.py",
    ),
    Mutant(
        "states-of-another-log",
        "orchestrator/state_cache.py",
        " or event_hash(entry.hash, event) != event.hash",
        "",
        "tests/store/test_state_cache.py",
    ),
    Mutant(
        "marks-folded-onto-kept-states",
        "orchestrator/process_manager.py",
        "return known and gapless and last_quarantine_mark(group) is None",
        "return known and gapless",
        "tests/store/test_state_cache.py",
    ),
    Mutant(
        "runners-read-what-they-wrote",
        "runners/steps.py",
        "self._take_recent_state(claim) or await",
        "await",
        "tests/flow/test_round_trips.py",
    ),
    Mutant(
        "posts-commit-one-by-one",
        "eventstore/committer.py",
        "_MAX_TRANSITIONS_PER_CALL = 200",
        "_MAX_TRANSITIONS_PER_CALL = 1",
        "tests/flow/test_round_trips.py -k posts",
    ),
    Mutant(
        "frames-for-each-subscriber",
        "api/frames.py",
        "@lru_cache(maxsize=_SHARED_FRAMES)\ndef job_event_frame(",
        "@lru_cache(maxsize=0)\ndef job_event_frame(",
        "tests/http/test_shared_frames.py",
    ),
    Mutant(
        "progress-for-each-subscriber",
        "api/job_feed.py",
        "        feed = self._feeds.get(job_id)\n",
        "        feed = None\n",
        "tests/http/test_shared_frames.py",
    ),
    Mutant(
        "answers-wait-for-acknowledgements",
        "dreamforge/http_server.py",
        "socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)",
        "socket.socket(family, socket.SOCK_STREAM)",
        "tests/http/test_protocol.py -k sent_at_once",
    ),
)


def killer(mutant: Mutant) -> str | None:
    """The test that fails, and why, as the invariant is broken; None if all pass."""
    with tempfile.TemporaryDirectory(prefix="mutant-") as copied:
        tree = Path(copied)
        listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
        for name in subprocess.run(listed, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\0"):
            if name and (ROOT / name).exists():
                (tree / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(ROOT / name, tree / name)
        for path, old, new in mutant.edits():
            target = tree / path
            text = target.read_text()
            if old not in text:
                sys.exit(f"{mutant.name}: {path} no longer holds {old!r}; bring the mutant up to date")
            target.write_text(text.replace(old, new))
        command = f"{sys.executable} -m pytest -q -x -p no:cacheprovider {mutant.tests}"
        done = subprocess.run(command, shell=True, cwd=tree, capture_output=True, text=True, check=False)  # noqa: S602  # our own constants
        if done.returncode not in {0, 1}:
            sys.exit(f"{mutant.name}: pytest could not run\n{done.stdout}{done.stderr}")
        failed = [line for line in done.stdout.splitlines() if line.startswith(("FAILED tests", "ERROR tests"))]
        return "\n".join(failed) if done.returncode else None


def main(mutants: tuple[Mutant, ...], names: list[str]) -> int:
    """Run the chosen mutants, all by default."""
    alive = []
    for mutant in mutants:
        if names and not mutant.name.startswith(tuple(names)):
            continue
        by = killer(mutant)
        print(f"SURVIVED  {mutant.name}" if by is None else f"killed    {mutant.name}  {by}", flush=True)  # noqa: T201  # its report
        if by is None:
            alive.append(mutant.name)
    return 1 if alive else 0


if __name__ == "__main__":
    sys.exit(main(MUTANTS, sys.argv[1:]))
