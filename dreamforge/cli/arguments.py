"""Parsers of the command line, and argument types. The types raise `ArgumentTypeError` for invalid values."""

import argparse
import difflib
import re
from datetime import UTC, datetime, timedelta
from importlib import import_module
from pathlib import Path
from typing import Any

STDIN_PATH = Path("-")

_AGE_PATTERN = re.compile(r"([1-9][0-9]{0,5})([smhd])", re.ASCII)
_TIMEDELTA_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}


class CommandParser(argparse.ArgumentParser):
    """A parser that suggests a similar command for an unknown one.

    module: its `add_arguments` adds the parser's arguments. It is imported when the parser is first used, so that a
    command does not import the modules of others.
    """

    def __init__(self, *args: Any, module: str | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._module = module

    def add_module_arguments(self) -> None:
        """Add the module's arguments, once."""
        if self._module is not None:
            module, self._module = self._module, None
            import_module(module).add_arguments(self)

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parse, with the module's arguments."""
        self.add_module_arguments()
        return super().parse_known_args(args, namespace)

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        choices = [str(choice) for choice in action.choices or ()]
        near = difflib.get_close_matches(str(value), choices, n=1)
        if near and str(value) not in choices:
            raise argparse.ArgumentError(action, f"there is no {value!r}; did you mean {near[0]!r}?")
        super()._check_value(action, value)


def add_subcommands(parser: argparse.ArgumentParser) -> "argparse._SubParsersAction[CommandParser]":
    """Add required subcommands to a command."""
    return parser.add_subparsers(title="commands", metavar="COMMAND", required=True, parser_class=CommandParser)


def output_option_parser(*, json_alias: bool = False) -> CommandParser:
    """A parent parser with `--output`. json_alias: `--json` means `--output json`."""
    output = CommandParser(add_help=False)
    add_output_option(output, "the form of the answer", json_alias=json_alias)
    return output


def add_output_option(parser: argparse.ArgumentParser, help_text: str, *, json_alias: bool = True) -> None:
    """Add `--output` to a command. json_alias: `--json` means `--output json`."""
    parser.add_argument("--output", choices=("table", "json"), default="table", help=help_text)
    if json_alias:
        parser.add_argument(
            "--json", dest="output", action="store_const", const="json", help="the same as --output json"
        )


def parse_unicode_text(text: str) -> str:
    """Valid Unicode. An argument in another encoding contains lone surrogates and is rejected."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise argparse.ArgumentTypeError("this is not valid UTF-8") from None
    return text


def parse_image_size(text: str) -> tuple[int, int]:
    """Width and height from `512` or `640x384`."""
    width, _, height = text.lower().partition("x")
    if not (text.isascii() and width.isdigit() and (height.isdigit() or text.isdigit())):
        raise argparse.ArgumentTypeError(f"{text!r} is no size; write it like 512 or 640x384")
    return int(width), int(height or width)


def parse_positive_int(text: str) -> int:
    """A whole number from 1 on."""
    if not (text.isascii() and text.isdigit() and int(text) > 0):
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number from 1 on")
    return int(text)


def add_count_option(
    container: argparse._ActionsContainer, flag: str, help_text: str, default: int | None = None, metavar: str = "N"
) -> None:
    """Add an option to a parser or a group that takes a whole number from 1 on."""
    container.add_argument(flag, type=parse_positive_int, default=default, metavar=metavar, help=help_text)


def parse_name_value_pair(text: str) -> tuple[str, str]:
    """A name and a value from `name=value`."""
    name, equals, value = parse_unicode_text(text).partition("=")
    if not (name and equals):
        raise argparse.ArgumentTypeError(f"{text!r} is no KEY=VALUE")
    return name, value


def parse_header_value(text: str) -> str:
    """A valid value of an HTTP header."""
    if text != text.strip() or not parse_unicode_text(text).isprintable():
        raise argparse.ArgumentTypeError(f"{text!r} begins or ends with a blank, or holds what can't be printed")
    return text


def parse_existing_file(text: str) -> Path:
    """An existing file."""
    if not Path(text).is_file():
        raise argparse.ArgumentTypeError(f"there is no file {text!r}")
    return Path(text)


def parse_file_or_stdin(text: str) -> Path:
    """An existing file, or `-`."""
    return STDIN_PATH if text == "-" else parse_existing_file(text)


def parse_port(text: str) -> int | None:
    """A port to listen on; None for an empty text, which make passes for an unset variable."""
    if not text:
        return None
    if not (text.isascii() and text.isdigit() and int(text) <= 65535):
        raise argparse.ArgumentTypeError(f"{text!r} is no port; it must be a whole number from 0 to 65535")
    return int(text)


def parse_time(text: str) -> datetime:
    """A point in time: RFC 3339, without an offset in UTC; or how long ago, like `90s`, `15m`, `2h`, `3d`."""
    ago = _AGE_PATTERN.fullmatch(text)
    if ago:
        return datetime.now(UTC) - timedelta(**{_TIMEDELTA_UNITS[ago[2]]: int(ago[1])})
    try:
        parsed = datetime.fromisoformat(text)
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text!r} is no time; write it like 2026-01-02T12:00:00Z, or how long ago: 90s, 15m, 2h, 3d"
        ) from None
    return parsed if parsed.tzinfo else parsed.replace(tzinfo=UTC)


def parse_job_id(text: str) -> str:
    """A job's id, which the service validates."""
    if not text:
        raise argparse.ArgumentTypeError("the id is empty")
    return parse_unicode_text(text)
