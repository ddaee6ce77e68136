"""`dreamforge models`: registers, lists, verifies, enables and disables models."""

import argparse
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args
from uuid import UUID

import msgspec
from rich.markup import escape
from rich.table import Table

from api.models import model_detail, model_summary
from dreamforge.backends import expect_database, run_with_database, user_at_host
from dreamforge.cli import arguments
from dreamforge.cli.arguments import CommandParser
from dreamforge.cli.console import FAILED, INVALID, NOT_FOUND, OK, print_message, print_result
from dreamforge.cli.handlers import set_handlers
from dreamforge.cli.show import titled_table
from dreamforge.settings import Settings
from eventstore.log import Log
from model_registry.checks import BadModelFiles, check_files
from model_registry.registry import ModelRegistry, NoSuchModel, RegistryError, make_registration_event
from model_registry.sources import fetch_model
from model_registry.view import ModelView
from orchestrator.events import ModelKind


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `dreamforge models`."""
    actions = arguments.add_subcommands(parser)
    output = arguments.output_option_parser()
    one = CommandParser(add_help=False)
    one.add_argument("model", metavar="ID", help="the model's id, or its name if no other has it")

    new = actions.add_parser(
        "add", parents=[output], help="register a folder or file, or fetch and register a repository"
    )
    new.add_argument(
        "path", metavar="PATH", help="the folder or file, or hf:REPOSITORY[@REVISION][#FILE] of Hugging Face's hub"
    )
    new.add_argument("--kind", required=True, choices=get_args(ModelKind), help="what it does")
    new.add_argument("--name", type=arguments.parse_unicode_text, help="what to call it; like PATH unless given")
    new.add_argument(
        "--version", type=arguments.parse_unicode_text, help="the beginning of its files' digest unless given"
    )
    new.add_argument(
        "--parameters-schema",
        type=arguments.parse_existing_file,
        metavar="FILE",
        help="the JSON Schema of what may be asked of it; the bounds of a request unless given",
    )
    new.add_argument("--copy", action="store_true", help="copy the folder or file into DF_MODELS_DIR first")
    new.add_argument(
        "--trust", action="store_true", help="let in files that may run code when they are opened (pickles)"
    )
    new.add_argument("--disabled", action="store_true", help="let no job use it yet")
    listed = actions.add_parser("list", parents=[output], help="list the models that jobs may use")
    listed.add_argument("--all", action="store_true", help="those that are disabled or damaged, too")
    actions.add_parser("show", parents=[output, one], help="show a model and its files")
    verify = actions.add_parser("verify", parents=[output], help="read a model's files again; exit 1 if any is damaged")
    verify.add_argument("model", metavar="ID", nargs="?", help="its id or name; every model if not given")
    actions.add_parser("enable", parents=[output, one], help="let jobs use a model")
    actions.add_parser("disable", parents=[output, one], help="keep new jobs from using a model")
    set_handlers(
        actions,
        {
            "add": _add_model,
            "list": _list_models,
            "show": _show_model,
            "verify": _verify_models,
            "enable": _enable_model,
            "disable": _disable_model,
        },
        errors={NoSuchModel: NOT_FOUND, RegistryError: INVALID},
    )


T = TypeVar("T")


class ModelVerification(msgspec.Struct, frozen=True, kw_only=True):
    """The result of a model's verification."""

    id: str
    name: str
    intact: bool
    problems: list[str]


def _add_model(args: argparse.Namespace, settings: Settings) -> int:
    # The model before the database connection: a large one takes long to fetch and read, and may be invalid.
    expect_database(settings)
    schema = None if args.parameters_schema is None else _read_json_object(args.parameters_schema)
    found = fetch_model(args.path, settings.models_folder, copy=args.copy, trust=args.trust)
    registered = make_registration_event(
        found.path,
        args.kind,
        name=args.name or found.name,
        version=args.version,
        parameters_schema=schema,
        source_uri=found.source_uri,
        trust=args.trust,
    )
    try:
        check_files(Path(registered.local_path), args.kind, (file.path for file in registered.files), trust=args.trust)
    except (BadModelFiles, OSError) as error:
        raise RegistryError(f"{args.path} can't be a {args.kind}: {error}.") from error
    model, new = _call_registry(settings, lambda registry: registry.add(registered, enabled=not args.disabled))
    if not new:
        print_message(OK, f"it is registered already, as {model.model_id}")
    print_result(args.output, model_detail(model), _model_table(model))
    return OK


