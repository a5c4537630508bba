"""Data that is wrong: the `aurora` command stops with one line before it writes anything."""

from pathlib import Path

import pytest

from tests.helpers.commands import shell
from tests.helpers.pictures import draw, make_folder


def with_line(folder: Path, number: int, line: str) -> None:
    file = folder / "captions.jsonl"
    lines = file.read_text().splitlines()
    lines[number - 1] = line
    file.write_text("\n".join(lines))


def without_a_picture(folder: Path) -> None:
    (folder / "images/3.png").unlink()


def with_a_truncated_jpeg(folder: Path) -> None:
    path = folder / "images/1.jpg"
    draw("circle", "green").save(path)
    path.write_bytes(path.read_bytes()[:-300])
    with_line(folder, 2, '{"image": "images/1.jpg", "caption": "x", "split": "validation"}')


def with_an_empty_caption(folder: Path) -> None:
    with_line(folder, 3, '{"image": "images/2.png", "caption": " ", "split": "train"}')


def with_a_line_of_python(folder: Path) -> None:
    with_line(folder, 5, "{'image': 'images/4.png'}")


def without_a_test_split(folder: Path) -> None:
    file = folder / "captions.jsonl"
    file.write_text(file.read_text().replace('"test"', '"train"'))


BROKEN = {
    without_a_picture: "mine/captions.jsonl, line 4: picture images/3.png is missing from ",
    with_a_truncated_jpeg: "mine/captions.jsonl, line 2: images/1.jpg: the picture is broken (",
    with_an_empty_caption: "mine/captions.jsonl, line 3: empty caption for images/2.png; write one or remove the row",
    with_a_line_of_python: "mine/captions.jsonl, line 5: not JSON (",
    without_a_test_split: "mine: no rows of split 'test' (it has train 18, validation 6); name it in",
}


@pytest.mark.parametrize("dry", [["--dry-run"], []])
@pytest.mark.parametrize("breaking", BROKEN, ids=lambda breaking: breaking.__name__)
def test_wrong_data_stops_before_anything_is_written(breaking, dry, refusal, tmp_path, here):
    folder = make_folder(tmp_path / "mine")
    breaking(folder)
    assert refusal("train", "--data", folder, "--out", here / "run", *dry).startswith(BROKEN[breaking])
    assert not list(here.iterdir())


def test_a_shell_sees_one_line_and_the_status(tmp_path):
    folder = make_folder(tmp_path / "mine")
    with_a_truncated_jpeg(folder)
    done = shell("train", "--data", folder)
    assert done.returncode == 1 and not done.stdout
    assert done.stderr.startswith(f"aurora: error: {BROKEN[with_a_truncated_jpeg]}") and done.stderr.count("\n") == 1
