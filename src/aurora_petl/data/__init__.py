"""Rows of pictures or clips with text: published benchmarks, embedded packs, and a user's own folders."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from ..errors import AuroraError, short
from .coco import read_coco
from .didemo import read_didemo
from .flickr30k import read_flickr30k
from .forms import is_pattern, may_be_data, read_data
from .msrvtt import read_msrvtt
from .msrvtt_qa import read_msrvtt_qa
from .packs import load_pack, pack_names
from .rows import ImageTextDataset, QuestionDataset
from .vqav2 import read_vqav2

__all__ = ["ImageTextDataset", "QuestionDataset", "READERS", "is_pattern", "load_dataset", "pack_names"]

# name -> what reads a benchmark's folder, called with root, files and broken; docs/benchmarks.md says what each wants
READERS: dict[str, Callable[[Path, Mapping[str, Any], str], Any]] = {
    "coco": read_coco,
    "flickr30k": read_flickr30k,
    "msrvtt": read_msrvtt,
    "msrvtt-7k": partial(read_msrvtt, split="7k"),
    "msrvtt-full": partial(read_msrvtt, split="full"),
    "didemo": read_didemo,
    "vqav2": read_vqav2,
    "vqav2-trainval": partial(read_vqav2, train_on_validation=True),
    "msrvtt-qa": read_msrvtt_qa,
}


def load_dataset(
    name_or_path: str | Path,
    root: str | Path | None = None,
    files: Mapping[str, Any] | None = None,
    broken: str = "stop",
    bare: bool = False,
) -> Any:
    """A published benchmark, an embedded pack, or a user's own data in one of `forms.FORMS`.

    Args:
        name_or_path: a benchmark of ``READERS``, a pack of `pack_names`, a folder, a ``.tar`` of one, a table, a
            pattern of shards, or a dataset's id on the hub.
        root: a benchmark's folder; of own data, the folder that pictures' names are relative to, if it is another.
        files: a benchmark's tables and media that are called otherwise, see `published.Published`; of own data, how
            they are to be read, see ``docs/data.md``.
        broken: ``stop`` at media that are missing from a benchmark or do not decode, or ``skip`` their rows.
        bare: take a folder's pictures that have no captions for rows without any, where they would be refused.

    Returns:
        An `ImageTextDataset` or a `QuestionDataset`.

    Raises:
        AuroraError: if there is no such dataset, or its rows are wrong.
    """
    name, files = str(name_or_path), files or {}
    packs = f"an embedded pack ({', '.join(pack_names())})"
    if not name:
        raise AuroraError(f"no data named; give --data FOLDER or {packs}")
    if name in READERS:
        if not root:
            raise AuroraError(f"{name} is a benchmark whose files you have; give their folder with --root FOLDER")
        return READERS[name](Path(root), files, broken)
    if name in pack_names():
        if root:
            raise AuroraError(f"--root is the folder of a benchmark ({', '.join(READERS)}), and {short(name)} is none")
        if files:
            raise AuroraError(
                f"files.{next(iter(files))} says how own data are read, and {name} is embedded; leave it out"
            )
        return load_pack(name)
    if may_be_data(name):
        return read_data(name, root, files, broken, bare)
    raise AuroraError(
        f"no dataset {short(name)}: it is neither {packs}, a benchmark ({', '.join(READERS)}) nor a folder, .tar or "
        "table here"
    )
