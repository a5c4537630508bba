"""A user's own folder of pictures and captions, as it comes, and the line that refuses a wrong one."""

import json
import tarfile
from pathlib import Path

import pytest

from aurora_petl.data.folder import read_folder
from aurora_petl.errors import AuroraError
from tests.helpers.pictures import draw

GOOD = {"image": "a.png", "caption": "a red circle"}


def folder(path: Path, *rows, pictures=("a.png", "b.png", "c.png")) -> Path:
    """A dataset folder called ``mine``; rows are objects, or lines as they are."""
    made = path / "mine"
    made.mkdir()
    for name in pictures:
        (made / name).parent.mkdir(exist_ok=True)
        draw("circle", "red", 16).save(made / name)
    lines = [row if isinstance(row, (str, bytes)) else json.dumps(row) for row in rows]
    (made / "captions.jsonl").write_bytes(
        b"\n".join(line if isinstance(line, bytes) else line.encode() for line in lines)
    )
    return made


def table(path: Path, text: str) -> Path:
    made = folder(path)
    (made / "captions.jsonl").unlink()
    (made / "captions.csv").write_text(text)
    return made


def refusal(path: Path) -> str:
    """The one line of refusal."""
    with pytest.raises(AuroraError) as caught:
        read_folder(path)
    message = str(caught.value)
    assert "\n" not in message
    return message


def packed(path: Path, source: Path) -> Path:
    with tarfile.open(path, "w") as archive:
        for file in sorted(source.rglob("*")):
            archive.add(file, file.relative_to(source).as_posix(), recursive=False)
    return path
