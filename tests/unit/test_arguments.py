"""What arguments of the command line are taken for, and which are rejected."""

import argparse
from collections.abc import Callable
from pathlib import Path

import pytest

from dreamforge.cli import arguments


@pytest.mark.parametrize(("text", "size"), [("512", (512, 512)), ("640x384", (640, 384)), ("640X384", (640, 384))])
def test_sizes(text: str, size: tuple[int, int]) -> None:
    assert arguments.parse_image_size(text) == size


@pytest.mark.parametrize("text", ["", "x", "12x", "x12", "1x2x3", "-4", "5.5", "٣"])
def test_sizes_of_another_form_are_rejected(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError):
        arguments.parse_image_size(text)


@pytest.mark.parametrize(("text", "found"), [("a=b", ("a", "b")), ("a=", ("a", "")), ("a=b=c", ("a", "b=c"))])
def test_pairs(text: str, found: tuple[str, str]) -> None:
    assert arguments.parse_name_value_pair(text) == found


def test_an_empty_port_is_none() -> None:
    assert (arguments.parse_port(""), arguments.parse_port("0"), arguments.parse_port("65535")) == (None, 0, 65535)


def test_a_dash_is_standard_input(tmp_path: Path) -> None:
    file = tmp_path / "request.json"
    file.touch()
    assert arguments.parse_file_or_stdin("-") == arguments.STDIN_PATH
    assert arguments.parse_file_or_stdin(str(file)) == file


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        (arguments.parse_unicode_text, "\udcff"),
        (arguments.parse_positive_int, "0"),
        (arguments.parse_positive_int, "-1"),
        (arguments.parse_positive_int, "x"),
        (arguments.parse_positive_int, "٣"),
        (arguments.parse_name_value_pair, "a"),
        (arguments.parse_name_value_pair, "=b"),
        (arguments.parse_name_value_pair, "a=\udcff"),
        (arguments.parse_header_value, " key"),
        (arguments.parse_header_value, "a\r\nb"),
        (arguments.parse_file_or_stdin, "nowhere.json"),
        (arguments.parse_port, "65536"),
        (arguments.parse_port, "x"),
        (arguments.parse_job_id, ""),
    ],
)
def test_what_cannot_be_used_is_rejected(kind: Callable[[str], object], text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError):
        kind(text)
