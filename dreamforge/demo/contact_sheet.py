"""The contact sheet: one image with each generated image above its enlarged one."""

from collections.abc import Sequence
from pathlib import Path

import msgspec
from PIL import Image, ImageDraw, ImageFont

_COLUMN = 280
_TALLEST = 420
_GAP = 20
_LABEL = 24
_TITLE = 56
_COLUMNS = 6
_PAPER = (24, 25, 29)
_INK = (226, 226, 230)
_FAINT = (142, 144, 152)


class Print(msgspec.Struct, frozen=True):
    """One image of the sheet, and its label."""

    path: Path
    label: str


def write(path: Path, title: str, pairs: Sequence[tuple[Print, Print]]) -> None:
    """Write the sheet as PNG. pairs: upper and lower image."""
    columns = min(len(pairs), _COLUMNS)
    rows = -(-len(pairs) // columns)
    width, height = _fit(pairs[0][0].path)
    block = 2 * (height + _LABEL) + _GAP
    sheet = Image.new("RGB", (_GAP + columns * (_COLUMN + _GAP), _TITLE + rows * block), _PAPER)
    draw = ImageDraw.Draw(sheet)
    _write_line(draw, (_GAP, _GAP), title, sheet.width - 2 * _GAP, ImageFont.load_default(18), _INK)
    for index, pair in enumerate(pairs):
        row, column = divmod(index, columns)
        x = _GAP + column * (_COLUMN + _GAP)
        for level, one in enumerate(pair):
            y = _TITLE + row * block + level * (height + _LABEL)
            with Image.open(one.path) as image:
                small = image.convert("RGB").resize((width, height), Image.Resampling.LANCZOS)
            sheet.paste(small, (x + (_COLUMN - width) // 2, y))
            _write_line(draw, (x, y + height + 4), one.label, _COLUMN, ImageFont.load_default(12), _FAINT)
    sheet.save(path, optimize=True)


def _fit(path: Path) -> tuple[int, int]:
    with Image.open(path) as image:
        factor = min(_COLUMN / image.width, _TALLEST / image.height)
        return max(1, round(image.width * factor)), max(1, round(image.height * factor))


def _write_line(
    draw: ImageDraw.ImageDraw,
    corner: tuple[int, int],
    text: str,
    width: int,
    font: ImageFont.FreeTypeFont | ImageFont.ImageFont,
    ink: tuple[int, int, int],
) -> None:
    line = " ".join(text.split())
    while draw.textlength(line, font) > width:
        line = line[:-2].rstrip() + "…"
    draw.text(corner, line, ink, font)
