"""What a run's gallery shows: queries or questions whose right answer moved most, and as many drawn blindly."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from ..data.rows import ImageTextDataset, QuestionDataset
from ..evaluation.outcome import AnswerOutcome, RetrievalOutcome
from .sheets import AnsweredQuestion, GalleryQuery, Hit, answer_gallery, query_gallery

TOP = 5
RIGHT = 0.5  # an answer with this accuracy counts as right: at least two annotators of VQAv2's ten gave it


def before_and_after(
    path: Path,
    dataset: ImageTextDataset,
    before: RetrievalOutcome,
    after: RetrievalOutcome,
    *,
    texts: int = 8,
    images: int = 4,
) -> None:
    """Draw ``texts`` text queries and ``images`` picture queries of ``dataset`` with their top five by both models.

    Half of each are drawn evenly from the split whatever became of them; the other half are those that gained most.
    """
    features, models = after.features, (before, after)
    text_rows = _choose(before.ranks.images, after.ranks.images, texts)
    image_rows = _choose(before.ranks.texts, after.ranks.texts, images)
    scores = [model.scores.rows(image_rows, text_rows) for model in models]
    queries = []
    for place, row in enumerate(text_rows):
        own = features.text_ids[row]
        hits = [
            [Hit(dataset.image(i), None, features.image_ids[i] == own, float(values[i])) for i in _top(values)]
            for values in (of_texts[place] for _, of_texts in scores)
        ]
        queries.append(GalleryQuery(features.texts[row], None, hits[0], hits[1]))
    for place, row in enumerate(image_rows):
        own = features.image_ids[row]
        hits = [
            [Hit(None, features.texts[i], features.text_ids[i] == own, float(values[i])) for i in _top(values)]
            for values in (of_images[place] for of_images, _ in scores)
        ]
        queries.append(GalleryQuery(None, dataset.image(row), hits[0], hits[1]))
    query_gallery(path, queries)


def _top(scores: np.ndarray) -> list[int]:
    return [int(i) for i in np.argsort(-scores, kind="stable")[:TOP]]


def answers_before_and_after(
    path: Path, dataset: QuestionDataset, before: AnswerOutcome, after: AnswerOutcome, *, questions: int = 10
) -> None:
    """Draw questions of ``dataset`` with their answers by both models: half drawn evenly from the split, half those
    that gained most."""
    scores = [np.array([score or 0.0 for score in found.scores]) for found in (before, after)]
    answered = []
    for row in _half_spread(scores[1] - scores[0], questions):
        item = dataset[row]
        right = item.answers[int(np.argmax(item.weights))] if item.answers else ""
        was, now = (
            (found.answers[row], bool(score[row] >= RIGHT))
            for found, score in zip((before, after), scores, strict=True)
        )
        answered.append(AnsweredQuestion(dataset.image(row), item.question, right, was, now))
    answer_gallery(path, answered)


# by task; one that is not here has no gallery
GALLERIES: dict[str, Callable[..., Any]] = {"retrieval": before_and_after, "vqa": answers_before_and_after}


def _choose(before: np.ndarray, after: np.ndarray, count: int) -> list[int]:
    """Queries to show by their ranks: half evenly spread, half with the largest gain in reciprocal rank."""
    return _half_spread(1 / after - 1 / before, count)


def _half_spread(gain: np.ndarray, count: int) -> list[int]:
    """Rows to show: half evenly spread, half with the largest gain."""
    spread = np.linspace(0, len(gain) - 1, min(count - count // 2, len(gain))).round().astype(int)
    best = [int(row) for row in np.argsort(-gain, kind="stable") if row not in spread]
    return [*dict.fromkeys(int(row) for row in spread), *best[: count // 2]]
