"""The same pictures with the same captions in every form that people keep them in."""

from __future__ import annotations

import csv
import io
import json
import shutil
import tarfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.helpers.pictures import COLOURS, SHAPES, draw

SPLITS = ("train", "validation", "test")


@dataclass(frozen=True)
class Example:
    """A picture ``data``, its file's ``name``, two captions and a split."""

    name: str
    data: bytes
    captions: tuple[str, str]
    split: str


def examples(count: int = 60) -> list[Example]:
    """Pictures that differ, 3 of 5 of them training ones. Captions have commas, quotes and letters with accents."""
    made = []
    for number in range(count):
        shape, colour = SHAPES[number % 4], list(COLOURS)[number // 4 % 6]
        data = io.BytesIO()
        draw(shape, colour, 16 + number).save(data, "PNG")
        captions = (f"a {colour} {shape}, No. {number}", f'"{shape}" à la {colour} {number}')
        split = ("train", "train", "validation", "train", "test")[number % 5]
        made.append(Example(f"{number:03}.png", data.getvalue(), captions, split))
    return made


def write(path: Path, data: bytes | str) -> None:
    """A file in a folder that is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data if isinstance(data, bytes) else data.encode())


def lines(rows: Iterable[dict[str, Any]]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def pack(path: Path, members: Iterable[tuple[str, bytes]]) -> Path:
    """A plain tar."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def by_split(made: list[Example]) -> Iterator[tuple[str, list[Example]]]:
    for split in SPLITS:
        yield split, [example for example in made if example.split == split]


def own(path: Path, made: list[Example]) -> Path:
    rows = [{"image": e.name, "caption": list(e.captions), "split": e.split} for e in made]
    write(path / "captions.jsonl", lines(rows))
    for example in made:
        write(path / example.name, example.data)
    return path


def imagefolder(path: Path, made: list[Example]) -> Path:
    """``metadata.csv`` in a folder for each split, a caption a row."""
    for split, part in by_split(made):
        table = io.StringIO()
        rows = csv.writer(table)
        rows.writerow(["file_name", "text"])
        for example in part:
            rows.writerows([f"images/{example.name}", caption] for caption in example.captions)
            write(path / split / "images" / example.name, example.data)
        write(path / split / "metadata.csv", table.getvalue())
    return path


def imagefolder_whole(path: Path, made: list[Example]) -> Path:
    """One ``metadata.jsonl`` above the folders of the splits, with a list of captions."""
    rows = [{"file_name": f"{e.split}/{e.name}", "captions": list(e.captions)} for e in made]
    write(path / "metadata.jsonl", lines(rows))
    for example in made:
        write(path / example.split / example.name, example.data)
    return path


def coco(path: Path, made: list[Example]) -> Path:
    names = {"train": "train2017", "validation": "val2017", "test": "test2017"}
    for split, part in by_split(made):
        images = [{"id": n, "file_name": e.name, "height": 1} for n, e in enumerate(part, 7)]
        rows = [
            {"id": n, "image_id": number, "caption": caption}
            for caption_number in range(2)
            for n, number in enumerate(range(7, 7 + len(part)))
            for caption in [part[number - 7].captions[caption_number]]
        ]
        value = {"info": {}, "licenses": [], "images": images, "annotations": rows}
        write(path / f"annotations/captions_{names[split]}.json", json.dumps(value))
        write(path / f"annotations/instances_{names[split]}.json", json.dumps({"images": images, "annotations": []}))
        for example in part:
            write(path / names[split] / example.name, example.data)
    return path


def open_clip(path: Path, made: list[Example]) -> Path:
    """Tab separated tables of a split each, with absolute paths."""
    for split, part in by_split(made):
        table = io.StringIO()
        rows = csv.writer(table, delimiter="\t")
        rows.writerow(["filepath", "title"])
        for example in part:
            place = path / "pictures" / example.name
            write(place, example.data)
            rows.writerows([str(place.absolute()), caption] for caption in example.captions)
        write(path / f"{split}.tsv", table.getvalue())
    return path


def json_list(path: Path, made: list[Example]) -> Path:
    """As BLIP's and ALBEF's annotations are: a list in JSON for each split; pictures in another folder."""
    for split, part in by_split(made):
        write(path / f"{split}.json", json.dumps([{"image": e.name, "caption": list(e.captions)} for e in part]))
        for example in part:
            write(path / "images" / example.name, example.data)
    return path


def json_by_name(path: Path, made: list[Example]) -> Path:
    """Captions by the names of files, which is all that there is: the splits are told by options or folders."""
    for split, part in by_split(made):
        write(path / f"captions_{split}.json", json.dumps({e.name: list(e.captions) for e in part}))
        for example in part:
            write(path / example.name, example.data)
    return path


def karpathy(path: Path, made: list[Example]) -> Path:
    """Karpathy's JSON, as it is there for Flickr8k."""
    rows = [
        {
            "filename": e.name,
            "sentids": [2 * n, 2 * n + 1],
            "imgid": n,
            "sentences": [{"tokens": caption.split(), "raw": caption, "imgid": n} for caption in e.captions],
            "split": e.split.replace("validation", "val"),
        }
        for n, e in enumerate(made)
    ]
    write(path / "dataset_mine.json", json.dumps({"images": rows, "dataset": "mine"}))
    for example in made:
        write(path / "images" / example.name, example.data)
    return path


def token(path: Path, made: list[Example]) -> Path:
    """Flickr30K's own lines: a file's name, the number of its caption, a tab, the caption."""
    for split, part in by_split(made):
        rows = [f"{e.name}#{n}\t{caption}\n" for e in part for n, caption in enumerate(e.captions)]
        write(path / f"results_{split}.token", "".join(rows))
        for example in part:
            write(path / "pictures" / example.name, example.data)
    return path


def excel(path: Path, made: list[Example]) -> Path:
    """What Excel saves as Unicode text: UTF-16, tabs, quotes; names of pictures without their suffix."""
    table = io.StringIO()
    rows = csv.writer(table, delimiter="\t")
    rows.writerow(["image_name", "description", "split"])
    for example in made:
        rows.writerows([example.name.removesuffix(".png"), caption, example.split] for caption in example.captions)
        write(path / "pictures" / example.name, example.data)
    write(path / "captions.csv", table.getvalue().encode("utf-16"))
    return path


def img2dataset(path: Path, made: list[Example]) -> Path:
    """As img2dataset writes files: a folder with .png and .json, and a parquet of notes beside it."""
    for split, part in by_split(made):
        for example in part:
            place = path / split / example.name
            write(place, example.data)
            write(place.with_suffix(".json"), json.dumps({"caption": list(example.captions), "url": "x", "sha256": ""}))
        write(path / f"{split}.parquet", b"PAR1")
        write(path / f"{split}_stats.json", json.dumps({"count": len(part), "status_dict": {"success": len(part)}}))
    return path


def pairs(path: Path, made: list[Example]) -> Path:
    for example in made:
        write(path / example.split / example.name, example.data)
        write((path / example.split / example.name).with_suffix(".txt"), "\r\n".join(("", *example.captions)))
    return path


def webdataset(path: Path, made: list[Example]) -> Path:
    """As img2dataset writes them, .json, .png, .txt; three shards in a folder for each split."""
    for split, part in by_split(made):
        for shard in range(3):
            members = []
            for example in part[shard::3]:
                key = example.name.removesuffix(".png")
                members.append((f"{key}.json", json.dumps({"caption": "not this", "key": key}).encode()))
                members.append((f"{key}.png", example.data))
                members.append((f"{key}.txt", "\n".join(example.captions).encode()))
            pack(path / split / f"{shard:05}.tar", members)
            write(path / split / f"{shard:05}_stats.json", "{}")
    return path


def webdataset_json(path: Path, made: list[Example]) -> Path:
    """Captions in .json, the tar in no order."""
    for split, part in by_split(made):
        members = [(f"./in/{e.name}", e.data) for e in part]
        members += [
            (f"./in/{e.name.removesuffix('.png')}.json", json.dumps({"captions": e.captions}).encode())
            for e in reversed(part)
        ]
        pack(path / f"{split}-0.tar", members)
    return path


def _rows(part: list[Example]) -> dict[str, list[Any]]:
    return {
        "image": [{"bytes": e.data, "path": e.name} for e in part],
        "caption": [list(e.captions) for e in part],
    }


def parquet(path: Path, made: list[Example]) -> Path:
    import datasets

    for split, part in by_split(made):
        (path / "data").mkdir(parents=True, exist_ok=True)
        table = datasets.Dataset.from_dict(_rows(part)).cast_column("image", datasets.Image())
        table.to_parquet(path / f"data/{split}-00000-of-00001.parquet")
    return path


def saved(path: Path, made: list[Example]) -> Path:
    import datasets

    tables = {split: datasets.Dataset.from_dict(_rows(part)) for split, part in by_split(made)}
    datasets.DatasetDict(tables).cast_column("image", datasets.Image()).save_to_disk(path)
    return path


WRITERS: dict[str, Callable[[Path, list[Example]], Path]] = {
    "own": own,
    "imagefolder": imagefolder,
    "imagefolder, whole": imagefolder_whole,
    "coco": coco,
    "table": open_clip,
    "table, JSON": json_list,
    "table, by name": json_by_name,
    "table, Karpathy's": karpathy,
    "table, Flickr's": token,
    "table, Excel's": excel,
    "pairs": pairs,
    "pairs, img2dataset's": img2dataset,
    "webdataset": webdataset,
    "webdataset, json": webdataset_json,
    "parquet": parquet,
    "saved": saved,
}
LIBRARY = ("parquet", "saved")  # forms that the library datasets reads


def tar_of(folder: Path) -> Path:
    """The same data as a tar of the folder, which is removed."""
    path = folder.with_suffix(".tar")
    with tarfile.open(path, "w") as archive:
        archive.add(folder, ".")
    shutil.rmtree(folder)
    return path
