"""MSRVTT-QA: questions made of MSR-VTT's captions, one answer each (158,581 train, 12,278 validate, 72,821 test).

Tables are the published ``train_qa.json`` and its fellows, ``[{"id": 0, "video_id": 0, "question": "what is a family
having?", "answer": "conversation", "category_id": 14}]``, or ClipBERT's JSONL, where the video is named: ``"video_id":
"video0"``. Candidate answers are those of the training split, the most frequent first. Questions are grouped by their
first word (what, who, how, when, where), as the benchmark's papers do.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .protocol import most_frequent, question_text
from .published import Layout, Published
from .rows import SPLITS, Question, QuestionDataset, brief

_JSON: Layout = {"train": ["train_qa.json"], "validation": ["val_qa.json"], "test": ["test_qa.json"]}
_JSONL: Layout = {
    "train": ["msrvtt_qa/train.jsonl"],
    "validation": ["msrvtt_qa/val.jsonl"],
    "test": ["msrvtt_qa/test.jsonl"],
}


def read_msrvtt_qa(root: Path, files: Mapping[str, Any], broken: str = "stop") -> QuestionDataset:
    """Clips with questions.

    Raises:
        AuroraError: if the folder is not whole, or rows are wrong.
    """
    source = Published("msrvtt-qa", root, files, broken, clips=True)
    _, tables = source.tables(_JSON, _JSONL)
    questions: list[Question] = []
    first: dict[str, str] = {}
    for split in SPLITS:
        if split not in tables:
            continue
        table = tables[split]
        for number, row in source.objects(table):
            asked, answer = (source.text(table, number, row, key) for key in ("question", "answer"))
            clip = row.get("video_id")
            if isinstance(clip, bool) or not isinstance(clip, (int, str)):
                source.problem(table, number, '"video_id" must be a number or a name')
                continue
            if isinstance(row.get("id"), (list, dict)):
                source.problem(table, number, '"id" must be a number or a name')
                continue
            name = str(row.get("id", f"{split}-{number}"))
            here = f"{table.name}, row {number}"
            if (known := first.setdefault(name, here)) != here:
                source.problem(table, number, f"question id {brief(name)} stands in {known}, as well")
            if asked and answer and (place := source.locate(f"video{clip}" if isinstance(clip, int) else clip)):
                text = question_text(asked)
                kind = text.split()[0]
                questions.append(
                    Question(place, text, (answer,), (1.0,), name, split, number, table.name, (answer,), kind)
                )
    return source.questions(questions, tables, most_frequent(questions))
