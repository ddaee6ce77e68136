"""`dreamforge jobs`: a client for the service's jobs."""

import argparse
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import datetime
from http import HTTPStatus
from pathlib import Path

import msgspec

from dreamforge.cli import arguments, show
from dreamforge.cli.arguments import CommandParser
from dreamforge.cli.console import FAILED, INTERRUPTED, OK, PipeConsole, print_message, print_result
from dreamforge.client.api_client import Client, message_to_log_line
from dreamforge.client.responses import ApiError, ClientError, JsonObject
from dreamforge.settings import Settings
from orchestrator.parameters import Generate, Upscale

_DEFAULT_LIST_LIMIT = 20
_RATE_LIMIT_PATIENCE_S = 60.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `dreamforge jobs`."""
    actions = arguments.add_subcommands(parser)
    output = arguments.output_option_parser()
    job_parser = CommandParser(add_help=False)
    job_parser.add_argument("job_id", metavar="ID", type=arguments.parse_job_id)

    create = actions.add_parser("create", parents=[output], help="submit a job")
    _add_request_arguments(create)
    _add_submission_arguments(create)
    watch = actions.add_parser("watch", parents=[output, job_parser], help="follow a job to its end")
    _set_handler(watch, _watch_job)
    show_parser = actions.add_parser("show", parents=[output, job_parser], help="show a job and its steps")
    moment = show_parser.add_mutually_exclusive_group()
    moment.add_argument("--as-of", metavar="TIME", help="as it was then, like 2026-01-02T12:00:00Z")
    moment.add_argument("--as-of-version", type=int, metavar="N", help="as it was after N events")
    _set_handler(show_parser, _show_job)
    list_parser = actions.add_parser("list", parents=[output], help="list jobs, the newest first")
    list_parser.add_argument("--status", help="queued, running, succeeded, failed or cancelled ones only")
    amount_group = list_parser.add_mutually_exclusive_group()
    arguments.add_count_option(amount_group, "--limit", f"{_DEFAULT_LIST_LIMIT} unless given", _DEFAULT_LIST_LIMIT)
    amount_group.add_argument("--all", dest="limit", action="store_const", const=None, help="as many as there are")
    _set_handler(list_parser, _list_jobs)
    logs = actions.add_parser("logs", parents=[output, job_parser], help="print what happened, line by line")
    arguments.add_count_option(logs, "--tail", "the last N lines only")
    logs.add_argument("--since", metavar="TIME", help="from then on, like 2026-01-02T12:00:00Z")
    logs.add_argument("--follow", action="store_true", help="go on to the job's end")
    _set_handler(logs, _print_logs)
    _add_events_parser(actions, output)
    cancel = actions.add_parser("cancel", parents=[output, job_parser], help="cancel a job")
    cancel.add_argument("--wait", action="store_true", help="wait for its end; exit 1 if it ended otherwise")
    _set_handler(cancel, _cancel_job)
    _add_retry_parser(actions, output)
    artifacts = actions.add_parser("artifacts", parents=[output, job_parser], help="list a job's artifacts")
    artifacts.add_argument("--download", type=Path, metavar="DIR", help="download them to DIR/<step>/")
    _set_handler(artifacts, _list_artifacts)
    about = "see and release quarantined jobs, whose history can't be read (needs DF_DB_URL or the home)"
    actions.add_parser("quarantine", help=about, description=about, module="dreamforge.cli.quarantine")


def _add_request_arguments(parser: argparse.ArgumentParser) -> None:
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("text", nargs="?", type=arguments.parse_unicode_text, metavar="PROMPT", help="what to paint")
    what.add_argument("--prompt", type=arguments.parse_unicode_text, help="the same")
    what.add_argument(
        "--file",
        type=arguments.parse_file_or_stdin,
        help="send this file, or - for standard input, as the whole request; no field is given beside it",
    )
    parser.add_argument("--negative-prompt", type=arguments.parse_unicode_text, metavar="TEXT", help="what to avoid")
    parser.add_argument("--count", type=int, metavar="N", help="how many images")
    parser.add_argument("--size", type=arguments.parse_image_size, metavar="SIZE", help="like 512 or 640x384")
    parser.add_argument("--steps", type=int, metavar="N", help="sampling steps")
    parser.add_argument("--guidance", type=float, metavar="X", help="how closely to follow the prompt")
    parser.add_argument("--scheduler", metavar="NAME", help="dpmpp_2m_karras, unipc, euler or ddim")
    parser.add_argument("--seed", type=int, metavar="N", help="the same seed gives the same images")
    parser.add_argument("--format", choices=("png", "jpg"), help="the form of the images")
    parser.add_argument(
        "--no-embed-metadata", dest="embed_metadata", action="store_const", const=False, help="leave the images bare"
    )
    parser.add_argument("--model-id", metavar="ID", help="the model to use, not the default one")
    parser.add_argument("--engine", metavar="NAME", help="sdxl or flux-srpo")
    parser.add_argument("--scale", type=int, metavar="N", help="chain an upscale by 2 or 4")
    parser.add_argument("--impl", metavar="NAME", help="chain an upscale by auto, image, gan or diffusion")
    parser.add_argument(
        "--strict-scale", action="store_const", const=True, help="reject an upscaler made for another scale"
    )
    parser.add_argument(
        "--metadata",
        type=arguments.parse_name_value_pair,
        action="append",
        metavar="KEY=VALUE",
        help="your own note; can be repeated",
    )


def _add_submission_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--idempotency-key",
        type=arguments.parse_header_value,
        metavar="KEY",
        help="sending it again makes no second job",
    )
    end = parser.add_mutually_exclusive_group()
    end.add_argument("--watch", action="store_true", help="follow the job to its end")
    arguments.add_count_option(end, "--wait", "wait for the job's end, but no longer than 60", metavar="SECONDS")
    parser.add_argument(
        "--download", type=Path, metavar="DIR", help="follow the job to its end, and download its images to DIR/<step>/"
    )
    parser.add_argument("--quiet", action="store_true", help="print the job's id, and nothing else")
    _set_handler(parser, _create_job)


def _add_events_parser(actions: "argparse._SubParsersAction[CommandParser]", output: CommandParser) -> None:
    events = actions.add_parser("events", parents=[output], help="print the history of a job, or the whole log")
    which = events.add_mutually_exclusive_group(required=True)
    which.add_argument("job_id", metavar="ID", nargs="?", type=arguments.parse_job_id)
    which.add_argument("--all", action="store_true", help="the whole log, of models too")
    log_group = events.add_argument_group("with --all")
    log_group.add_argument("--follow", action="store_true", help="go on as it grows, until Ctrl-C")
    log_group.add_argument("--new", action="store_true", help="with --follow: nothing that is there already")
    log_group.add_argument("--codes", metavar="CODE,…", help="events of these kinds only, like job.created,job.finish")
    log_group.add_argument("--category", metavar="NAME", help="job, model, key, outbox or anchor")
    _set_handler(events, _handle_events)


def _add_retry_parser(actions: "argparse._SubParsersAction[CommandParser]", output: CommandParser) -> None:
    retry = actions.add_parser("retry", parents=[output], help="run a failed job's failed step again, or those of all")
    retry.add_argument("job_id", metavar="ID", nargs="?", type=arguments.parse_job_id)
    retry.add_argument("--watch", action="store_true", help="follow the job to its end")
    retry.add_argument("--failed", action="store_true", help="every failed job rather than one")
    retry.add_argument("--since", type=arguments.parse_time, metavar="TIME", help="of those, what failed from then on")
    retry.add_argument("--dry-run", action="store_true", help="only list them")
    _set_handler(retry, _handle_retry)


def _set_handler(parser: argparse.ArgumentParser, handler: Callable[[argparse.Namespace, Client], int]) -> None:
    """Set a command's handler, which is called with a client of the service."""

    def run(args: argparse.Namespace, settings: Settings) -> int:
        with Client(settings.api_base, api_key=settings.api_key) as client:
            return handler(args, client)

    parser.set_defaults(handler=run, usage_error=parser.error)


