"""What the forms share: recognising, columns by name, splits by place, and one line on what was read."""

from __future__ import annotations

import ast
import json
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import partial
from typing import Any, Generic, NamedTuple, TypeAlias

import numpy as np

from ...errors import AuroraError, did_you_mean, short
from ..folder import answered, questions_of
from ..folder_rows import item_row
from ..items import SPLITS, Item, Question, Row, in_splits
from ..kinds import CLIP_SUFFIXES
from ..places import Files
from ..protocol import composed, most_frequent
from ..reading import Raw, RowReader
from ..rows import ImageTextDataset, QuestionDataset, brief
from ..source import Source
from ..splits import divided, named_split, with_splits, with_validation

IMAGE_COLUMNS = (
    *("file_name", "filepath", "image", "filename", "image_path", "img_path", "file", "path"),
    *("image_name", "image_file", "img", "images", "clip", "video"),
)
CAPTION_COLUMNS = (
    *("caption", "captions", "text", "title", "prompt"),
    *("description", "comment", "sentence", "sentences"),
)
QUESTION_COLUMNS = ("question",)
ANSWER_COLUMNS = ("answer", "answers", "multiple_choice_answer")
OwnDataset: TypeAlias = ImageTextDataset | QuestionDataset
_LONGEST_LIST = 100_000  # characters
_NUMBERED = re.compile(r"(\w*[^\W\d_])_?(\d+)")  # caption_0, caption1
_MEND = "name the file or folder that is this split, as in files.{0}=NAME, or name none and have at least 3 pictures"


@dataclass(frozen=True)
class Look:
    """What a form sees in a source: the files that show that it is of the form, or none; then ``almost`` may say what
    it lacks, for a refusal."""

    shown_by: Sequence[str] = ()
    almost: str = ""
    more: dict[str, Any] = field(default_factory=dict)  # what reading needs not look for again


def tables(source: Source, *suffixes: str) -> list[str]:
    """The files with one of these suffixes that may hold rows: those that the options ``rows``, ``train``,
    ``validation`` or ``test`` name, or all but those that stand beside a picture of their name."""
    wanted = source.options_of("rows") + [name for split in SPLITS for name in source.options_of(split)]
    held = [name for name in source.visible if name.lower().endswith(suffixes)]
    if wanted:
        return [name for name in held if any(_matches(name, pattern) for pattern in wanted)]
    return [name for name in held if os.path.splitext(name)[0] not in source.described]


def splits_of(source: Source, names: Iterable[str]) -> dict[str, str]:
    """The split of each file or folder by the options ``train``, ``validation`` and ``test``, which leave out what they
    do not name. Without these, by the words in each path; "" for all if there is one that tells none."""
    given = {split: source.options_of(split) for split in SPLITS}
    if not any(given.values()):
        told = {name: named_split(name) for name in names}
        return told if all(told.values()) else dict.fromkeys(told, "")
    found = {}
    for name in names:
        for split in SPLITS:
            if any(_matches(name, pattern) for pattern in given[split]):
                found[name] = split
                break
    return found


def _matches(name: str, pattern: str) -> bool:
    pattern = pattern.removeprefix("./").rstrip("/")
    return name == pattern or name.startswith(f"{pattern}/") or fnmatchcase(name, pattern)


def _plain(name: str) -> str:
    """A column's name as `IMAGE_COLUMNS` and the others are spelled: ``Image Name`` is ``image_name``."""
    return name.strip().lower().replace(" ", "_").replace("-", "_")