def _list_models(args: argparse.Namespace, settings: Settings) -> int:
    models = [model for model in _call_registry(settings, ModelRegistry.all) if args.all or model.available]
    print_result(args.output, [model_summary(model) for model in models], _models_table(models))
    return OK


def _show_model(args: argparse.Namespace, settings: Settings) -> int:
    model = _call_registry(settings, lambda registry: registry.find(args.model))
    print_result(args.output, model_detail(model), _model_table(model))
    return OK


def _verify_models(args: argparse.Namespace, settings: Settings) -> int:
    async def verify(registry: ModelRegistry) -> list[ModelView]:
        models = await registry.all() if args.model is None else [await registry.find(args.model)]
        return [await registry.verify(model) for model in models]

    results = [
        ModelVerification(
            id=str(model.model_id), name=model.name, intact=model.installed, problems=list(model.problems)
        )
        for model in _call_registry(settings, verify)
    ]
    print_result(args.output, results, _verification_table(results))
    if not results:
        return print_message(FAILED, "nothing was verified: no model is registered; is this the log that was meant?")
    return OK if all(result.intact for result in results) else FAILED


def _enable_model(args: argparse.Namespace, settings: Settings) -> int:
    return _set_enabled(args, settings, "enabled", ModelRegistry.enable)


def _disable_model(args: argparse.Namespace, settings: Settings) -> int:
    return _set_enabled(args, settings, "disabled", ModelRegistry.disable)


def _set_enabled(
    args: argparse.Namespace,
    settings: Settings,
    state: str,
    enable_or_disable: Callable[[ModelRegistry, UUID], Awaitable[tuple[ModelView, bool]]],
) -> int:
    async def find_and_switch(registry: ModelRegistry) -> tuple[ModelView, bool]:
        return await enable_or_disable(registry, (await registry.find(args.model)).model_id)

    model, new = _call_registry(settings, find_and_switch)
    text = f"Model {escape(model.name)} ({model.model_id}) {'is' if new else 'was'} {state}{'' if new else ' already'}."
    if model.enabled and not model.installed:
        text += " No job can use it yet, since its files are damaged: see `dreamforge models verify`."
    print_result(args.output, model_summary(model), text)
    return OK


def _call_registry(settings: Settings, call: Callable[[ModelRegistry], Awaitable[T]]) -> T:
    return run_with_database(settings, "models", lambda database: call(ModelRegistry(Log(database), user_at_host())))


def _read_json_object(path: Path) -> dict[str, Any]:
    try:
        found = msgspec.json.decode(path.read_bytes(), type=dict[str, Any])
    except (OSError, msgspec.DecodeError, UnicodeDecodeError) as error:
        raise RegistryError(f"{path} is no JSON Schema: {error}.") from error
    if rb"\u0000" in msgspec.json.encode(found):
        raise RegistryError(f"{path} holds U+0000, which the database can't keep; take it out.")
    return found


def _models_table(models: Sequence[ModelView]) -> Table:
    table = titled_table("Models", "id", "name", "kind", "version", "installed", "enabled")
    for model in models:
        states = [_yes_or_no_text(value=model.installed), _yes_or_no_text(value=model.enabled)]
        table.add_row(str(model.model_id), escape(model.name), model.kind, escape(model.version), *states)
    return table


def _model_table(model: ModelView) -> Table:
    table = titled_table(f"Model {model.model_id}", "", "")
    table.show_header = False
    rows = {
        "name": model.name,
        "kind": model.kind,
        "version": model.version,
        "capabilities": ", ".join(model.capabilities),
        "installed": _yes_or_no_text(value=model.installed),
        "enabled": _yes_or_no_text(value=model.enabled),
        "trusted": "yes" if model.trusted else "",
        "source": model.source_uri,
        "path": model.local_path,
        "files": "\n".join(f"{file.sha256[:12]}  {file.size:>15,}  {file.path}" for file in model.files),
        "problems": "\n".join(model.problems),
    }
    for name, value in rows.items():
        if value:
            table.add_row(name, escape(value))
    return table


def _verification_table(results: Sequence[ModelVerification]) -> Table:
    table = titled_table("Models", "id", "name", "intact", "problems")
    for result in results:
        problems = escape("\n".join(result.problems))
        table.add_row(result.id, escape(result.name), _yes_or_no_text(value=result.intact), problems)
    return table


def _yes_or_no_text(*, value: bool) -> str:
    return "yes" if value else "no"
