"""Turns of a conversation about a picture, and the questions with their answers among them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

from ...errors import short
from .common import Texts

TURNS = ("conversations", "messages")
_ASKING, _ANSWERING = ("human", "user"), ("gpt", "assistant")
_MEDIUM = re.compile(r"<(?:image|video)>\n?|\n?<(?:image|video)>")  # where the picture goes among the words


class Turn(NamedTuple):
    """Who speaks, the words without what stands for a picture, and pictures that stand among them."""

    speaker: str
    words: str
    media: list[Any]


@dataclass(frozen=True)
class Turns(Texts):
    """The column that holds the turns of each row's conversation, under both names of a question's columns."""

    def each(self, row: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        for question, answer in asked(list(turns_of(row.get(self.text)))):
            yield {"question": question, "answer": answer}


def turns_of(value: Any) -> Iterator[Turn]:
    """The turns of a conversation: ``from`` and ``value`` as LLaVA has them, ``role`` and ``content`` as chat templates
    do, or pairs of ``user`` and ``assistant``. ValueError says what is wrong with them."""
    if not isinstance(value, list) or not all(isinstance(turn, dict) for turn in value):
        raise ValueError("its turns must be a list of objects, as LLaVA's conversations have")
    for turn in value:
        if "user" in turn and "assistant" in turn:
            yield from (_turn(role, turn[role]) for role in ("user", "assistant"))
        else:
            yield _turn(str(turn.get("from", turn.get("role"))), turn.get("value", turn.get("content")))


def _turn(speaker: str, said: Any) -> Turn:
    media: list[Any] = []
    if isinstance(said, list):  # parts, as chat templates take them
        parts = [part for part in said if isinstance(part, dict)]
        media = [_place(part) for part in parts if part.get("type") in ("image", "video")]
        said = " ".join(str(part["text"]) for part in parts if part.get("text") is not None)
    if not isinstance(said, str):
        raise ValueError(f"a turn says {short(said)}; it must be text")
    return Turn(speaker, _MEDIUM.sub("", said).strip(), media)


def _place(part: Mapping[str, Any]) -> Any:
    return next((part[key] for key in ("image", "video", "path", "url") if isinstance(part.get(key), str)), None)


def asked(turns: list[Turn]) -> Iterator[tuple[str, str]]:
    """Questions with the answers that follow them."""
    for first, second in pairwise(turns):
        if first.speaker in _ASKING and second.speaker in _ANSWERING:
            yield first.words, second.words
