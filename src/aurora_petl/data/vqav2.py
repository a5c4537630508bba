"""VQAv2: questions about COCO pictures, ten answers each (443,757 train, 214,354 validate, 447,793 test).

- ``vqav2``: trains on the training split and validates on the validation split, whose answers are published.
- ``vqav2-trainval``: trains on both, as the paper does, but for the pictures of `held_out`.

The test split's answers are known to the evaluation server alone, so its questions have none.

Tables are the official pairs, ``{"data_subtype": "train2014", "questions": [{"question_id": 458752000, "image_id":
458752, "question": "What ...?"}]}`` and ``{"annotations": [{"question_id": 458752000, "answer_type": "other",
"answers": [{"answer": "net"}, ...]}]}``, or BLIP's merged ones, ``[{"question_id": 458752000, "question": "...",
"answer": ["net", ...], "image": "train2014/COCO_train2014_000000458752.jpg", "dataset": "vqa"}]``. BLIP's
``vg_qa.json`` (Visual Genome, one answer a question, which weighs 0.2) joins the training split where ``files.vg``
names it. ``answer_list.json`` holds the candidate answers; without it they are the 3,128 most frequent training
answers, as many as that list has.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import AuroraError
from .protocol import held_out, most_frequent, question_text, shares
from .published import Layout, Published, Table
from .rows import SPLITS, Question, QuestionDataset

_VISUAL_GENOME_WEIGHT = 0.2  # BLIP's
_CANDIDATES = 3128  # BLIP's answer_list.json
_LIST = {"answers?": ["answer_list.json"], "vg?": []}
_BLIP: Layout = {"train": ["vqa_train.json"], "validation": ["vqa_val.json"], "test": ["vqa_test.json"], **_LIST}
_OFFICIAL: Layout = {
    "train": ["v2_OpenEnded_mscoco_train2014_questions.json"],
    "train_answers": ["v2_mscoco_train2014_annotations.json"],
    "validation": ["v2_OpenEnded_mscoco_val2014_questions.json"],
    "validation_answers": ["v2_mscoco_val2014_annotations.json"],
    "test": ["v2_OpenEnded_mscoco_test2015_questions.json", "v2_OpenEnded_mscoco_test-dev2015_questions.json"],
    **_LIST,
}


def read_vqav2(
    root: Path, files: Mapping[str, Any], broken: str = "stop", *, train_on_validation: bool = False
) -> QuestionDataset:
    """Pictures with questions.

    Args:
        train_on_validation: put the validation split's questions into training, and hold some back.

    Raises:
        AuroraError: if the folder is not whole, or rows are wrong.
    """
    source = Published("vqav2-trainval" if train_on_validation else "vqav2", root, files, broken)
    layout, tables = source.tables(_BLIP, _OFFICIAL)
    questions: list[Question] = []
    for name in SPLITS:
        if name in tables:
            split = "train" if train_on_validation and name == "validation" else name
            if layout == 0:
                questions += _merged(source, tables[name], split)
            else:
                questions += _official(source, tables[name], tables.get(f"{name}_answers"), split)
    if train_on_validation:
        questions = held_out(questions)
    if "vg" in tables:
        questions += _merged(source, tables["vg"], "train")
    _refuse_twins(source, tables, questions)
    if "answers" in tables:
        candidates = [answer for _, answer in tables["answers"].rows()]
        if not all(isinstance(answer, str) for answer in candidates):
            raise AuroraError(f"{tables['answers'].path} is not a list of answers; is it BLIP's answer_list.json?")
    else:
        candidates = list(most_frequent(questions, _CANDIDATES))
    return source.questions(questions, tables, candidates)


def _merged(source: Published, table: Table, split: str) -> list[Question]:
    """BLIP's rows; those of Visual Genome say so, and carry one answer."""
    made = []
    for number, row in source.objects(table):
        image = source.text(table, number, row, "image")
        asked = source.text(table, number, row, "question")
        genome = row.get("dataset") == "vg"
        answers = [] if split == "test" else source.texts(table, number, row, "answer", blanks=True)
        if not genome and not _is_id(row.get("question_id")):
            source.problem(table, number, '"question_id" must be a number or a name')
            continue
        if not image or not asked or answers is None or (place := source.locate(image)) is None:
            continue
        name = f"vg-{row.get('question_id', number)}" if genome else str(row["question_id"])
        distinct, weights = shares(answers) if answers else ((), ())
        if genome:
            weights = tuple(_VISUAL_GENOME_WEIGHT * weight for weight in weights)
        made.append(
            Question(
                place,
                question_text(asked),
                distinct,
                weights,
                name,
                split,
                number,
                table.name,
                tuple(answers),
                _kind(row),
            )
        )
    return made


