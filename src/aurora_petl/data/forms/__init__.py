"""Pictures with captions as people have them: the form is recognised by looking, and then read by its module."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Iterator, Mapping
from importlib import import_module
from itertools import product
from pathlib import Path
from typing import Any

from ...errors import AuroraError, did_you_mean, short
from ..folder import read_own
from ..rows import ImageTextDataset, brief
from ..source import Source
from .common import Look, OwnDataset
from .hub import is_id
from .pairs import read_bare
from .table import FORMS, OPTIONS, Form

__all__ = ["FORMS", "Form", "is_pattern", "may_be_data", "read_beside", "read_data"]

_TABLES = (".json", ".jsonl", ".csv", ".tsv", ".txt", ".token", ".parquet")  # that may be named in their folder's place
_BRACES = re.compile(r"\{([^{}]*)\}")
_MOST_SHARDS = 1_000_000


def may_be_data(name: str) -> bool:
    """Whether a name is a folder or file here, a pattern of files, or an id of the hub."""
    return os.path.exists(name) or is_pattern(name) or is_id(name)


def is_pattern(name: str) -> bool:
    """Whether a name stands for several files: ``shards/{00000..00099}.tar``, ``shards/*.tar``."""
    return not os.path.exists(name) and any(mark in name for mark in "{*?[")


def read_data(
    name: str,
    root: str | Path | None = None,
    options: Mapping[str, Any] | None = None,
    broken: str = "stop",
    bare: bool = False,
) -> OwnDataset:
    """The dataset in a folder, a tar, a table, shards or on the hub, whichever form it is of.

    Args:
        name: see `may_be_data`.
        root: the folder that names of pictures are relative to, and absolute ones lie in, if it is another.
        options: ``files`` of a recipe.
        broken: what `Dataset.check` does with what does not decode.
        bare: take pictures without captions for rows without any, where nothing may be meant as captions.

    Raises:
        AuroraError: if it is of no form, with the nearest one; or with the first few wrong rows.
    """
    options = options or {}
    if wrong := next((key for key in options if key not in OPTIONS), None):
        raise AuroraError(f"files has no key {short(wrong)}; {did_you_mean(wrong, OPTIONS, 'its keys are')}")
    source = _source(name, Path(root) if root else None, options, broken)
    if (asked := source.option("form")) and asked not in FORMS:
        raise AuroraError(f"files.form is {brief(asked)!r}; {did_you_mean(asked, FORMS)}")
    if not os.path.exists(name) and not source.named:
        return _read("hub", source, Look())
    almost: dict[str, Look] = {}
    for key in [asked] if asked else FORMS:
        look = _module(key).look(source)
        if look.shown_by:
            return _read(key, source, look)
        if look.almost:
            almost[key] = look
    if bare and [*almost] == ["pairs"]:
        return read_bare(source, almost["pairs"])
    if source.options.get("rows") and not asked:
        return read_own(source)  # which says what there is in the place of the file
    raise AuroraError(_refusal(source, asked, almost))


def read_beside(folder: Path, absent: list[str]) -> ImageTextDataset | None:
    """The captions of a folder's own pictures in any form but ours; None if it has none.

    Args:
        absent: takes the names of media that are missing, whose rows are left out.

    Raises:
        AuroraError: with the first few wrong rows.
    """
    source = Source(folder, absent=absent)
    for key, form in FORMS.items():
        if form.beside and (look := _module(key).look(source)).shown_by:
            dataset = _read(key, source, look)
            return dataset if isinstance(dataset, ImageTextDataset) else None
    return None


def _read(key: str, source: Source, look: Look) -> Any:
    if source.root and not FORMS[key].names_files:
        raise AuroraError(
            f"{source.path}: --root is for tables that name the files of pictures, but this is {FORMS[key].title}; "
            "leave it out"
        )
    dataset = _module(key).read(source, look)
    if dataset.note:
        dataset.note = f"reads {FORMS[key].title}: {dataset.note}"
    return dataset


def _module(key: str) -> Any:
    return import_module(f"{__name__}.{FORMS[key].module}")


def _source(name: str, root: Path | None, options: Mapping[str, Any], broken: str) -> Source:
    path = Path(name)
    if is_pattern(name):
        return _of_pattern(name, root, options, broken)
    if path.is_file() and name.lower().endswith(_TABLES):
        return Source(path.parent, root, {**options, "rows": path.name}, broken, named=(path.name,))
    if path.is_file() and path.suffix != ".tar":
        mend = "unpack it" if path.suffix in (".gz", ".tgz", ".zip", ".zst", ".bz2", ".xz") else "give its folder"
        raise AuroraError(f"{path} is none of a folder, a .tar, or a table ({', '.join(_TABLES)}); {mend}")
    return Source(path, root, options, broken)


def _of_pattern(name: str, root: Path | None, options: Mapping[str, Any], broken: str) -> Source:
    found = [path for part in _unfolded(name) for path in (sorted(glob.glob(part)) if _is_glob(part) else [part])]
    if lacking := [path for path in found if not os.path.isfile(path)]:
        raise AuroraError(
            f"{name}: {len(lacking):,} of its {len(found):,} files are not there, the first is {brief(lacking[0])}"
        )
    if not found:
        raise AuroraError(f"{name} fits no files")
    folder = os.path.commonpath([os.path.dirname(path) for path in found]) or "."
    named = tuple(os.path.relpath(path, folder) for path in found)
    return Source(Path(folder), root, options, broken, named=named)


def _is_glob(name: str) -> bool:
    return any(mark in name for mark in "*?[")


def _unfolded(name: str) -> Iterator[str]:
    """The names that braces stand for, as a shell unfolds them: ``{00..03}`` and ``{a,b}``."""
    parts = _BRACES.split(name)
    choices: list[list[str] | range] = []
    count = 1
    widths = []
    for inside in parts[1::2]:
        ends = inside.split("..")
        if len(ends) == 2 and all(end.isdecimal() for end in ends) and max(map(len, ends)) < 10:
            choices.append(range(int(ends[0]), int(ends[1]) + 1))
            widths.append(len(ends[0]))
        else:
            choices.append(inside.split(","))
            widths.append(0)
        count *= len(choices[-1])
    if count > _MOST_SHARDS:
        raise AuroraError(f"{name} stands for {count:,} files; at most {_MOST_SHARDS:,} are read")
    for chosen in product(*choices):
        made = [f"{value:0{width}}" if width else str(value) for value, width in zip(chosen, widths, strict=True)]
        yield "".join(part for pair in zip(parts[::2], [*made, ""], strict=True) for part in pair)


def _refusal(source: Source, asked: str, almost: Mapping[str, Look]) -> str:
    for key, look in almost.items():
        return f"{source.path} is nearest to {FORMS[key].title}: {look.almost}"
    if asked:
        return f"{source.path} is not {FORMS[asked].title}, which is shown by {FORMS[asked].shown_by}"
    held = source.visible
    near = f", such as {brief(held[0])}" if held else ""
    return (
        f"{source.path} holds no captions in a form that is known; it has {len(held):,} files{near}. Write "
        "captions.jsonl, or see docs/data.md for the forms"
    )
