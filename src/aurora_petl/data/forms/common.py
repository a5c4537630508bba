"""What the forms share: recognising, columns by name, splits by place, and one line on what was read."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import partial
from typing import Any

import numpy as np

from ...errors import AuroraError, did_you_mean, short
from ..folder_rows import item_row
from ..items import SPLITS, Item, in_splits
from ..kinds import CLIP_SUFFIXES
from ..places import Files
from ..reading import Raw, RowReader
from ..rows import ImageTextDataset, brief
from ..source import Source
from ..splits import WORDS, divided, named_split, with_splits, with_validation

IMAGE_COLUMNS = ("file_name", "filepath", "image", "filename", "image_path", "img_path", "file", "path")
CAPTION_COLUMNS = ("caption", "captions", "text", "title", "prompt")
_MEND = "name the file or folder that is this split, as in files.{0}=NAME, or name none and have at least 3 pictures"


@dataclass(frozen=True)
class Look:
    """What a form sees in a source: the files that show that it is of the form, or none; then ``almost`` may say what
    it lacks, for a refusal."""

    shown_by: Sequence[str] = ()
    almost: str = ""
    more: dict[str, Any] = field(default_factory=dict)  # what reading needs not look for again


def tables(source: Source, *suffixes: str) -> list[str]:
    """The files with one of these suffixes that may hold rows: those that the options ``rows``, ``train``,
    ``validation`` or ``test`` name, or all."""
    wanted = source.options_of("rows") + [name for split in SPLITS for name in source.options_of(split)]
    held = [name for name in source.visible if name.lower().endswith(suffixes)]
    return [name for name in held if any(_matches(name, pattern) for pattern in wanted)] if wanted else held


def splits_of(source: Source, names: Iterable[str]) -> dict[str, str]:
    """The split of each file or folder by the options ``train``, ``validation`` and ``test``, which leave out what they
    do not name. Without these, by the words in each path; "" for all if there is one that tells none."""
    given = {split: source.options_of(split) for split in SPLITS}
    if not any(given.values()):
        told = {name: named_split(name) for name in names}
        return told if all(told.values()) else dict.fromkeys(told, "")
    found = {}
    for name in names:
        for split in SPLITS:
            if any(_matches(name, pattern) for pattern in given[split]):
                found[name] = split
                break
    return found


def _matches(name: str, pattern: str) -> bool:
    pattern = pattern.removeprefix("./").rstrip("/")
    return name == pattern or name.startswith(f"{pattern}/") or fnmatchcase(name, pattern)


def column(source: Source, key: str, known: Iterable[str], columns: Sequence[str], where: str) -> str:
    """The column that the option ``key`` names, or the first of the ``known`` names among the ``columns``, or "".

    Raises:
        AuroraError: if there is no column that the option names.
    """
    if not (named := source.option(key)):
        return next((name for name in known if name in columns), "")
    if named not in columns:
        near = did_you_mean(named, columns, "its columns are")
        raise AuroraError(f"{where}: no column {short(named)}, which files.{key} names; {near}")
    return named


def caption_column(source: Source, columns: Sequence[str], where: str) -> str:
    """The column of captions.

    Raises:
        AuroraError: if it is called otherwise than usual, and no option says how.
    """
    if found := column(source, "caption_column", CAPTION_COLUMNS, columns, where):
        return found
    raise AuroraError(
        f"{where}: no column {' or '.join(CAPTION_COLUMNS)} among {brief(', '.join(columns))}; name that of the "
        "captions, as in files.caption_column=NAME"
    )


def fields_of(source: Source, row: dict[str, Any], name: Any, caption: Any, split: str = "") -> dict[str, Any]:
    """A row in the words of ``captions.jsonl``, of a picture's or clip's ``name`` and its captions. The split is that
    of its column ``split``, or the one given."""
    clip = isinstance(name, str) and name.lower().endswith(CLIP_SUFFIXES)
    fields = {"clip" if clip else "image": name, "caption": caption}
    told = row.get(source.option("split_column", "split"))
    fields["split"] = WORDS.get(told.lower(), told) if isinstance(told, str) and told else told or split
    if own := source.option("id_column"):
        fields["id"] = row.get(own)
    return fields


def read_rows(
    source: Source,
    where: str,
    rows: Callable[[RowReader], Iterator[Raw]],
    *,
    text: str = "caption",
    anywhere: bool = False,
    by_picture: bool = False,
) -> ImageTextDataset:
    """The dataset of rows whose pictures are files.

    Args:
        where: what messages call the whole of the rows.
        rows: makes the rows, and notes with the reader what is no row.
        text: what messages call the captions.
        anywhere: see `RowReader`.
        by_picture: a made split keeps pictures of one id together otherwise.

    Raises:
        AuroraError: with the first few wrong rows and how many there are.
    """
    reader = source.reader(where, anywhere)
    items: Sequence[Item] = reader.captions(rows(reader), partial(item_row, roots=source.roots, column=text))
    if reader.missing and not items and not source.root:
        reader.problems[0] += f" ({reader.missing:,} such rows); if the pictures lie elsewhere, give --root FOLDER"
    reader.settle(items)
    return finished(source, where, items, reader.files, clips=reader.clips, by_picture=by_picture)


def finished(
    source: Source,
    where: str,
    items: Sequence[Item],
    files: Files,
    *,
    clips: bool = False,
    by_picture: bool = False,
) -> ImageTextDataset:
    """The dataset of checked items. Training rows alone are split in three by hash; of training and test rows alone the
    training rows give a validation split."""
    made = ""
    named = {item.split for item in items}
    if named == {"train"}:
        items, named = in_splits(items, np.full(len(items), -1)), {""}
    groups = (item.image if by_picture else item.id for item in items)
    if named == {""}:
        items, made = divided(items, groups), "; splits are made by hash"
    elif named == {"train", "test"}:
        items, made = with_validation(items, groups), "; validation is made of train"
    items = with_splits(items, where)
    counts = dict.fromkeys(SPLITS, 0)
    captions = 0
    for item in items:
        counts[item.split] += 1
        captions += len(item.captions)
    each = ", ".join(f"{split} {count:,}" for split, count in counts.items() if count)
    media = counted(len(items), "clip" if clips else "picture")
    note = f"{media}, {counted(captions, 'caption')} ({each}{made})"
    mend = _MEND.format(next((split for split, count in counts.items() if not count), "test"))
    return ImageTextDataset(source.title, items, files, where, clips, source.broken, note, mend)


def counted(count: int, what: str) -> str:
    """``1 picture``, ``2 pictures``."""
    return f"{count:,} {what}{'' if count == 1 else 's'}"