def _official(source: Published, table: Table, answers: Table | None, split: str) -> list[Question]:
    """A pair of the official files, joined by question id."""
    found = table.json
    subset = found.get("data_subtype") if isinstance(found, dict) else None
    if not isinstance(subset, str):
        raise AuroraError(f'{table.path} has no "data_subtype"; is it the published file?')
    subset = subset.replace("test-dev", "test")  # whose pictures are the test split's
    annotations: dict[Any, tuple[int, dict[str, Any]]] = {}
    if answers is not None:
        for number, row in source.objects(answers, "annotations"):
            name = row.get("question_id")
            if not _is_id(name):
                source.problem(answers, number, '"question_id" must be a number')
            elif name in annotations:
                source.problem(answers, number, f"question {name} is annotated twice")
            else:
                annotations[name] = number, row
    made = []
    for number, row in source.objects(table, "questions"):
        asked, name, image = source.text(table, number, row, "question"), row.get("question_id"), row.get("image_id")
        if not (_is_id(name) and isinstance(name, int) and _is_id(image) and isinstance(image, int)):
            source.problem(table, number, '"question_id" and "image_id" must be numbers')
            continue
        said: list[str] | None = []
        _, annotation = annotations.pop(name, (0, {}))
        if answers is not None:
            if not annotation:
                source.problem(table, number, f"question {name} has no annotation in {answers.name}")
                continue
            said = _said(annotation)
            if said is None:
                source.problem(table, number, f"the annotation of question {name} has no list of answers")
        if not asked or said is None:
            continue
        if place := source.locate(f"{subset}/COCO_{subset}_{image:012d}.jpg"):
            distinct, weights = shares(said) if said else ((), ())
            kind = _kind(annotation)
            made.append(
                Question(
                    place,
                    question_text(asked),
                    distinct,
                    weights,
                    str(name),
                    split,
                    number,
                    table.name,
                    tuple(said),
                    kind,
                )
            )
    if answers is not None:
        for name, (number, _) in annotations.items():
            source.problem(answers, number, f"the annotation of question {name}, which {table.name} does not ask")
    return made


def _is_id(value: Any) -> bool:
    return isinstance(value, (int, str)) and not isinstance(value, bool) and len(str(value)) <= 100


def _kind(row: Mapping[str, Any]) -> str:
    kind = row.get("answer_type", "")
    return kind if isinstance(kind, str) else ""


def _said(annotation: Mapping[str, Any]) -> list[str] | None:
    answers = annotation.get("answers")
    if not isinstance(answers, list) or not answers:
        return None
    said: list[Any] = [answer.get("answer") if isinstance(answer, dict) else None for answer in answers]
    if not all(isinstance(answer, str) for answer in said) or not any(map(str.strip, said)):
        return None
    return said


def _refuse_twins(source: Published, tables: Mapping[str, Table], questions: list[Question]) -> None:
    """Note questions of one id; predictions are told apart by it."""
    by_name = {table.name: table for table in tables.values()}
    first: dict[str, Question] = {}
    for question in questions:
        known = first.setdefault(question.id, question)
        if known is not question:
            source.problem(
                by_name[question.source],
                question.line,
                f"question id {question.id} stands in {known.source}, row {known.line}, as well",
            )