def _create_job(args: argparse.Namespace, client: Client) -> int:
    request = _build_request(args)
    try:
        job = client.create_job(request, idempotency_key=args.idempotency_key, wait_s=args.wait)
    except KeyboardInterrupt:
        return print_message(
            INTERRUPTED, "interrupted before the answer: the job may go on; see `dreamforge jobs list`"
        )
    if args.quiet:
        print(job["id"], flush=True)
    if args.watch or args.download is not None:
        return _follow_new_job(client, job["id"], args)
    if not args.quiet:
        print_result(args.output, job, f"Job {job['id']} is {job['status']}.")
        print(_next_command_text(client, job), file=sys.stderr)
    return FAILED if job["status"] in {"failed", "cancelled"} else OK


def _follow_new_job(client: Client, job_id: str, args: argparse.Namespace) -> int:
    """Follow a new job to its end, and download its images if requested."""
    if not args.quiet:
        print(f"Job {job_id}", file=sys.stderr)
    code = _follow_job(client, job_id, args.output, quiet=args.quiet)
    if args.download is not None and code != INTERRUPTED:
        _download_artifacts(client.artifacts(job_id), client, args.download, quiet=args.quiet)
    return code


def _next_command_text(client: Client, job: JsonObject) -> str:
    """The next command for a job, or the reason why it ended without images."""
    if job["status"] in {"failed", "cancelled"}:
        return _end_reason(client.job(job["id"]))
    images = f"Get its images: dreamforge jobs artifacts {job['id']} --download DIR"
    return images if job["status"] == "succeeded" else f"Follow it: dreamforge jobs watch {job['id']}\n{images}"


