"""How right answers to questions are: VQAv2's accuracy, exact match, and the file for VQAv2's server.

VQAv2 (Goyal et al., 2017, arXiv 1612.00837) asks ten annotators. An answer is as right as min(matches / 3, 1), averaged
over the ten ways to leave one annotator out. Where the annotators disagree, their answers and the model's are
normalised first. Rules and tables follow the behaviour of the official evaluation (`vqaEval.py` of GT-Vision-Lab/VQA,
as of VQAv2), its oddities too, which are marked below: published figures were made with them.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from ..data.rows import Question
from ..errors import AuroraError

NUMERALS = {"none": "0", "zero": "0", "one": "1", "two": "2", "three": "3", "four": "4", "five": "5", "six": "6"}
NUMERALS |= {"seven": "7", "eight": "8", "nine": "9", "ten": "10"}
ARTICLES = {"a", "an", "the"}

# Words that get an apostrophe back that was left out, of several any one. Which words is the official table's choice;
# of its entries these are all that change a word in lower case.
_APOSTROPHES = """
    ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd he'd've
    he's how'd how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've might've mustn't must've needn't not've
    o'clock oughtn't shan't she'd've should've shouldn't shouldn't've somebody'd've somebody'll somebody's someone'd
    someone'd've someone'll someone's something'd something'd've something'll that's there'd there'd've there're
    there's they'd they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll what're what's what've
    when's where'd where's where've who'd who'd've who'll who's who've why'll why're why's won't would've wouldn't
    wouldn't've y'all y'all'll y'all'd've you'd you'd've you'll you're you've 'ow's'at
"""


def _without_one(word: str) -> list[str]:
    return [word[:i] + word[i + 1 :] for i, letter in enumerate(word) if letter == "'"]


CONTRACTIONS = {bare: word for word in _APOSTROPHES.split() for bare in _without_one(word)}
CONTRACTIONS["somebody'd"] = "somebodyd"  # as in the official table, the wrong way round

PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_COMMA_IN_NUMBER = re.compile(r"\d,\d")
# Official: a period that no digit follows; its look-behind, meant to spare "1.", is misspelt and never holds.
_PERIOD = re.compile(r"\.(?!\d)")
_PERIODS = 32  # that are taken out: official code passes a flag of this value where the count goes


def normalize(answer: str) -> str:
    """The official normal form of an answer.

    - Punctuation marks become spaces. A mark that has a space beside it somewhere in the answer vanishes instead, as
      do all marks of an answer with a comma between digits.
    - Periods go, unless a digit follows.
    - Case is lowered, numerals up to ten become digits, articles go, contractions get their apostrophe.

    Examples:
        >>> normalize("The two-seater, dont"), normalize("1,000 m."), normalize("No. 1.5")
        ("2 seater don't", '1000 m', 'no 1.5')
    """
    text, compact = answer, bool(_COMMA_IN_NUMBER.search(answer))
    for mark in PUNCTUATION:
        beside_space = f"{mark} " in answer or f" {mark}" in answer
        text = text.replace(mark, "" if beside_space or compact else " ")
    text = _PERIOD.sub("", text, count=_PERIODS)
    words = (NUMERALS.get(word, word) for word in text.lower().split())
    return " ".join(CONTRACTIONS.get(word, word) for word in words if word not in ARTICLES)


def vqa_accuracy(answer: str, references: Sequence[str]) -> float:
    """VQAv2's accuracy of an answer, in [0, 1].

    Args:
        references: what each annotator said, ten in VQAv2. With fewer than four no answer reaches 1.

    Examples:
        >>> vqa_accuracy("cat", ["cat"] * 3 + ["dog"] * 7)  # 2 matches in 3 subsets, 3 in the other 7
        0.9

    Raises:
        ValueError: without references.
    """
    if not references:
        raise ValueError("no references to compare with")
    answer, said = _spaced(answer), [_spaced(reference) for reference in references]
    if len(set(said)) > 1:
        answer, said = normalize(answer), [normalize(reference) for reference in said]
    matches = said.count(answer)
    scores = [min((matches - (one == answer)) / 3, 1) for one in said]
    return sum(scores) / len(scores)


def _spaced(answer: str) -> str:
    return answer.replace("\n", " ").replace("\t", " ").strip()


def exact_match(answer: str, answers: Sequence[str]) -> float:
    """1 if an answer is one of ``answers`` but for case and spaces, else 0: the accuracy of MSRVTT-QA."""
    return float(_plain(answer) in {_plain(right) for right in answers})


def _plain(answer: str) -> str:
    return " ".join(answer.lower().split())


def question_score(answer: str, question: Question) -> float | None:
    """VQAv2's accuracy where the answers of at least four annotators are given, else exact match (of fewer, no three
    others can agree with one left out); None without any right answer."""
    if len(question.references) > 3:
        return vqa_accuracy(answer, question.references)
    return exact_match(answer, question.answers) if question.answers else None


def vqa_metrics(scores: Sequence[float | None], questions: Sequence[Question]) -> dict[str, float]:
    """``accuracy`` and that of each kind of question, in percent; empty if a question has no score.

    Args:
        scores: of each question, from `question_score`.
    """
    known = [score for score in scores if score is not None]
    if not known or len(known) < len(scores):
        return {}
    found = {"accuracy": 100 * sum(known) / len(known)}
    kinds = sorted({question.kind for question in questions} - {""}, key=lambda kind: (_order(kind), kind))
    for kind in kinds:
        own = [score for score, question in zip(known, questions, strict=True) if question.kind == kind]
        found[kind] = 100 * sum(own) / len(own)
    return found


def _order(kind: str) -> int:
    return {"yes/no": 0, "number": 1, "other": 3}.get(kind, 2)  # VQAv2's own order


def upload_rows(answers: Sequence[str], questions: Sequence[Question]) -> list[dict[str, int | str]]:
    """What VQAv2's server takes: ``[{"question_id": int, "answer": str}, ...]``.

    Raises:
        AuroraError: if a question's id is no number.
    """
    for question in questions:
        if not question.id.isdecimal():
            raise AuroraError(
                f"{question.source or 'questions'}, line {question.line}: question id {question.id!r} is no number, "
                "which VQAv2's server wants"
            )
    return [
        {"question_id": int(question.id), "answer": answer} for answer, question in zip(answers, questions, strict=True)
    ]
