"""BLIP's way of writing text, the weights of answers, and a validation split where none is published."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from .rows import Question, Row

_PUNCTUATION = re.compile(r'[.!"()*#:;~]')  # BLIP's


def caption_text(text: str, words: int) -> str:
    """A caption as BLIP trains and evaluates on: lower case, without punctuation, at most ``words`` words."""
    return " ".join(_PUNCTUATION.sub(" ", text.lower()).split()[:words]) or text.lower().strip()


def question_text(text: str) -> str:
    """A question as BLIP asks it: lower case, punctuation but the question mark left out, at most 50 words."""
    return " ".join(_PUNCTUATION.sub("", text.lower()).split()[:50]) or text.lower().strip()


def composed(name: str) -> str:
    """A file's name with each accent a part of its letter (NFC): some systems keep the two apart."""
    return unicodedata.normalize("NFC", name)


def shares(answers: Sequence[str]) -> tuple[tuple[str, ...], tuple[float, ...]]:
    """Distinct answers in the order of their first mention, and what share of the annotators gave each. A blank is no
    answer, but who gave it counts among the annotators."""
    counts = Counter(answer for answer in answers if answer.strip())
    return tuple(counts), tuple(count / len(answers) for count in counts.values())


def most_frequent(questions: Sequence[Question], most: int | None = None) -> tuple[str, ...]:
    """The answers of training questions by how often they are given, ties by alphabet."""
    counts: Counter[str] = Counter()
    for question in questions:
        if question.split == "train":
            counts.update(answer for answer in question.references or question.answers if answer.strip())
    return tuple(sorted(counts, key=lambda answer: (-counts[answer], answer))[:most])


def held_out(rows: list[Row]) -> list[Row]:
    """Rows with a validation split made of training media: a tenth of them, at most 500, the same on every machine.
    Benchmarks without one, or that train on it, have nothing else to choose the best weights by but the test split."""
    media = {row.image for row in rows if row.split == "train"}
    ordered = sorted(
        media, key=lambda name: hashlib.sha256(composed(Path(name).stem).encode(errors="surrogateescape")).digest()
    )
    chosen = set(ordered[: min(500, max(1, len(ordered) // 10))])
    return [replace(row, split="validation") if row.split == "train" and row.image in chosen else row for row in rows]