def _end_reason(job: JsonObject) -> str:
    """The reason why a job ended without images."""
    return f"{job['error_code']}: {job['error_message']}" if job["error_code"] else f"It was {job['status']}."


def _build_request(args: argparse.Namespace) -> JsonObject | bytes:
    fields = _arguments_named_as_fields(args, Generate)
    fields["prompt"] = args.prompt if args.text is None else args.text
    fields["width"], fields["height"] = args.size or (None, None)
    fields["chain"] = _drop_empty_values({"upscale": _drop_empty_values(_arguments_named_as_fields(args, Upscale))})
    fields["metadata"] = args.metadata and dict(args.metadata)
    request = _drop_empty_values(fields)
    if args.file is None:
        return {"type": "generate", **request}
    if request:
        args.usage_error(f"{', '.join(request)} can't be given beside --file, which is the whole request")
    body: bytes = sys.stdin.buffer.read() if args.file == arguments.STDIN_PATH else args.file.read_bytes()
    return body


def _arguments_named_as_fields(args: argparse.Namespace, kind: type[msgspec.Struct]) -> JsonObject:
    """The arguments that are named as the fields of a type."""
    return {name: getattr(args, name) for name in kind.__struct_fields__ if hasattr(args, name)}


def _drop_empty_values(fields: JsonObject) -> JsonObject:
    return {name: value for name, value in fields.items() if value is not None and value != {}}


def _watch_job(args: argparse.Namespace, client: Client) -> int:
    return _follow_job(client, client.find_job_id(args.job_id), args.output)


def _follow_job(client: Client, job_id: str, output: str, *, quiet: bool = False) -> int:
    console = PipeConsole(stderr=True, quiet=quiet)
    try:
        status = show.follow_job(client.job(job_id), client.stream(job_id), console)
    except KeyboardInterrupt:
        message = (
            f"the job goes on. Follow it: dreamforge jobs watch {job_id}. Cancel it: dreamforge jobs cancel {job_id}"
        )
        return print_message(INTERRUPTED, message)
    job = client.job(job_id)
    if not quiet:
        print_result(output, job, show.job_table(job))
    return OK if status == "succeeded" else FAILED


def _show_job(args: argparse.Namespace, client: Client) -> int:
    job = client.job(client.find_job_id(args.job_id), as_of=args.as_of, as_of_version=args.as_of_version)
    print_result(args.output, job, show.job_table(job))
    return OK


def _list_jobs(args: argparse.Namespace, client: Client) -> int:
    jobs = list(client.jobs(status=args.status, limit=args.limit))
    print_result(args.output, jobs, show.job_list_table(jobs))
    return OK


def _print_logs(args: argparse.Namespace, client: Client) -> int:
    if args.follow and args.tail and args.since:
        args.usage_error("--follow goes with --tail or with --since, not with both")
    job_id = client.find_job_id(args.job_id)
    if args.follow:
        lines = _follow_log_lines(client, job_id, args)
    else:
        lines = client.logs(job_id, tail=args.tail, since=args.since)
    if args.output == "json":
        _print_lines(lines)
    else:
        _print_lines(show.log_line_text(msgspec.json.decode(line, type=JsonObject)) for line in lines)
    return OK


def _follow_log_lines(client: Client, job_id: str, args: argparse.Namespace) -> Iterator[str]:
    # All lines come from the stream, in the format of /logs: with two sources, an event could be missing or doubled.
    version = client.job(job_id)["version"]
    after = "" if args.tail is None else str(max(0, version - args.tail))
    for message in client.stream(job_id, after, since=args.since):
        if message.event != "progress":
            yield msgspec.json.encode(message_to_log_line(job_id, message)).decode()


