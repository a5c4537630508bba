"""The tutorials of the documentation: every command and snippet is run, one after the other, on small data. Hub ids are
folders of small models here, and trainings take few steps."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from transformers import BlipForQuestionAnswering

from aurora_petl.backbones import load_backbone
from aurora_petl.cli import main
from tests.helpers.families import make
from tests.helpers.pictures import COLOURS, draw, make_folder

DOCS = Path(__file__).parents[1] / "docs"
FEW = ["train.max_steps=2", "train.batch_size=6", "train.evaluations=1", "train.precision=fp32"]
BLOCK = re.compile(r"^```(sh|python)\n(.*?)^```", re.DOTALL | re.MULTILINE)


def blocks(page: str) -> list[tuple[str, str]]:
    return BLOCK.findall((DOCS / page).read_text("utf-8"))


def questions(folder: Path) -> None:
    make_folder(folder)
    rows = [json.loads(line) for line in (folder / "captions.jsonl").read_text().splitlines()]
    (folder / "captions.jsonl").unlink()
    asked = ({"question": "what colour is it?", "answer": row["caption"][0].split()[1]} for row in rows)
    made = [{"image": row["image"], "split": row["split"], **own} for row, own in zip(rows, asked, strict=True)]
    (folder / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in made))


def clips(folder: Path) -> None:
    (folder / "videos").mkdir(parents=True)
    rows = []
    for number, colour in enumerate(COLOURS):
        frames: list[Image.Image] = [draw(shape, colour, 48) for shape in ("circle", "square")]
        frames[0].save(folder / f"videos/{number}.gif", save_all=True, append_images=frames[1:], duration=100)
        split = ("train", "train", "train", "train", "validation", "test")[number]
        rows.append({"clip": f"videos/{number}.gif", "caption": f"a {colour} circle, then a square", "split": split})
    (folder / "captions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def vqa_model(folder: Path) -> None:
    backbone = load_backbone("blip-mini")
    torch.manual_seed(0)
    BlipForQuestionAnswering(backbone.model.config).save_pretrained(folder)
    backbone.tokenizer.save_pretrained(folder)


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A working folder with what the pages name."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    make_folder(tmp_path / "my_photos")
    questions(tmp_path / "my_questions")
    clips(tmp_path / "my_clips")
    draw("circle", "red").save(tmp_path / "cat.jpg")
    return tmp_path


def stand_in(model: str) -> None:
    """A small model in the place of one of the hub, in a folder of its name."""
    folder = Path(model)
    if not folder.exists() and model.startswith("Salesforce/blip-vqa"):
        vqa_model(folder)
    elif not folder.exists() and "/" in model and "blip" in model:
        folder.parent.mkdir()
        folder.symlink_to(Path(sys.modules["aurora_petl"].__file__).parent / "assets/blip-mini")
    elif not folder.exists() and "/" in model:
        make("siglip2" if "siglip2" in model else "clip", folder)


def run(line: str) -> None:
    words = shlex.split(line, comments=True)
    for word in words:
        if re.fullmatch(r"(Salesforce|openai|google)/[\w.-]+", word):
            stand_in(word)
    if words[1:2] == ["train"] or "train" in words[4:5]:
        words += FEW
    if words[0] == "torchrun":
        words[0:1] = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, done.stderr
    else:
        assert words[0] == "aurora" and main(words[1:]) == 0, line


def follow(page: str) -> dict[str, object]:
    """What the snippets of a page leave behind; its commands and snippets run in the page's order."""
    left: dict[str, object] = {}
    for number, (kind, text) in enumerate(blocks(page), 1):
        if kind == "python":
            exec(compile(text, f"{page}, block {number}", "exec"), left)
        else:
            for line in text.splitlines():
                run(line)
    return left


def test_the_front_page_has_commands_of_the_first_tutorial():
    ((_, shown),) = blocks("index.md")
    commands = "".join(text for kind, text in blocks("tutorials/own-pictures.md") if kind == "sh")
    for line in shown.splitlines():
        words = line.partition("#")[0].split()
        assert any(words == theirs.split()[: len(words)] for theirs in commands.splitlines()), line


def test_own_pictures(here, capsys):
    follow("tutorials/own-pictures.md")
    assert Path("found.png").is_file() and len(Path("queries.csv").read_text().splitlines()) > 6
    assert not {"mine", "large"} - {path.name for path in Path("runs").iterdir()}
    assert "my_photos/images/" in capsys.readouterr().out


@pytest.mark.slow
def test_questions(here, capsys):
    left = follow("tutorials/questions.md")
    printed = capsys.readouterr().out.splitlines()
    assert printed[-3] in left["model"]._own_candidates and printed[-1] in ("yes", "no")
    assert Path("answers.csv").is_file()


@pytest.mark.slow
def test_clips(here):
    follow("tutorials/clips.md")
    assert json.loads(Path("runs/clips/metrics.json").read_text())["data"]["kind"].startswith("clips")


@pytest.mark.slow
def test_from_clip_to_siglip2(here, capsys):
    follow("tutorials/clip-to-siglip2.md")
    assert Path("siglip2.index/manifest.json").is_file()
    printed = capsys.readouterr().out
    assert "runs/siglip2" in printed and "siglip2.index, pictures, tuned model" in printed


def test_sharing(here, capsys):
    run("aurora train --data my_photos --out runs/mine")
    left = follow("tutorials/sharing.md")
    assert Path("models/dual/modules.json").is_file() and len(left["scores"]) == len(left["found"]["captions"])
    assert Path("models/mine/tokenizer.json").is_file() and left["model"].config.model_type == "blip"
    assert "adapter_model.safetensors" in capsys.readouterr().out


@pytest.mark.slow
def test_several_processes(here):
    follow("tutorials/several-gpus.md")
    assert Path("runs/two/metrics.json").is_file()


def test_the_readme_s_snippet_for_peft(here, capsys):
    text = (DOCS.parent / "README.md").read_text("utf-8")
    first, second = re.findall(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE)  # test_api.py runs the first
    stand_in("openai/clip-vit-base-patch32")
    exec(compile(second, "README.md", "exec"), {})
    assert capsys.readouterr().out.startswith("trainable params: ")


def test_links_of_the_readme_lead_to_files():
    links = re.findall(r"\]\((?!https?:)([^)#]+)", (DOCS.parent / "README.md").read_text("utf-8"))
    assert len(links) > 20 and [link for link in links if not (DOCS.parent / link).exists()] == []


def test_every_page_is_in_the_navigation():
    text = (DOCS.parent / "zensical.toml").read_text("utf-8")
    pages = {path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md")}
    assert pages == set(re.findall(r'= "([\w/-]+\.md)"', text))