@dataclass(frozen=True)
class Texts:
    """Which column of a table holds the captions, and ``more`` of them if there are; or, with an ``answer``, which two
    the questions and the answers."""

    text: str
    answer: str | None = None
    more: tuple[str, ...] = ()

    def columns(self, image: str) -> list[str]:
        """The columns that a table must have, that of the files among them."""
        return [name for name in (image, self.text, self.answer, *self.more) if name]

    def of(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """A row's texts in the words of ``captions.jsonl`` or ``questions.jsonl``. Of several columns of captions those
        count that have one."""
        if self.answer is None and self.more:
            values = (row.get(name) for name in (self.text, *self.more))
            parts = [_said(value) for value in values if value not in (None, "")]
            return {"caption": [text for part in parts for text in (part if isinstance(part, list) else [part])]}
        if self.answer is None:
            return {"caption": _said(row.get(self.text))}
        said = _said(row.get(self.answer))
        if isinstance(said, (int, float)) and not isinstance(said, bool):
            said = str(said)  # a count
        return {"question": row.get(self.text), "answer": said}

    def each(self, row: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        """The texts of all that a row holds, in the words of `of`."""
        yield self.of(row)


CAPTION = Texts("caption")


def _said(value: Any) -> Any:
    """Captions or answers without what stands around each: ``{"raw": "a cat"}``, ``{"answer": "2", ...}``."""
    if isinstance(value, list):
        return [_said(part) for part in value]
    if isinstance(value, dict):
        return next((value[key] for key in ("answer", "caption", "raw", "text") if key in value), value)
    if isinstance(value, str) and value.startswith("[") and value.endswith("]") and len(value) < _LONGEST_LIST:
        for parse in (json.loads, ast.literal_eval):  # as lists are written in a field of CSV
            with suppress(ValueError, SyntaxError, RecursionError, MemoryError):
                texts = parse(value)
                return texts if isinstance(texts, list) and all(isinstance(text, str) for text in texts) else value
    return value


def column(source: Source, key: str, known: Iterable[str], columns: Sequence[str], where: str) -> str:
    """The column that the option ``key`` names, or the first of the ``known`` names among the ``columns``, or "".

    Raises:
        AuroraError: if there is no column that the option names, unless ``where`` is "".
    """
    if named := source.option(key):
        return _named(key, named, columns, where)
    spelled = {_plain(name): name for name in reversed(columns)}
    return next((name if name in columns else spelled[name] for name in known if name in spelled), "")


def _named(key: str, name: str, columns: Sequence[str], where: str) -> str:
    """The column that an option names, as `column`."""
    if name in columns or not where:
        return name if name in columns else ""
    near = did_you_mean(name, columns, "its columns are")
    raise AuroraError(f"{where}: no column {short(name)}, which files.{key} names; {near}")


def captions_in(source: Source, columns: Sequence[str], where: str = "") -> Texts | None:
    """The columns of captions: those that the option names, the first that is called so, or those that are called so
    with a number (``caption_0``, ``caption_1``), in the order of their numbers; None if there is none.

    Raises:
        AuroraError: if there is no column that the option names, unless ``where`` is "".
    """
    if several := source.options_of("caption_column"):
        names = [_named("caption_column", name, columns, where) for name in several]
        names = names if all(names) else []
    elif first := column(source, "caption_column", CAPTION_COLUMNS, columns, where):
        names = [first]
    else:
        parts = [(match[1], int(match[2]), name) for name in columns if (match := _NUMBERED.fullmatch(_plain(name)))]
        word = next((known for known in CAPTION_COLUMNS if any(known == of for of, _, _ in parts)), "")
        names = [name for of, _, name in sorted(parts) if of == word]
    return Texts(names[0], more=tuple(names[1:])) if names else None


def texts_in(source: Source, columns: Sequence[str], where: str = "") -> Texts | None:
    """The columns of questions and answers if there are both, else that of captions; None if there is neither.

    Raises:
        AuroraError: if there is no column that an option names, unless ``where`` is "".
    """
    question = column(source, "question_column", QUESTION_COLUMNS, columns, where)
    answer = column(source, "answer_column", ANSWER_COLUMNS, columns, where)
    if question and (answer or source.option("question_column")) and not source.options_of("caption_column"):
        return Texts(question, answer)
    return captions_in(source, columns, where)


def need_texts(source: Source, columns: Sequence[str], where: str) -> Texts:
    """The same.

    Raises:
        AuroraError: if they are called otherwise than usual, and no option says how.
    """
    if texts := texts_in(source, columns, where):
        return texts
    raise AuroraError(
        f"{where}: no column {' or '.join(CAPTION_COLUMNS[:5])} among {brief(', '.join(columns))}; name that of the "
        "captions, as in files.caption_column=NAME, or those of questions, as in files.question_column=NAME "
        "files.answer_column=NAME"
    )


def fields_of(
    source: Source, row: Mapping[str, Any], name: Any, texts: Mapping[str, Any], split: str = ""
) -> dict[str, Any]:
    """A row in the words of ``captions.jsonl``, of a picture's or clip's ``name`` and its ``texts``. The split is that
    of its column ``split``, or the one given."""
    if isinstance(name, list) and len(name) == 1:
        (name,) = name
    name = str(name) if isinstance(name, int) and not isinstance(name, bool) else name
    clip = isinstance(name, str) and name.lower().endswith(CLIP_SUFFIXES)
    fields = {"clip" if clip else "image": name, **texts}
    fields["split"] = row.get(source.option("split_column", "split")) or split
    if own := source.option("id_column"):
        fields["id"] = row.get(own)
    return fields


def read_rows(
    source: Source,
    where: str,
    rows: Callable[[RowReader], Iterator[Raw]],
    *,
    texts: Texts = CAPTION,
    anywhere: bool = False,
    by_picture: bool = False,
) -> OwnDataset:
    """The dataset of rows whose pictures are files.

    Args:
        where: what messages call the whole of the rows.
        rows: makes the rows, and notes with the reader what is no row.
        texts: which columns the captions, or questions and answers, are from.
        anywhere: see `RowReader`.
        by_picture: a made split keeps pictures of one id together otherwise.

    Raises:
        AuroraError: with the first few wrong rows and how many there are.
    """
    reader = source.reader(where, anywhere)
    if texts.answer is not None:
        questions = questions_of(reader, rows(reader), source.roots)
        left_out = _settle(source, reader, questions)
        dataset: OwnDataset = with_questions(source, where, questions, reader.files, clips=reader.clips)
        dataset.note += left_out
        return dataset
    items = reader.captions(rows(reader), partial(item_row, roots=source.roots, column=texts.text))
    left_out = _settle(source, reader, items)
    dataset = with_captions(source, where, items, reader.files, clips=reader.clips, by_picture=by_picture)
    dataset.note += left_out
    return dataset


def _settle(source: Source, reader: RowReader, rows: Sequence[Row]) -> str:
    """Words on the rows that were left out."""
    if reader.missing and not rows and not source.root:
        reader.problems[0] += f" ({reader.missing:,} such rows); if the pictures lie elsewhere, give --root FOLDER"
    left_out = reader.settle(rows)
    return f"; {left_out}" if left_out else ""


def with_captions(
    source: Source,
    where: str,
    items: Sequence[Item],
    files: Files,
    *,
    clips: bool = False,
    by_picture: bool = False,
) -> ImageTextDataset:
    """The dataset of checked items, in splits as `_in_splits` makes them."""
    items, made = _in_splits(items, (item.image if by_picture else item.id for item in items), where)
    captions = sum(len(item.captions) for item in items)
    media = counted(len(items), "clip" if clips else "picture")
    note = f"{media}, {counted(captions, 'caption')} {_each(items, made)}"
    return ImageTextDataset(source.title, items, files, where, clips, source.broken, note, _mend(items))


def with_questions(
    source: Source, where: str, questions: Sequence[Question], files: Files, *, clips: bool = False
) -> QuestionDataset:
    """The dataset of checked questions, in splits as `_in_splits` makes them; those about one picture share theirs.

    Raises:
        AuroraError: if a question has no answer that must have one.
    """
    parted = _in_splits(questions, (composed(row.image) for row in questions), where)
    questions, left_out = answered(where, parted.rows, source.broken)
    media = counted(len({row.image for row in questions}), "clip" if clips else "picture")
    note = f"{counted(len(questions), 'question')} about {media} {_each(questions, parted.made)}"
    note += f"; {left_out}" if left_out else ""
    mend = _mend(questions)
    given = source.title, questions, files, where, clips, source.broken, note, mend
    return QuestionDataset(*given, candidates=most_frequent(questions))


class _Parted(NamedTuple, Generic[Row]):
    """Rows in splits, and words on which of these were made."""

    rows: Sequence[Row]
    made: str


def _in_splits(rows: Sequence[Row], groups: Iterable[str], where: str) -> _Parted[Row]:
    """Rows in their splits, or in made ones that part no group: training rows alone are split in three by hash, and of
    training and test rows alone the training rows give a validation split."""
    made = ""
    named = {row.split for row in rows}
    if named == {"train"}:
        rows, named = in_splits(rows, np.full(len(rows), -1)), {""}
    if named == {""}:
        rows, made = divided(rows, groups), "; splits are made by hash"
    elif named == {"train", "test"}:
        rows, made = with_validation(rows, groups), "; validation is made of train"
    return _Parted(with_splits(rows, where), made)


def _each(rows: Sequence[Row], made: str) -> str:
    """How many rows each split has, and which splits were made."""
    counts = Counter(row.split for row in rows)
    return f"({', '.join(f'{split} {counts[split]:,}' for split in SPLITS if counts[split])}{made})"


def _mend(rows: Sequence[Row]) -> str:
    """What to do about a split that has no rows."""
    splits = {row.split for row in rows}
    return _MEND.format(next((split for split in SPLITS if split not in splits), "test"))


def counted(count: int, what: str) -> str:
    """``1 picture``, ``2 pictures``."""
    return f"{count:,} {what}{'' if count == 1 else 's'}"