def _handle_events(args: argparse.Namespace, client: Client) -> int:
    if args.job_id is not None and (args.follow or args.new or args.codes or args.category):
        args.usage_error("--follow, --new, --codes and --category go with --all")
    if args.new and not args.follow:
        args.usage_error("--new goes with --follow")
    if args.job_id is None:
        _print_events(args.output, _log_events(client, args))
    elif args.output == "json":
        _print_events("json", client.events(client.find_job_id(args.job_id)))
    else:
        print_result("table", None, show.history_table(client.events(client.find_job_id(args.job_id))))
    return OK


def _log_events(client: Client, args: argparse.Namespace) -> Iterable[JsonObject]:
    if not args.follow:
        return client.log_events(codes=args.codes, category=args.category)
    messages = client.log_stream("now" if args.new else "start", codes=args.codes, category=args.category)
    return (msgspec.json.decode(message.data, type=JsonObject) for message in messages)


def _print_events(output: str, events: Iterable[JsonObject]) -> None:
    if output == "json":
        _print_lines(msgspec.json.encode(event).decode() for event in events)
    else:
        _print_lines(map(show.event_line_text, events))


def _print_lines(lines: Iterable[str]) -> None:
    for line in lines:
        print(line, flush=True)


def _cancel_job(args: argparse.Namespace, client: Client) -> int:
    job = client.cancel(client.find_job_id(args.job_id))
    if args.wait:
        for _ in client.stream(job["id"]):
            pass
        job = client.job(job["id"])
    print_result(args.output, job, f"Job {job['id']} is {_cancel_status_text(job['status'])}.")
    return FAILED if args.wait and job["status"] != "cancelled" else OK


def _cancel_status_text(status: str) -> str:
    """The status of a job after a cancellation request, as text."""
    return status if status in {"succeeded", "failed", "cancelled"} else "being cancelled"


def _handle_retry(args: argparse.Namespace, client: Client) -> int:
    if args.failed == (args.job_id is not None):
        args.usage_error("name one job, or --failed for all of them")
    if args.failed and args.watch:
        args.usage_error("--watch goes with one job")
    if not args.failed and (args.since or args.dry_run):
        args.usage_error("--since and --dry-run go with --failed")
    if args.failed:
        return _retry_failed(client, args)
    job = client.retry(client.find_job_id(args.job_id))
    if args.watch:
        return _follow_job(client, job["id"], args.output)
    print_result(args.output, job, f"Job {job['id']} is {job['status']}.")
    return OK


def _retry_failed(client: Client, args: argparse.Namespace) -> int:
    """Request a retry of every failed job. A job that is no longer failed is skipped."""
    failed = [
        job
        for job in client.jobs(status="failed")
        if args.since is None or datetime.fromisoformat(job["updated_at"]) >= args.since
    ]
    retried = []
    try:
        for job in [] if args.dry_run else failed:
            answer = _retry_job(client, job["id"])
            if answer is not None:
                retried.append(answer)
    except ClientError:
        print(f"{len(retried)} of {len(failed)} failed jobs run again.", file=sys.stderr)
        raise
    summary = show.job_list_table(failed) if args.dry_run else f"{len(retried)} of {len(failed)} failed jobs run again."
    print_result(args.output, failed if args.dry_run else retried, summary)
    return OK


def _retry_job(client: Client, job_id: str) -> JsonObject | None:
    """Request a retry; repeat it while it is rate-limited. Returns the job; None if it is no longer failed."""
    deadline = time.monotonic() + _RATE_LIMIT_PATIENCE_S
    while True:
        try:
            return client.retry(job_id)
        except ApiError as error:
            if error.status == HTTPStatus.CONFLICT:
                return None
            if error.status != HTTPStatus.TOO_MANY_REQUESTS or time.monotonic() > deadline:
                raise
        time.sleep(1)


def _list_artifacts(args: argparse.Namespace, client: Client) -> int:
    artifacts = client.artifacts(client.find_job_id(args.job_id))
    print_result(args.output, artifacts, show.artifact_table(artifacts))
    if args.download:
        _download_artifacts(artifacts, client, args.download)
    return OK


def _download_artifacts(artifacts: Sequence[JsonObject], client: Client, folder: Path, *, quiet: bool = False) -> None:
    for artifact in artifacts:
        step_folder = folder / artifact["step"]
        step_folder.mkdir(parents=True, exist_ok=True)
        path = client.download(artifact, step_folder)
        if not quiet:
            print(path, file=sys.stderr)
