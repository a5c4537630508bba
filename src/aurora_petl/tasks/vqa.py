"""Answering questions about pictures and clips: the loss of right answers, and answers to a split.

Training writes every distinct answer of a question, weighted by its share of the annotators. How a model reads pictures
and questions, and how it writes, is the backbone's own (`backbones.base.Writer`). A picture is encoded once for all its
questions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from ..backbones.answers import up_to
from ..backbones.base import Writer, is_ranker
from ..data.loading import media_ahead
from ..data.rows import Dataset, QuestionDataset
from ..distributed import objects, own_share, rank
from ..errors import AuroraError, short
from ..evaluation.outcome import AnswerOutcome
from ..evaluation.vqa_accuracy import question_score, upload_rows
from ..notes import note
from .base import Task
from .settings import TaskSettings, VQASettings

QUESTIONS = 32  # a batch of inference


class VQA(Task):
    """The loss of a batch and the answers to a split.

    A batch is what the backbone's `collate` gives, with ``weights`` (A,), that of each answer, and ``rows``, the number
    of questions.

    Args:
        backbone: with its adapter injected and its trainable weights marked.
        settings: numbers of the objective and of inference; what is null in them is the backbone's own.
    """

    data = QuestionDataset
    example = "question"
    main_metric = "accuracy"

    backbone: Writer
    settings: VQASettings

    def __init__(self, backbone: Writer, settings: VQASettings | None = None) -> None:
        super().__init__(backbone, settings or VQASettings())

    @classmethod
    def fitted(cls, settings: VQASettings, backbone: Any, batch_size: int = 0, examples: int = 0) -> VQASettings:
        own = {name: value for name, value in backbone.defaults.items() if getattr(settings, name) in (None, "")}
        full = replace(settings, **own)
        if full.inference == "rank" and not is_ranker(backbone):
            raise AuroraError(
                f"task.inference is rank, but {backbone.name} writes its answers; set task.inference=generate"
            )
        if "{question}" not in full.prompt:
            raise AuroraError(
                f"task.prompt is {short(full.prompt)}; it must have {{question}} where the question belongs"
            )
        return full

    @property
    def numbers(self) -> VQASettings:
        """The settings, with the backbone's own where they are null."""
        return self.fitted(self.settings, self.backbone)

    @property
    def label_smoothing(self) -> float:
        """The settings' or the backbone's own, by a look that torch.compile can follow."""
        own = self.settings.label_smoothing
        return float(self.backbone.defaults["label_smoothing"] if own is None else own)

    @property
    def objective(self) -> str:
        return "cross-entropy of the answers"

    @property
    def protocol(self) -> str:
        return f"answers by {self.numbers.inference}"

    @classmethod
    def check(cls, settings: TaskSettings, dataset: Dataset[Any]) -> None:
        super().check(settings, dataset)
        assert isinstance(settings, VQASettings) and isinstance(dataset, QuestionDataset)
        for row, question in enumerate(dataset):
            if not question.answers and question.split in ("train", "validation"):
                raise AuroraError(
                    f"{dataset.where(row)}: no answer to {question.question!r}; questions of split "
                    f"{question.split} need one"
                )
        _need_candidates(settings, dataset)
        most = settings.max_answer_tokens
        lengths = [len(answer.split()) for row in dataset for answer in row.answers]
        longer = sum(length > most for length in lengths)
        if settings.inference != "rank" and 20 * longer > len(lengths) and rank() == 0:
            note(
                f"{longer:,} of {len(lengths):,} answers have more than {most} words, and a model that writes "
                f"them ends at that many tokens; set task.max_answer_tokens, like {min(512, 2 * max(lengths))}"
            )

    @classmethod
    def examples(cls, dataset: QuestionDataset) -> list[tuple[int, dict[str, Any]]]:
        """Every question of a split with its answers and their weights."""
        return [
            (row, {"question": item.question, "answers": item.answers, "weights": item.weights})
            for row, item in enumerate(dataset)
        ]

    def collate(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        answers = [answer for row in rows for answer in row["answers"]]
        of = [place for place, row in enumerate(rows) for _ in row["answers"]]
        weights = [weight for row in rows for weight in row["weights"]]
        more = up_to(len(answers), self.multiple) - len(answers)  # the first one again, without weight
        batch = self.read(
            [row["pixels"] for row in rows],
            [row["question"] for row in rows],
            answers=answers + answers[:1] * more,
            of=of + of[:1] * more,
            multiple=self.multiple,
        )
        shares = torch.tensor(weights + [0.0] * more, dtype=torch.float32)
        return batch | {"weights": shares, "rows": len(rows)}

    def loss(self, weights: Tensor, rows: int, **batch: Any) -> dict[str, Tensor]:
        """``loss`` of a batch: the sum over answers of weight * cross-entropy, divided by the number of questions."""
        losses = self.backbone.losses(batch, self.label_smoothing)
        return {"loss": (weights * losses).sum() / rows}

    @torch.no_grad()
    def evaluate(
        self, dataset: QuestionDataset, *, cache: Path | None = None, rescore: int = 0, progress: bool = False
    ) -> AnswerOutcome:
        """Answers to the questions of a split, and how right each is.

        Raises:
            AuroraError: if rank has no candidates to choose from, or for ``rescore``.
        """
        if rescore:
            raise AuroraError("task vqa ranks no lists to score again; leave out --rescore")
        _need_candidates(self.numbers, dataset)
        was_training = self.training
        self.eval()
        try:
            own: dict[int, str] = {}  # row -> answer, of this rank's share
            for rows, answers in self._answered(dataset, progress):
                own |= dict(zip(rows, answers, strict=True))
        finally:
            self.train(was_training)
        every = {row: answer for share in objects(own) for row, answer in share.items()}
        answers = [every[row] for row in range(len(dataset))]
        scores = [question_score(answer, question) for answer, question in zip(answers, dataset, strict=True)]
        return AnswerOutcome(answers, scores, dataset.items)

    def check_upload(self, dataset: QuestionDataset) -> None:
        upload_rows([""] * len(dataset), list(dataset))

    def upload(self, dataset: QuestionDataset, outcome: AnswerOutcome) -> list[dict[str, Any]]:
        """See `evaluation.vqa_accuracy.upload_rows`."""
        return upload_rows(outcome.answers, list(dataset))

    def _answered(self, dataset: QuestionDataset, progress: bool) -> Iterator[tuple[list[int], list[str]]]:
        """Rows and answers of this rank's questions, a batch at a time."""
        answer = self.answerer(dataset.candidates)
        for rows, batch in self._batches(dataset, progress):
            yield rows, answer(batch)

    def answerer(self, candidates: Sequence[str] = ()) -> Callable[[dict[str, Any]], list[str]]:
        """What gives the answers to the questions of a batch that `read` made, of any device.

        Args:
            candidates: what inference by rank chooses from.
        """
        backbone, numbers = self.backbone, self.numbers
        texts = backbone.texts(list(candidates), backbone.longest) if numbers.inference == "rank" else None
        device = next(iter(backbone.parameters())).device

        def answer(batch: dict[str, Any]) -> list[str]:
            batch = {key: part.to(device) if isinstance(part, Tensor) else part for key, part in batch.items()}
            if texts is None or not is_ranker(backbone):
                return backbone.write(batch, beams=numbers.num_beams, longest=numbers.max_answer_tokens)
            best = backbone.rank(batch, texts, k_test=numbers.k_test, label_smoothing=numbers.label_smoothing or 0.0)
            return [candidates[place] for place in best]

        return answer

    def _batches(self, dataset: QuestionDataset, progress: bool) -> Iterator[tuple[list[int], dict[str, Any]]]:
        """Rows and batches of this rank's questions; those of one picture follow each other and share it."""
        view = self.backbone.view()
        places: dict[str, list[int]] = {}
        for row, question in enumerate(dataset):
            places.setdefault(question.image, []).append(row)
        share = own_share(len(places))
        order = [row for rows in list(places.values())[share.start : share.stop] for row in rows]
        batches = [order[first : first + QUESTIONS] for first in range(0, len(order), QUESTIONS)]
        shown = [{dataset[row].image: row for row in rows} for rows in batches]
        wanted = [row for pictures in shown for row in pictures.values()]
        ahead = media_ahead(dataset, wanted, view, self.settings.evaluation_frames)
        for rows, pictures in zip(tqdm(batches, "questions", leave=False, disable=not progress), shown, strict=True):
            places_of = {image: number for number, image in enumerate(pictures)}
            pixels = [*islice(ahead, len(pictures))]
            which = [places_of[dataset[row].image] for row in rows]
            yield rows, self.read(pixels, [dataset[row].question for row in rows], which=which)

    def read(self, pixels: Sequence[Tensor], questions: Sequence[str], **more: Any) -> dict[str, Any]:
        """What the backbone's `collate` makes of pictures and questions, on the CPU."""
        numbers = self.numbers
        longest = numbers.max_question_tokens or self.backbone.longest
        return self.backbone.collate(pixels, questions, prompt=numbers.prompt, longest=longest, **more)


def _need_candidates(settings: VQASettings, dataset: QuestionDataset) -> None:
    if settings.inference == "rank" and not dataset.candidates:
        raise AuroraError(
            f"{dataset.name} has no list of answers to rank; set task.inference=generate, which writes them"
        )
