"""Sheets of pictures with words beside them, drawn by Pillow."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib import font_manager
from PIL import Image, ImageDraw, ImageFont, ImageOps

from ..files import whole

_THUMB, _GAP, _QUERY, _LINE = 88, 8, 260, 18
_GREEN, _GREY, _INK, _PALE = (22, 140, 60), (205, 205, 205), (25, 25, 25), (120, 120, 120)


@dataclass
class Hit:
    """A retrieved picture or text."""

    image: Image.Image | None
    text: str | None
    correct: bool
    score: float


@dataclass
class GalleryQuery:
    """A text or a picture, with what was found before and after tuning, best first."""

    text: str | None
    image: Image.Image | None
    before: list[Hit]
    after: list[Hit]


def query_gallery(path: Path, queries: Sequence[GalleryQuery]) -> None:
    """Draw queries with their hits before and after, right ones in a green frame with a tick."""
    regular, bold = load_font(13), load_font(14, bold=True)
    count = max((len(hits) for query in queries for hits in (query.before, query.after)), default=1)
    block = count * (_THUMB + _GAP)
    middle, right = _QUERY + 2 * _GAP, _QUERY + block + 5 * _GAP
    row = _THUMB + 2 * _GAP
    width = right + block + _GAP
    height = 44 + 34 * len({query.text is None for query in queries}) + row * len(queries) + 30
    sheet = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(sheet)
    top, kind = 8, None
    for query in sorted(queries, key=lambda q: q.text is None):
        if (query.text is None) != kind:
            kind = query.text is None
            title = "Picture queries: texts found" if kind else "Text queries: pictures found"
            for x, text in ((_GAP, title), (middle, "before (zero-shot)"), (right, "after tuning")):
                draw.text((x, top + 8), text, _INK, bold)
            top += 34
        if query.text is not None:
            for n, line in enumerate(wrap_text(query.text, _QUERY, regular, 5)):
                draw.text((_GAP, top + 4 + n * _LINE), line, _INK, regular)
        if query.image is not None:
            sheet.paste(_thumbnail(query.image), (_GAP, top))
        for x, hits in ((middle, query.before), (right, query.after)):
            for n, hit in enumerate(hits):
                _draw_hit(sheet, draw, hit, n, x, top, block, regular, bold)
        top += row
        draw.line((_GAP, top - _GAP, width - _GAP, top - _GAP), (235, 235, 235))
    draw.text((_GAP, height - 24), "Best first. Green frame and tick: the right answer.", _PALE, regular)
    with whole(path) as partial:
        sheet.save(partial, format="PNG", optimize=True)


@dataclass
class AnsweredQuestion:
    """A question about a picture or a frame, its right answer ("" if not known), and what was answered before and after
    tuning, with whether that is right."""

    image: Image.Image
    question: str
    right: str
    before: tuple[str, bool]
    after: tuple[str, bool]


def answer_gallery(path: Path, questions: Sequence[AnsweredQuestion]) -> None:
    """Draw questions in rows: picture, question, right answer, answers before and after, right ones ticked in green."""
    regular, bold = load_font(13), load_font(14, bold=True)
    lefts, ends = (_THUMB + 3 * _GAP, _THUMB + 280, _THUMB + 430, _THUMB + 610), _THUMB + 790
    row = _THUMB + 2 * _GAP
    sheet = Image.new("RGB", (ends, 44 + row * len(questions) + 30), "white")
    draw = ImageDraw.Draw(sheet)
    for x, title in zip(lefts, ("question", "right answer", "before (zero-shot)", "after tuning"), strict=True):
        draw.text((x, 14), title, _INK, bold)
    for n, asked in enumerate(questions):
        top = 44 + n * row
        sheet.paste(_thumbnail(asked.image), (_GAP, top))
        cells = [(asked.question, False), (asked.right, False), asked.before, asked.after]
        for x, end, (text, right) in zip(lefts, (*lefts[1:], ends), cells, strict=True):
            indent = 18 if right else 0
            if right:
                _tick(draw, x, top + 5, 12)
            font = bold if right else regular
            for line, words in enumerate(wrap_text(text, end - x - indent - _GAP, font, 5)):
                draw.text((x + indent, top + 2 + line * _LINE), words, _GREEN if right else _INK, font)
        draw.line((_GAP, top + row - _GAP, ends - _GAP, top + row - _GAP), (235, 235, 235))
    draw.text((_GAP, sheet.height - 24), "Green with a tick: the right answer.", _PALE, regular)
    with whole(path) as partial:
        sheet.save(partial, format="PNG", optimize=True)


def _draw_hit(sheet, draw, hit: Hit, n: int, x: int, top: int, block: int, regular, bold) -> None:
    if hit.image is None:
        line = wrap_text(hit.text or "", block - 24, bold if hit.correct else regular, 1)[0]
        y = top + n * _LINE
        if hit.correct:
            _tick(draw, x, y + 3, 12)
        draw.text((x + 18, y), line, _GREEN if hit.correct else _INK, bold if hit.correct else regular)
        return
    left = x + n * (_THUMB + _GAP)
    sheet.paste(_thumbnail(hit.image), (left, top))
    box = (left - 2, top - 2, left + _THUMB + 1, top + _THUMB + 1)
    draw.rectangle(box, outline=_GREEN if hit.correct else _GREY, width=4 if hit.correct else 1)
    if hit.correct:
        draw.rectangle((left + _THUMB - 22, top, left + _THUMB - 1, top + 21), fill=_GREEN)
        _tick(draw, left + _THUMB - 18, top + 5, 12, "white")


def _tick(draw: ImageDraw.ImageDraw, x: int, y: int, size: int, colour: str | tuple[int, int, int] = _GREEN) -> None:
    draw.line([(x, y + size * 0.55), (x + size * 0.4, y + size * 0.95), (x + size, y)], colour, 3)


def _thumbnail(image: Image.Image) -> Image.Image:
    return ImageOps.pad(image, (_THUMB, _THUMB), color="white")


def wrap_text(text: str, width: int, font: Any, most: int) -> list[str]:
    """Lines of at most ``width`` pixels, the last one cut with an ellipsis."""
    rest, lines = " ".join(text.split()), list[str]()
    while rest and len(lines) < most:
        if font.getlength(rest) <= width:
            return [*lines, rest]
        end = "..." if len(lines) == most - 1 else ""
        fit = bisect_right(range(1, len(rest)), width, key=lambda n: font.getlength(rest[:n] + end)) or 1
        cut = rest.rfind(" ", 0, fit + 1)
        cut = cut if cut > fit // 2 else fit  # a long word is broken rather than leave most of its line empty
        lines.append(rest[:cut].rstrip() + end)
        rest = rest[cut:].lstrip()
    return lines or [""]


def load_font(size: int, bold: bool = False) -> Any:
    found = font_manager.findfont(
        font_manager.FontProperties(family="DejaVu Sans", weight="bold" if bold else "normal")
    )
    return ImageFont.truetype(found, size)
