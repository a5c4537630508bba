"""Miniature folders of the benchmarks, in exactly their published formats: real JPEG and MP4 files of drawn shapes,
each described truthfully, 16 to train on, 8 to validate and 8 to test.

Pictures differ in shape, colour and size, so a model can learn each by heart.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from PIL import Image

from .clips import encode
from .pictures import COLOURS, SHAPES, draw

SIDE = 96
COUNTS = {"train": 16, "val": 8, "test": 8}


@dataclass(frozen=True)
class Drawn:
    """One drawn picture or clip."""

    number: int
    split: str  # train, val or test
    size: str
    colour: str
    shape: str

    @property
    def name(self) -> str:
        return f"{self.size} {self.colour} {self.shape}"

    def picture(self, shift: int = 0) -> Image.Image:
        """The shape on white, ``shift`` pixels right of the middle."""
        side = SIDE if self.size == "large" else SIDE // 2
        canvas = Image.new("RGB", (SIDE, SIDE), "white")
        canvas.paste(draw(self.shape, self.colour, side), ((SIDE - side) // 2 + shift, (SIDE - side) // 2))
        return canvas

    def clip(self, frames: int = 12) -> bytes:
        """An MP4 in which the shape moves to the right."""
        return encode([self.picture(2 * n - frames) for n in range(frames)], key_every=6)

    def captions(self) -> list[str]:
        return [
            f"A {self.name}.",
            f"a {self.colour} {self.shape} that is {self.size}",
            f"One {self.name} on white",
            f"{self.shape}, {self.colour}, {self.size}",
            f"there is a {self.size} {self.shape} in {self.colour}",
        ]

    def questions(self) -> list[tuple[str, str, str]]:
        """Question, answer, and VQAv2's answer type."""
        return [
            ("What colour is it?", self.colour, "other"),
            (f"Is it a {self.shape}?", "yes", "yes/no"),
            ("What shape is it?", self.shape, "other"),
        ]


def drawn() -> list[Drawn]:
    """All 32, in an order in which each split has every colour and shape."""
    every = sorted(product(("large", "small"), COLOURS, SHAPES), key=lambda it: hash_of(" ".join(it)))
    splits = [split for split, count in COUNTS.items() for _ in range(count)]
    return [Drawn(number, split, *it) for number, (split, it) in enumerate(zip(splits, every, strict=False))]


def hash_of(text: str) -> int:
    value = 0
    for letter in text:
        value = (value * 131 + ord(letter)) % 65_521
    return value


def annotators(answer: str, number: int) -> list[str]:
    """What ten annotators say: one or two of them something else."""
    others = 1 + number % 2
    return [answer] * (10 - others) + ["unsure", "can't tell"][:others]


def write_json(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))


