"""A contact sheet: the pictures that a query found, with their scores."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageOps

from ..files import whole
from ..report import load_font, wrap_text

MOST = 1000  # pictures or captions of a sheet
SIDE = 160  # pixels
_GAP, _LINE, _COLUMNS = 12, 18, 5
_INK, _PALE, _EDGE = (25, 25, 25), (120, 120, 120), (205, 205, 205)


def contact_sheet(
    path: Path, query: str | Image.Image, about: str, found: Sequence[tuple[Image.Image | None, float, str]]
) -> None:
    """Draw what ``query`` found, best first, into a PNG.

    Args:
        about: a line on what the scores are.
        found: picture, score and name; without a picture (a caption) a name has a line to itself.
    """
    small, bold = load_font(12), load_font(15, bold=True)
    pictures = bool(found) and found[0][0] is not None
    columns = max(3, min(_COLUMNS, len(found))) if pictures else _COLUMNS
    width = _GAP + columns * (SIDE + _GAP)
    head = _GAP + (SIDE if isinstance(query, Image.Image) else _LINE) + 6 + _LINE + _GAP
    cell = SIDE + _GAP + 2 * _LINE if pictures else _LINE + 6
    rows = -(-len(found) // columns) if pictures else len(found)
    sheet = Image.new("RGB", (width, head + rows * cell + _GAP), "white")
    draw = ImageDraw.Draw(sheet)
    if isinstance(query, Image.Image):
        _paste(sheet, draw, query, _GAP, _GAP)
    else:
        draw.text((_GAP, _GAP), wrap_text(query, width - 2 * _GAP, bold, 1)[0], _INK, bold)
    draw.text((_GAP, head - _GAP - _LINE), wrap_text(about, width - 2 * _GAP, small, 1)[0], _PALE, small)
    for n, (image, score, name) in enumerate(found):
        if image is None:
            line = f"{n + 1}.  {score:.3f}  {name}"
            draw.text((_GAP, head + n * cell), wrap_text(line, width - 2 * _GAP, small, 1)[0], _INK, small)
            continue
        left, top = _GAP + n % columns * (SIDE + _GAP), head + n // columns * cell
        _paste(sheet, draw, image, left, top)
        draw.text((left, top + SIDE + 4), f"{n + 1}.  {score:.3f}", _INK, load_font(12, bold=True))
        draw.text((left, top + SIDE + 4 + _LINE), wrap_text(name, SIDE, small, 1)[0], _PALE, small)
    with whole(path) as partial:
        sheet.save(partial, format="PNG", optimize=True)


def _paste(sheet: Image.Image, draw: ImageDraw.ImageDraw, image: Image.Image, left: int, top: int) -> None:
    sheet.paste(ImageOps.pad(image, (SIDE, SIDE), color="white"), (left, top))
    draw.rectangle((left - 1, top - 1, left + SIDE, top + SIDE), outline=_EDGE)
