"""What an evaluation of a split gives: its metrics, and what every single query came to."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from ..data.rows import Item, Question
from .features import Features
from .recall import MEAN, Ranks, rank_metrics, values_of
from .scores import Scores
from .uncertainty import Difference, Interval, Sample, differences, intervals
from .vqa_accuracy import vqa_metrics

ITC_ONLY = "ITC only"  # the other protocol of what ITM reranked
JOINT = " | "  # between several right answers


class Outcome(ABC):
    """What `Task.evaluate` gives, whatever the task."""

    @property
    @abstractmethod
    def metrics(self) -> dict[str, float]:
        """Metrics in percent, median ranks as they are; empty where the right answers are not published."""

    @property
    @abstractmethod
    def sample(self) -> Sample:
        """The queries behind the metrics, in clusters by their picture; only where there are metrics."""

    @property
    @abstractmethod
    def errors(self) -> np.ndarray:
        """How wrong the model is at every example of a split, less being better: finer than the metrics, so that two
        models are told apart by few examples."""

    @property
    def choice(self) -> dict[str, Any]:
        """Settings of the task that the evaluated split settled."""
        return {}

    def others(self) -> dict[str, Outcome]:
        """Outcomes by other protocols, under their names."""
        return {}

    @abstractmethod
    def asked(self) -> list[dict[str, str]]:
        """What every query asks, and what is right: the same columns for all."""

    @abstractmethod
    def results(self) -> list[dict[str, Any]]:
        """What became of every query of `asked` with this model."""

    @cached_property
    def intervals(self) -> dict[str, Interval]:
        """The 95% interval of every metric, see `uncertainty.intervals`."""
        return intervals(self.sample) if self.metrics else {}

    def gain_over(self, before: Outcome) -> dict[str, Difference]:
        """How much higher every metric is than another model's on the same split, see `uncertainty.differences`."""
        return differences(before.sample, self.sample) if self.metrics else {}


@dataclass(frozen=True, eq=False)
class RetrievalOutcome(Outcome):
    """Scores of all pairs of a split: its pictures or clips, and all their texts."""

    scores: Scores
    features: Features
    items: Sequence[Item]

    @cached_property
    def ranks(self) -> Ranks:
        """The rank of the best right item of every query."""
        return self.scores.ranks(self.features)

    @cached_property
    def metrics(self) -> dict[str, float]:
        """See `recall.rank_metrics`."""
        return rank_metrics(self.ranks)

    @property
    def sample(self) -> Sample:
        numbers: dict[str, int] = {}
        pictures = np.array([numbers.setdefault(name, len(numbers)) for name in self.features.image_ids])
        clusters = {"text": pictures, "image": np.array([numbers[name] for name in self.features.text_ids])}
        ranks = self.ranks.both()
        means = {
            f"{side}_{name}": (values, clusters[side])
            for side, own in ranks.items()
            for name, values in values_of(own).items()
        }
        medians = {f"{side}_median_rank": (own, clusters[side]) for side, own in ranks.items()}
        return Sample(len(numbers), means, medians, {MEAN: tuple(name for name in means if "_recall@" in name)})

    @property
    def errors(self) -> np.ndarray:
        """Logarithms of the ranks, pictures first."""
        errors: np.ndarray = np.log(np.concatenate([self.ranks.texts, self.ranks.images]))
        return errors

    @property
    def choice(self) -> dict[str, Any]:
        return self.scores.choice

    def others(self) -> dict[str, Outcome]:
        if not self.scores.reranked:
            return {}
        return {ITC_ONLY: RetrievalOutcome(self.scores.by_similarity(), self.features, self.items)}

    def asked(self) -> list[dict[str, str]]:
        """Pictures first, by their files, then texts; every direction with the texts or files that are right."""
        texts: dict[str, list[str]] = {}
        files: dict[str, list[str]] = {}
        for own, text in zip(self.features.text_ids, self.features.texts, strict=True):
            texts.setdefault(own, []).append(text)
        for item in self.items:
            files.setdefault(item.id, []).append(item.image)
        queries = [("image to text", item.image, texts[item.id]) for item in self.items]
        queries += [
            ("text to image", text, files[own])
            for own, text in zip(self.features.text_ids, self.features.texts, strict=True)
        ]
        return [{"direction": way, "query": query, "right": JOINT.join(right)} for way, query, right in queries]

    def results(self) -> list[dict[str, Any]]:
        """The rank of the best right item, and what stands first."""
        of_pictures, of_texts = self.scores.first()
        first = [self.features.texts[place] for place in of_pictures]
        first += [self.items[place].image for place in of_texts]
        ranks = [*self.ranks.texts.tolist(), *self.ranks.images.tolist()]
        return [{"rank": rank, "first": top} for rank, top in zip(ranks, first, strict=True)]


@dataclass(frozen=True, eq=False)
class AnswerOutcome(Outcome):
    """The answer to every question of a split, in its order, and how right each is (None: not known)."""

    answers: list[str]
    scores: list[float | None]  # in [0, 1]
    questions: Sequence[Question]

    @cached_property
    def metrics(self) -> dict[str, float]:
        """See `vqa_accuracy.vqa_metrics`."""
        return vqa_metrics(self.scores, self.questions)

    @property
    def sample(self) -> Sample:
        numbers: dict[str, int] = {}
        pictures = np.array([numbers.setdefault(question.image, len(numbers)) for question in self.questions])
        values, kinds = 100 * (1 - self.errors), np.array([question.kind for question in self.questions])
        whole, *others = self.metrics
        own = {whole: np.ones(len(kinds), bool)} | {kind: kinds == kind for kind in others}
        return Sample(len(numbers), {name: (values[rows], pictures[rows]) for name, rows in own.items()})

    @property
    def errors(self) -> np.ndarray:
        """1 less how right each answer is."""
        return 1 - np.array([score for score in self.scores if score is not None])

    def asked(self) -> list[dict[str, str]]:
        return [
            {"picture": question.image, "question": question.question, "right": JOINT.join(question.answers)}
            for question in self.questions
        ]

    def results(self) -> list[dict[str, Any]]:
        """How right the answer is, in [0, 1], and the answer."""
        scores = ("" if score is None else score for score in self.scores)
        return [{"score": score, "answer": answer} for score, answer in zip(scores, self.answers, strict=True)]
