"""The contact sheet: one image with each generated image above its enlarged one."""

from collections.abc import Sequence
from pathlib import Path

import msgspec
from PIL import Image, ImageDraw, ImageFont

_COLUMN_WIDTH = 280
_MAX_IMAGE_HEIGHT = 420
_GAP_PIXELS = 20
_LABEL_HEIGHT = 24
_TITLE_HEIGHT = 56
_MAX_COLUMNS = 6
_BACKGROUND_COLOUR = (24, 25, 29)
_TITLE_COLOUR = (226, 226, 230)
_LABEL_COLOUR = (142, 144, 152)


class LabelledImage(msgspec.Struct, frozen=True):
    """One image of the sheet, and its label."""

    path: Path
    label: str


def write_contact_sheet(path: Path, title: str, image_pairs: Sequence[tuple[LabelledImage, LabelledImage]]) -> None:
    """Write the sheet as PNG. image_pairs: upper and lower image."""
    columns = min(len(image_pairs), _MAX_COLUMNS)
    rows = -(-len(image_pairs) // columns)
    width, height = _scaled_size(image_pairs[0][0].path)
    block = 2 * (height + _LABEL_HEIGHT) + _GAP_PIXELS
    sheet = Image.new(
        "RGB", (_GAP_PIXELS + columns * (_COLUMN_WIDTH + _GAP_PIXELS), _TITLE_HEIGHT + rows * block), _BACKGROUND_COLOUR
    )
    draw = ImageDraw.Draw(sheet)
    _draw_shortened_line(
        draw,
        (_GAP_PIXELS, _GAP_PIXELS),
        title,
        sheet.width - 2 * _GAP_PIXELS,
        ImageFont.load_default(18),
        _TITLE_COLOUR,
    )
    for index, pair in enumerate(image_pairs):
        row, column = divmod(index, columns)
        x = _GAP_PIXELS + column * (_COLUMN_WIDTH + _GAP_PIXELS)
        for level, one in enumerate(pair):
            y = _TITLE_HEIGHT + row * block + level * (height + _LABEL_HEIGHT)
            with Image.open(one.path) as image:
                small = image.convert("RGB").resize((width, height), Image.Resampling.LANCZOS)
            sheet.paste(small, (x + (_COLUMN_WIDTH - width) // 2, y))
            _draw_shortened_line(
                draw, (x, y + height + 4), one.label, _COLUMN_WIDTH, ImageFont.load_default(12), _LABEL_COLOUR
            )
    sheet.save(path, optimize=True)


def _scaled_size(path: Path) -> tuple[int, int]:
    with Image.open(path) as image:
        factor = min(_COLUMN_WIDTH / image.width, _MAX_IMAGE_HEIGHT / image.height)
        return max(1, round(image.width * factor)), max(1, round(image.height * factor))


def _draw_shortened_line(
    draw: ImageDraw.ImageDraw,
    top_left: tuple[int, int],
    text: str,
    max_width: int,
    font: ImageFont.FreeTypeFont | ImageFont.ImageFont,
    colour: tuple[int, int, int],
) -> None:
    line = " ".join(text.split())
    while draw.textlength(line, font) > max_width:
        line = line[:-2].rstrip() + "…"
    draw.text(top_left, line, colour, font)