def write_jsonl(path: Path, rows: Iterable[Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def _save(picture: Image.Image, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.save(path, quality=95)


def _split(name: str) -> list[Drawn]:
    return [it for it in drawn() if it.split == name]


def _karpathy(root: Path, name: str, paths: dict[int, str], prefix: str, original: bool) -> Path:
    for it in drawn():
        _save(it.picture(), root / paths[it.number])
    if not original:
        rows = [
            {"image": paths[it.number], "caption": caption, "image_id": f"{name}_{it.number}"}
            for it in _split("train")
            for caption in it.captions()
        ]
        write_json(root / f"{prefix}_train.json", rows)
        for split in ("val", "test"):
            write_json(
                root / f"{prefix}_{split}.json",
                [{"image": paths[it.number], "caption": it.captions()} for it in _split(split)],
            )
        return root
    images = []
    for it in drawn():
        folder, file = paths[it.number].rsplit("/", 1)
        sentences = [
            {"tokens": text.lower().rstrip(".").split(), "raw": text, "imgid": it.number, "sentid": 5 * it.number + n}
            for n, text in enumerate(it.captions())
        ]
        split = "restval" if name == "coco" and it.split == "train" and it.number % 2 else it.split
        image = {"filename": file, "imgid": it.number, "split": split, "sentences": sentences}
        images.append({**image, "filepath": folder, "cocoid": it.number} if name == "coco" else image)
    write_json(root / f"dataset_{name}.json", {"images": images, "dataset": name})
    return root


def coco(root: Path, original: bool = False) -> Path:
    paths = {
        it.number: f"{folder}/COCO_{folder}_{it.number:012d}.jpg"
        for it in drawn()
        for folder in ["val2014" if it.split != "train" or it.number % 2 else "train2014"]
    }
    return _karpathy(root, "coco", paths, "coco_karpathy", original)


def flickr30k(root: Path, original: bool = False) -> Path:
    paths = {it.number: f"flickr30k-images/{1000092795 + it.number}.jpg" for it in drawn()}
    return _karpathy(root, "flickr30k", paths, "flickr30k", original)


def _clips(root: Path, names: dict[int, str], frames: bool) -> None:
    """Clips as MP4, or as folders of JPEG frames."""
    root.mkdir(parents=True, exist_ok=True)
    for it in drawn():
        if frames:
            for n in range(6):
                _save(it.picture(4 * n - 12), root / names[it.number] / f"{n + 1:04d}.jpg")
        else:
            (root / f"{names[it.number]}.mp4").write_bytes(it.clip())


def msrvtt(root: Path, layout: str = "jsonl", frames: bool = False, lists: bool = True) -> Path:
    """``layout``: jsonl (ClipBERT's), one (MSRVTT_data.json) or two (the official pair); ``lists`` adds 1k-A's CSV."""
    names = {it.number: f"video{it.number}" for it in drawn()}
    _clips(root / ("frames" if frames else "videos/all"), names, frames)
    if layout == "jsonl":
        for split in COUNTS:
            rows = [
                {"clip_name": names[it.number], "caption": caption, "sen_id": n}
                for it in _split(split)
                for n, caption in enumerate(it.captions() if split != "test" else it.captions()[:1])
            ]
            write_jsonl(root / f"txt_db/msrvtt_retrieval/{split}.jsonl", rows)
        return root

    def info(splits: Iterator[str]) -> dict[str, Any]:
        chosen = [it for split in splits for it in _split(split)]
        official = {"train": "train", "val": "validate", "test": "test"}
        return {
            "info": {"year": "2016"},
            "videos": [
                {"id": it.number, "video_id": names[it.number], "split": official[it.split], "category": 0}
                for it in chosen
            ],
            "sentences": [
                {"sen_id": 5 * it.number + n, "video_id": names[it.number], "caption": caption}
                for it in chosen
                for n, caption in enumerate(it.captions())
            ],
        }

    if layout == "one":
        write_json(root / "MSRVTT_data.json", info(iter(COUNTS)))
    else:
        write_json(root / "train_val_videodatainfo.json", info(iter(["train", "val"])))
        write_json(root / "test_videodatainfo.json", info(iter(["test"])))
    if lists:
        with (root / "MSRVTT_JSFUSION_test.csv").open("w", newline="") as file:
            table = csv.writer(file)
            table.writerow(["key", "vid_key", "video_id", "sentence"])
            for n, it in enumerate(_split("test")[:4]):  # as 1k-A is a part of the official test split
                table.writerow([f"ret{n}", f"msr{it.number}", names[it.number], it.captions()[1]])
    return root


def didemo(root: Path, official: bool = False) -> Path:
    names = {it.number: f"{10015567 + it.number}@N08_3655084291_2a1a8c6a3e" for it in drawn()}
    _clips(root / "videos", names, frames=False)
    for split in COUNTS:
        if official:
            rows = [
                {
                    "annotation_id": 3 * it.number + n,
                    "description": text,
                    "video": f"{names[it.number]}.avi",
                    "times": [[n, n]] * 4,
                    "num_segments": 6,
                    "dl_link": "https://www.flickr.com/video_download.gne?id=3655084291",
                }
                for n in range(3)
                for it in _split(split)
                for text in [it.captions()[n]]
            ]
            write_json(root / f"{split}_data.json", rows)
        else:
            rows = [
                {"clip_name": f"{names[it.number]}.avi", "caption": " ".join(it.captions()[:3])} for it in _split(split)
            ]
            write_jsonl(root / f"{split}.jsonl", rows)
    return root


def vqav2(root: Path, official: bool = False, answer_list: bool = False) -> Path:
    folders = {"train": "train2014", "val": "val2014", "test": "test2015"}
    for it in drawn():
        folder = folders[it.split]
        _save(it.picture(), root / folder / f"COCO_{folder}_{it.number:012d}.jpg")
    for split, folder in folders.items():
        asked = [
            (it, 1000 * it.number + n, question, answer, kind)
            for it in _split(split)
            for n, (question, answer, kind) in enumerate(it.questions())
        ]
        if official:
            questions = [{"image_id": it.number, "question": q, "question_id": i} for it, i, q, _, _ in asked]
            header = {
                "info": {},
                "task_type": "Open-Ended",
                "data_type": "mscoco",
                "license": {},
                "data_subtype": folder,
            }
            write_json(root / f"v2_OpenEnded_mscoco_{folder}_questions.json", {**header, "questions": questions})
            if split != "test":
                annotations = [
                    {
                        "question_type": "what",
                        "multiple_choice_answer": answer,
                        "answers": [
                            {"answer": said, "answer_confidence": "yes", "answer_id": n}
                            for n, said in enumerate(annotators(answer, it.number), 1)
                        ],
                        "image_id": it.number,
                        "answer_type": kind,
                        "question_id": i,
                    }
                    for it, i, _, answer, kind in asked
                ]
                write_json(root / f"v2_mscoco_{folder}_annotations.json", {**header, "annotations": annotations})
            continue
        rows = []
        for it, i, question, answer, _ in asked:
            row = {"question_id": i, "question": question, "image": f"{folder}/COCO_{folder}_{it.number:012d}.jpg"}
            said = {} if split == "test" else {"answer": annotators(answer, it.number)}
            rows.append({**row, **said, "dataset": "vqa"})
        write_json(root / f"vqa_{split}.json", rows)
    if answer_list:
        write_json(root / "answer_list.json", [*COLOURS, *SHAPES, "yes", "no"])
    return root


def visual_genome(root: Path) -> Path:
    """Two questions more for `vqav2`, as BLIP's ``vg_qa.json`` has them."""
    rows = []
    for n, it in enumerate(_split("train")[:2], 1):
        _save(it.picture(), root / f"VG_100K/{n}.jpg")
        row = {"question_id": 986769 + n, "question": "What is the colour?", "answer": it.colour}
        rows.append({**row, "image": f"image/{n}.jpg", "dataset": "vg"})
    write_json(root / "vg_qa.json", rows)
    return root


def msrvtt_qa(root: Path, jsonl: bool = False) -> Path:
    names = {it.number: f"video{it.number}" for it in drawn()}
    _clips(root / "videos", names, frames=False)
    number = 0
    for split in COUNTS:
        rows = []
        for it in _split(split):
            for question, answer, _ in it.questions():
                row = {"question": question.lower(), "answer": answer}
                named = {"video_id": names[it.number], "answer_type": "what"}
                rows.append({**row, **(named if jsonl else {"id": number, "video_id": it.number, "category_id": 14})})
                number += 1
        if jsonl:
            write_jsonl(root / f"txt_db/msrvtt_qa/{split}.jsonl", rows)
        else:
            write_json(root / f"{split}_qa.json", rows)
    return root
