"""Good files, made once, that cases copy and damage: pictures, tiny models, a run, a stopped run, an index."""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
from functools import cache, cached_property
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from tests.helpers import benchmarks, checkpoints
from tests.helpers.pictures import draw, make_folder

QUICK = (
    "train.learning_rate=1e-2",
    "train.keep=best",
    "train.max_steps=4",
    "train.evaluations=2",
    "train.batch_size=4",
    "train.augment=false",
)
COLOURS, SHAPES = ("red", "green", "blue"), ("circle", "square", "triangle", "cross")


class Ground:
    """Every part is made when it is asked for first, under ``root``."""

    def __init__(self, root: Path) -> None:
        self.root = root

    @cached_property
    def album(self) -> Path:
        """24 pictures with captions in three splits."""
        return make_folder(self.root / "album")

    @cached_property
    def questions(self) -> Path:
        """12 pictures with two questions each."""
        folder = self.root / "asked"
        (folder / "images").mkdir(parents=True)
        rows = []
        for n, (colour, shape) in enumerate((colour, shape) for colour in COLOURS for shape in SHAPES):
            draw(shape, colour).save(folder / f"images/{n}.png")
            split = ("train", "validation", "train", "test")[n % 4]
            base = {"image": f"images/{n}.png", "split": split}
            rows.append({**base, "question": "what colour is it?", "answer": [colour, colour, "dark"]})
            rows.append({**base, "question": "is it a circle?", "answer": "yes" if shape == "circle" else "no"})
        (folder / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        return folder

    @cached_property
    def clips(self) -> Path:
        """8 clips in three kinds of file with captions."""
        folder = self.root / "films"
        folder.mkdir(parents=True)
        rows = []
        for n, it in enumerate(benchmarks.drawn()[:8]):
            frames = [it.picture(4 * k - 12) for k in range(6)]
            name = f"{n}.{('mp4', 'gif', 'webp', 'mp4')[n % 4]}"
            if name.endswith("mp4"):
                (folder / name).write_bytes(it.clip(6))
            else:
                frames[0].save(folder / name, save_all=True, append_images=frames[1:], duration=100)
            rows.append({"clip": name, "caption": it.name, "split": "validation" if n == 2 else "test"})
            if n in (0, 1, 4, 5, 3):
                rows[-1]["split"] = "train"
        (folder / "captions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        return folder

    @cached_property
    def model(self) -> Path:
        """BLIP for retrieval of half a million weights, with blip-mini's tokenizer."""
        from transformers import BlipForImageTextRetrieval

        return self._model("tiny", BlipForImageTextRetrieval)

    @cached_property
    def answerer(self) -> Path:
        """The same for questions."""
        from transformers import BlipForQuestionAnswering

        return self._model("tinyqa", BlipForQuestionAnswering)

    def _model(self, name: str, kind: Any) -> Path:
        from transformers import BlipConfig

        mini = Path(str(files("aurora_petl").joinpath("assets", "blip-mini")))
        config = json.loads((mini / "config.json").read_text())
        small = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
        config["text_config"] |= {**small, "encoder_hidden_size": 16, "projection_dim": 8}
        config["vision_config"] |= {**small, "image_size": 32, "patch_size": 16, "projection_dim": 8}
        config |= {"image_text_hidden_size": 8, "projection_dim": 8}
        torch.manual_seed(0)
        folder = self.root / name
        with contextlib.redirect_stderr(io.StringIO()):
            kind(BlipConfig.from_dict(config)).save_pretrained(folder)
        for file in ("tokenizer.json", "tokenizer_config.json", "preprocessor_config.json"):
            shutil.copy(mini / file, folder / file)
        return folder

    @cached_property
    def run(self) -> Path:
        """A finished run, with what `evaluate` keeps in it."""
        folder = self.root / "run"
        self.command("train", "--data", self.album, "--model", self.model, "--out", folder, *QUICK, "--quiet")
        self.command("evaluate", folder)
        return folder

    @cached_property
    def stopped(self) -> Path:
        """A run that was stopped after its third step of four, with its checkpoints."""
        from aurora_petl import checkpoints as module
        from aurora_petl.recipe import load_recipe
        from aurora_petl.training import train

        folder = self.root / "stopped"
        recipe = load_recipe("photos-mini", [f"data={self.album}", f"model={self.model}", *QUICK])
        write, written = module.write, []

        def once_more(*values: Any, **more: Any) -> Any:
            written.append(write(*values, **more))
            if len(written) == 2:
                raise KeyboardInterrupt
            return written[-1]

        module.write = once_more
        try:
            with contextlib.redirect_stderr(io.StringIO()), contextlib.suppress(KeyboardInterrupt):
                train(recipe, folder, progress=False)
        finally:
            module.write = write
        assert list((folder / "checkpoints").glob("checkpoint-*")) and not (folder / "metrics.json").exists()
        return folder

    @cached_property
    def index(self) -> Path:
        """An index of the album by the run."""
        folder = self.root / "album.index"
        self.command("index", self.album, "--model", self.run, "--out", folder, "--quiet")
        tuned, untuned = load_file(folder / "pictures-00000.safetensors").values()
        assert not torch.equal(tuned, untuned)  # else cases that exchange them would change nothing
        return folder

    @cached_property
    def checkpoint(self) -> Path:
        """A checkpoint in BLIP's original layout."""
        file = self.root / "model_base.pth"
        torch.save({"model": checkpoints.retrieval()}, file)
        return file

    @cache  # noqa: B019 (the ground lives as long as the tests)
    def benchmark(self, name: str) -> Path:
        """A miniature of a benchmark's folder."""
        return getattr(benchmarks, name)(self.root / "benchmarks" / name)

    @cache  # noqa: B019
    def printed(self, *words: str) -> str:
        """What the undamaged files give, the same words said in a folder that holds no others."""
        return self.command(*words)

    def command(self, *words: Any) -> str:
        """Run a command that must succeed; what it prints."""
        from aurora_petl.cli import main

        out = io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(io.StringIO()) as err:
            status = main([str(word) for word in words])
        assert status == 0, err.getvalue()
        return out.getvalue()

    def state(self) -> dict[str, tuple[int, int]]:
        """Sizes and times of all files, to see that no case changed them."""
        paths = [Path(place, name) for place, _, names in os.walk(self.root) for name in names]
        return {str(path): (path.stat().st_size, path.stat().st_mtime_ns) for path in paths if path.name != ".lock"}


def tar(folder: Path, file: Path) -> Path:
    """A tar of a folder's files."""
    with tarfile.open(file, "w") as archive:
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                archive.add(path, path.relative_to(folder).as_posix())
    return file


def shell(*words: Any, cwd: Path) -> subprocess.CompletedProcess[bytes]:
    """The command in a process of its own."""
    line = [sys.executable, "-m", "aurora_petl.cli", *map(os.fsencode, words)]
    return subprocess.run(line, cwd=cwd, capture_output=True, timeout=300)
