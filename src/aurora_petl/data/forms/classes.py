"""Pictures by class: folders that are named after what their pictures show, ``cats/1.jpg`` or ``train/cats/1.jpg``. The
captions are made of templates, and all pictures of a class are right answers for each of them."""

from __future__ import annotations

from collections.abc import Iterator

from ...errors import AuroraError, short
from ..items import SPLIT_WORDS
from ..kinds import is_media
from ..reading import Raw, RowReader
from ..rows import brief
from ..source import Source
from .common import Look, OwnDataset, fields_of, read_rows, splits_of

TEMPLATE = "a photo of {}"


def look(source: Source) -> Look:
    """Whether all pictures lie in two or more folders, those of splits left out."""
    media = [name for name in source.visible if is_media(name)]
    classes = {name: _class(name) for name in media}
    if len(set(classes.values())) > 1 and all(classes.values()):
        return Look(media, more=classes)
    return Look()


def _class(name: str) -> str:
    folders = name.split("/")[:-1]
    if folders and folders[0].lower() in SPLIT_WORDS:
        folders = folders[1:]
    return folders[0] if folders else ""


def read(source: Source, look: Look) -> OwnDataset:
    """The dataset."""
    templates = source.options_of("templates") or [TEMPLATE]
    if wrong := [template for template in templates if "{}" not in template]:
        raise AuroraError(f"files.templates has {short(wrong[0])}, which lacks {{}} for the class, as in '{TEMPLATE}'")

    def rows(reader: RowReader) -> Iterator[Raw]:
        folders = {name: name.partition("/")[0] if name.count("/") > 1 else "" for name in look.more}
        splits = splits_of(source, dict.fromkeys(folders.values()))
        for number, (name, label) in enumerate(look.more.items(), 1):
            if folders[name] not in splits:
                continue
            words = label.replace("_", " ").replace("-", " ").strip() or label
            captions = [template.replace("{}", words) for template in templates]
            fields = fields_of(source, {}, name, {"caption": captions}, splits[folders[name]])
            yield Raw(source.title, number, {**fields, "id": label})

    labels = sorted(set(look.more.values()))
    named = brief(", ".join(labels[:5])) + (", ..." if len(labels) > 5 else "")
    dataset = read_rows(source, source.title, rows, by_picture=True)
    dataset.note += f"; {len(labels):,} classes: {named}"
    return dataset
