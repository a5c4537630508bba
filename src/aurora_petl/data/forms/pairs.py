"""Pictures with their captions beside them, as kohya's scripts have them: ``a.jpg`` and ``a.txt`` or ``a.caption``.
Each line that is not blank is a caption; of ``a.json``, as img2dataset leaves it, the column of captions counts.
Folders train, validation and test are splits."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

from ...files import parse_json
from ..items import Item
from ..kinds import CLIP_SUFFIXES, is_media
from ..reading import Raw, RowReader
from ..rows import ImageTextDataset, brief
from ..source import Source
from .common import Look, OwnDataset, counted, fields_of, read_rows, splits_of, texts_in

_TEXTS = (".txt", ".caption", ".json")  # the first wins where a picture has several


def look(source: Source) -> Look:
    """Whether a picture has such a file beside it."""
    media = [name for name in source.visible if is_media(name)]
    texts: dict[str, str] = {}
    for suffix in reversed(_TEXTS):
        texts |= {name[: -len(suffix)]: name for name in source.visible if name.lower().endswith(suffix)}
    of_media = {name: texts.get(os.path.splitext(name)[0], "") for name in media}
    described = next((text for text in of_media.values() if text.endswith(".json")), "")
    if described and not _captions(source, described):  # it says something else about the picture
        of_media = {name: "" if text.endswith(".json") else text for name, text in of_media.items()}
    if any(of_media.values()):
        return Look([text for text in of_media.values() if text], more=of_media)
    if not media:
        return Look()
    first, base = brief(media[0]), brief(os.path.splitext(media[0])[0])
    count = counted(len(media), "picture")
    lacks = f"{count} without captions; put a text beside each ({base}.txt for {first}), or write captions.jsonl"
    return Look(almost=lacks, more=of_media)


def read(source: Source, look: Look) -> OwnDataset:
    """The dataset."""

    def rows(reader: RowReader) -> Iterator[Raw]:
        folders = {name: name.rpartition("/")[0] for name in look.more}
        splits = splits_of(source, dict.fromkeys(folders.values()))
        for name, text in look.more.items():
            if folders[name] not in splits:
                continue
            if not text:
                if source.absent is None:
                    lacking = f"{os.path.splitext(name)[0]}{_TEXTS[0]}"
                    said = f"there is no such file beside {brief(name)}; write its caption in it"
                    reader.problem(Raw(source.where(lacking), 1, {}), said)
                continue
            if text.endswith(".json"):
                lines = [(1, _captions(source, text))]
            else:
                lines = [(n, line) for n, line in enumerate(source.text(text).splitlines(), 1) if line.strip()]
            for number, line in lines or [(1, "")]:
                fields = fields_of(source, {}, name, {"caption": line}, splits[folders[name]])
                yield Raw(source.where(text), number, fields)

    return read_rows(source, source.title, rows)


def _captions(source: Source, name: str) -> Any:
    """What the .json beside a picture has for captions; None if it has none."""
    value = parse_json(source.text(name), source.where(name))
    texts = texts_in(source, list(value)) if isinstance(value, dict) else None
    return texts.of(value).get("caption") if texts else None


def read_bare(source: Source, look: Look) -> ImageTextDataset:
    """Pictures that have no captions, or clips where there are no pictures, as rows of no split."""
    clips = [name for name in look.more if name.lower().endswith(tuple(CLIP_SUFFIXES))]
    pictures = [name for name in look.more if name not in set(clips)]
    items = [Item(name, (), name, "", line) for line, name in enumerate(pictures or clips, 1)]
    note = f"reads {counted(len(items), 'picture' if pictures else 'clip')} without captions"
    if pictures and clips:
        note += f"; {counted(len(clips), 'clip')} left out, such as {brief(clips[0])}"
    return ImageTextDataset(source.title, items, source.files, source.path.name, not pictures, source.broken, note)
