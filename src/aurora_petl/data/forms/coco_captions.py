"""COCO's captions: JSON with ``images``, which have an ``id`` and a ``file_name``, and ``annotations``, which have an
``image_id`` and a ``caption``. Several such files are the splits that their names tell: ``captions_train2017.json``."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from ...errors import AuroraError, short
from ...files import parse_json
from ..reading import Raw, RowReader
from ..source import Source
from .common import Look, OwnDataset, fields_of, read_rows, splits_of, tables

_HEAD = 1 << 16  # bytes
_MOST = 1000  # files that are looked at: there may be one for each picture


def look(source: Source) -> Look:
    """Whether there are such files, and no other JSON that looks alike."""
    alike = [name for name in tables(source, ".json")[:_MOST] if _begins(source.data(name, _HEAD))]
    found = [name for name in alike if b'"caption"' in source.data(name)]
    almost = f"{alike[0]} is COCO's, but its annotations have no caption; give captions_*.json" if alike else ""
    return Look(found, almost)


def _begins(head: bytes) -> bool:
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    return text.startswith(b"{") and (b'"images"' in text or b'"annotations"' in text)


def read(source: Source, look: Look) -> OwnDataset:
    """The dataset."""
    where = source.where(look.shown_by[0]) if len(look.shown_by) == 1 else source.title

    def rows(reader: RowReader) -> Iterator[Raw]:
        for name, split in splits_of(source, look.shown_by).items():
            yield from _rows(source, name, split, reader)

    return read_rows(source, where, rows, anywhere=True)


def _rows(source: Source, name: str, split: str, reader: RowReader) -> Iterator[Raw]:
    where = source.where(name)
    images, annotations = _lists(source, name)
    by_id: dict[int | str, Any] = {}
    for number, image in enumerate(images, 1):
        if not isinstance(image, dict) or not isinstance(image.get("id"), (int, str)):
            reader.problem(Raw(where, number, {}), 'of "images": it has no "id"')
        elif by_id.setdefault(image["id"], image) is not image:
            reader.problem(Raw(where, number, {}), f'of "images": the id {short(image["id"])} stands there twice')
    for number, row in enumerate(annotations, 1):
        key = row.get("image_id") if isinstance(row, dict) else None
        image = by_id.get(key) if isinstance(key, (int, str)) else None
        if image is None:
            reader.problem(Raw(where, number, {}), f'of "annotations": none of "images" has its image_id {short(key)}')
        elif "caption" not in row:
            reader.problem(Raw(where, number, {}), 'of "annotations": it has no "caption"')
        elif "file_name" not in image:
            reader.problem(Raw(where, number, {}), f'of "annotations": its image {short(key)} has no "file_name"')
        else:
            yield Raw(where, number, fields_of(source, image, image["file_name"], {"caption": row["caption"]}, split))


def _lists(source: Source, name: str) -> tuple[list[Any], list[Any]]:
    where = source.where(name)
    try:
        value = parse_json(source.text(name), where)
    except AuroraError as error:
        why = error.__cause__
        if not isinstance(why, json.JSONDecodeError):
            raise
        raise AuroraError(
            f"{where}, line {why.lineno}: not JSON ({why.msg}); it may be cut off, copy it again"
        ) from error
    images, annotations = (value.get(key) if isinstance(value, dict) else None for key in ("images", "annotations"))
    if not isinstance(images, list) or not isinstance(annotations, list):
        raise AuroraError(f'{where} has no lists "images" and "annotations", as COCO\'s captions have')
    return images, annotations
