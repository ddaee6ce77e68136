"""Takes back one fix at a time, in a copy of the tree, and expects the test that came with it to fail.

`make fixes` runs all; `python scripts/fixes.py 04 …` some, by the beginning of their names: the number of the report
that the fix answers, and its subject. Exits 1 if a test passes without its fix.
"""

import sys

from mutants import Mutant, main

FIXES: tuple[Mutant, ...] = (
    Mutant(
        "01-document-as-the-library-words-it",
        "api/openapi.py",
        "    return {name: _normalised(schema) for name, schema in schemas.items()}",
        "    return dict(schemas)",
        "tests/unit/test_openapi.py -k 'committed or does_not_depend'",
    ),
    Mutant(
        "01-installs-without-the-locked-files",
        "Makefile",
        "install --require-hashes -r requirements/$(LOCK).txt && install --no-build-isolation -e .",
        "install --no-build-isolation -e .",
        "tests/flow/test_install.py -k pip",
    ),
    Mutant(
        "01-unlisted-skips-pass",
        "tests/skips.py",
        "            self.unlisted.append(",
        "            print(",
        "tests/unit/test_skips.py -k module",
    ),
    Mutant(
        "03-no-page-is-named",
        "dreamforge/roles.py",
        '        if core.url:\n            _log.info("open this page',
        '        if not core.url:\n            _log.info("open this page',
        "tests/flow/test_up.py -k naming",
    ),
    Mutant(
        "03-nothing-at-the-root",
        "api/docs.py",
        '    return RedirectResponse("/docs")',
        "    return Response(status_code=404)",
        "tests/http/test_operations.py -k root",
    ),
    Mutant(
        "03-settings-ignored-without-a-word",
        "Makefile",
        "$(warning make ignores",
        "$(info make ignores",
        "tests/unit/test_makefile.py",
    ),
    Mutant(
        "04-cancelled-wait-counts",
        "eventstore/database.py",
        '        if message.server_source_filename == "syncrep.c":',
        "        if False:",
        "tests/flow/test_standby.py",
    ),
    Mutant(
        "04-checkpoint-on-one-server",
        "eventstore/subscription.py",
        "        await self._log.confirm_replicated()\n",
        "",
        "tests/flow/test_standby.py -k subscription",
    ),
    Mutant(
        "04-repeated-commit-waits-for-nothing",
        "schema.sql",
        "    if 'accepted' <> all (verdicts) and moved is null and json_array_length(sends) = 0 then",
        "    if false then",
        "tests/flow/test_standby.py -k repeated_commit",
    ),
    Mutant(
        "04-repeated-request-waits-for-nothing",
        "orchestrator/transact.py",
        '                await until_available("request", self._log.confirm_replicated)\n',
        "",
        "tests/flow/test_standby.py -k repeated_request",
    ),
    Mutant(
        "04-replayed-answer-waits-for-nothing",
        "api/commands.py",
        "        await _soon(services, services.log.confirm_replicated())\n",
        "",
        "tests/flow/test_standby.py -k accepted",
    ),
    Mutant(
        "06-failed-starts-count",
        "runners/steps.py",
        "            await self._fail_start(state, step, claim, classified(error))\n            return None\n",
        "            raise\n",
        "tests/store/test_troubled_steps.py -k never_starts",
    ),
    Mutant(
        "06-unreadable-job-keeps-its-command",
        "runners/steps.py",
        "except NoSuchJob as error:",
        "except LookupError as error:",
        "tests/store/test_troubled_steps.py -k cannot_be_folded",
    ),
    Mutant(
        "07-task-ends-unseen",
        "eventstore/supervision.py",
        "                await backoff.wait()\n",
        "                return\n",
        "tests/flow/test_failed_tasks.py",
        (("eventstore/supervision.py", "if self._task is None or self._task.done():", "if self._task is None:"),),
    ),
    Mutant(
        "08-delivered-before-lost",
        "runners/engines/batches.py",
        "            finally:\n                _deliver(batch, arrived)\n",
        "            finally:\n                pass\n",
        "tests/store/test_batches.py -k 'delivered or likewise'",
        (
            (
                "runners/engines/batches.py",
                "                _fail(request, Unexpected(error))\n\n    def _lost(",
                "                _fail(request, Unexpected(error))\n\n    def _lost(".replace(
                    "\n\n", "\n        finally:\n            _deliver(batch, arrived)\n\n"
                ),
            ),
        ),
    ),
    Mutant(
        "08-sent-before-the-pipe-broke",
        "runners/engines/process.py",
        "            while data := self._spare.recv(_CHUNK, socket.MSG_DONTWAIT):\n",
        '            while data := b"":\n',
        "tests/store/test_batches.py -k dead_process",
    ),
    Mutant(
        "09-adopts-anything",
        "runners/studio.py",
        "        return await self._in_thread(partial(_adopted, job, step, item_index, body, size))",
        "        found = read(body) if body[:4] == b'\\x89PNG' else None\n"
        "        return None if found is None else found.generate.rendering",
        "tests/store/test_stored_images.py -k adopted",
    ),
    Mutant(
        "09-described-as-asked-for",
        "runners/studio.py",
        "        return Rendition(body, size_of(body), rendering)",
        "        scale = job.upscale.scale if job.upscale and step == 'upscale' else 1\n"
        "        return Rendition(body, (job.generate.width * scale, job.generate.height * scale), rendering)",
        "tests/store/test_stored_images.py -k described",
    ),
    Mutant(
        "09-erasure-records-foreign-files",
        "dreamforge/audit_erase.py",
        "            body = await store.verified(artifact.s3_key, StoredObject(artifact.bytes, artifact.sha256))",
        "            body = await store.get(artifact.s3_key)",
        "tests/flow/test_erasure.py -k somebody_replaced",
    ),
    Mutant(
        "09-reads-are-bounded",
        "runners/objects.py",
        "            body: bytes = opened.read(written.size + 1)",
        "            body: bytes = opened.read()",
        "tests/store/test_objects.py -k changed_object",
    ),
    Mutant(
        "09-source-is-held-against-the-log",
        "runners/steps.py",
        "partial(self._store.verified, parent.s3_key, written))",
        "partial(self._store.get, parent.s3_key))",
        "tests/store/test_stored_images.py -k replaced_source",
    ),
    Mutant(
        "10-loss-is-recorded",
        "runners/steps.py",
        "if isinstance(failure.cause, ObjectMissing | ObjectChanged) else []",
        "if False else []",
        "tests/flow/test_lost_images.py",
    ),
    Mutant(
        "10-replaced-image-is-written-over",
        "runners/steps.py",
        "        if index in step.lost:",
        "        if False:",
        "tests/flow/test_lost_images.py",
    ),
    Mutant(
        "10-retry-names-generate",
        "orchestrator/decisions.py",
        "    if state.error is not None and state.error.lost:",
        "    if False:",
        "tests/flow/test_lost_images.py",
    ),
    Mutant(
        "11-a-probe-that-writes-nothing",
        "schema.sql",
        "    perform from generate_series(1, 5000);\n    perform pg_logical_emit_message(true, 'dreamforge', '');",
        "    null;",
        "tests/flow/test_writes.py -k failing",
    ),
    Mutant(
        "11-an-api-without-writes-is-not-ready",
        "dreamforge/roles.py",
        "needs_writes=False",
        "needs_writes=True",
        "tests/flow/test_writes.py -k failing",
    ),
    Mutant(
        "11-ready-while-writes-fail",
        "api/health.py",
        "spared = set() if need or health.needs_writes else {_WRITES}",
        "spared = {_WRITES}",
        "tests/flow/test_writes.py",
    ),
    Mutant(
        "12-admission-before-the-first-count",
        "api/limits.py",
        "if age >= _STALE_S and self._asking is not None:",
        "if age >= _STALE_S and self._asking is None:",
        "tests/http/test_limits.py -k 'from_the_first_request or known_before'",
    ),
    Mutant(
        "12-jobs-forgotten-while-counting",
        "api/limits.py",
        "        self._written -= written\n",
        "        self._written = self._open = 0\n",
        "tests/http/test_limits.py -k cannot_hold",
    ),
    Mutant(
        "12-jobs-that-no-projector-has-seen",
        "api/limits.py",
        ") + (\n    select count(*) from (\n        select from eventstore.log",
        ") + 0 * (\n    select count(*) from (\n        select from eventstore.log",
        "tests/http/test_limits.py -k 'from_the_first_request and TENANT'",
    ),
    Mutant(
        "12-no-orchestrator-no-limit",
        "api/limits.py",
        "left join eventstore.standings s on s.subscription = 'orchestrator'",
        "join eventstore.standings s on s.subscription = 'orchestrator'",
        "tests/http/test_limits.py -k 'from_the_first_request and DF_MAX'",
    ),
    Mutant(
        "15-any-host-is-served",
        "dreamforge/roles.py",
        "if settings.allowed_hosts is None and settings.require_keys:",
        "if True:",
        "tests/http/test_hosts.py -k 'no_route or set_are_served'",
    ),
    Mutant(
        "15-any-host-is-served-by-a-roles-health",
        "api/app.py",
        "return _observed(starlette, hosts)",
        "return _observed(starlette, Hosts())",
        "tests/http/test_hosts.py -k 'no_role and projector'",
    ),
    Mutant(
        "16-bare-line-feed",
        "dreamforge/http_protocol.py",
        "self.set_dangerous_leniencies(lenient_data_after_close=True)",
        "self.set_dangerous_leniencies(lenient_data_after_close=True, lenient_optional_cr_before_lf=True)",
        "tests/http/test_protocol.py -k bare_line_feed",
    ),
    Mutant(
        "16-body-after-an-offer-of-h2c",
        "dreamforge/http_protocol.py",
        "data = self._connection.head_without_upgrade() + bytes(data[upgrade.args[0] :])",
        "data = self._connection.head_without_upgrade()",
        "tests/http/test_protocol.py -k offer_of_h2c",
    ),
    Mutant(
        "16-idle-connection-closed-under-a-request",
        "dreamforge/http_protocol.py",
        "return bool(poll.poll(0))",
        "return False",
        "tests/http/test_protocol.py -k under_a_request",
    ),
    Mutant(
        "16-nagle",
        "dreamforge/http_server.py",
        "socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)",
        "socket.socket(family, socket.SOCK_STREAM)",
        "tests/http/test_protocol.py -k at_once",
    ),
    Mutant(
        "16-trailers",
        "dreamforge/http_protocol.py",
        "        if self._in_head:\n            self._grow(len(name)",
        "        if True:\n            self._grow(len(name)",
        "tests/http/test_protocol.py -k trailers",
    ),
    Mutant(
        "16-uvloop",
        "dreamforge/event_loop.py",
        "asyncio.Runner(loop_factory=uvloop.new_event_loop)",
        "asyncio.Runner()",
        "tests/http/test_protocol.py -k run_on_uvloop",
    ),
)

if __name__ == "__main__":
    sys.exit(main(FIXES, sys.argv[1:]))
