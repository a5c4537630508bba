"""Answering questions about pictures and clips with BLIP's objective (arXiv 2201.12086, section 4.3).

    picture or frames --> vision tower --.
                                         v
    [ENC] question ---------> fused text encoder --.
                                                   v
    [DEC] answer ----------------------------> decoder --> the answer's tokens, one place on, and its end

Training writes every distinct answer of a question, weighted by its share of the annotators. A question's keys and
values are projected once for all its answers, in training and in inference by rank, and a picture's once for all its
questions.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from ..adapter.additions import additions
from ..backbones.base import AnsweringBackbone, Texts
from ..backbones.frames import media_states
from ..data.rows import Dataset, QuestionDataset, load_media
from ..distributed import gather, objects, own_share
from ..errors import AuroraError
from ..evaluation.vqa_accuracy import question_score, upload_rows, vqa_metrics
from .base import Task
from .settings import TaskSettings, VQASettings

QUESTIONS = 32  # a batch of inference
DROPPED = str.maketrans("", "", '.!"()*#:;~')  # out of questions: BLIP never saw these marks in them
PAIRS = 512  # of question and candidate that rank scores at a time; at 4 tokens and 30,524 words 250 MB of logits


@dataclass
class Answers:
    """The answer to every question of a split, in its order, and how right each is (None: not known)."""

    answers: list[str]
    scores: list[float | None]  # in [0, 1]


class VQA(Task):
    """The loss of a batch and the answers to a split.

    A batch is a dict of ``pixel_values`` (B, 3, H, W), of clips (B, frames, 3, H, W); ``question_ids`` and
    ``question_mask`` (B, S); ``answer_ids`` and ``answer_mask`` (A, T) of all questions' answers, with the question of
    each in ``which`` (A,) and its weight in ``weights`` (A,). ``which`` and ``answer_lengths``, the tokens of each
    answer, decide on shapes, so they are lists, which stay on the CPU.

    Args:
        backbone: with its adapter injected and its trainable weights marked.
        settings: numbers of the objective and of inference.
    """

    data = QuestionDataset
    example = "question"
    main_metric = "accuracy"

    backbone: AnsweringBackbone
    settings: VQASettings

    def __init__(self, backbone: AnsweringBackbone, settings: VQASettings | None = None) -> None:
        super().__init__(backbone, settings or VQASettings())

    @property
    def objective(self) -> str:
        return "cross-entropy of the answers"

    @property
    def protocol(self) -> str:
        return f"answers by {self.settings.inference}"

    @classmethod
    def check(cls, settings: TaskSettings, dataset: Dataset) -> None:
        super().check(settings, dataset)
        assert isinstance(settings, VQASettings) and isinstance(dataset, QuestionDataset)
        for row, question in enumerate(dataset):
            if not question.answers and question.split in ("train", "validation"):
                raise AuroraError(
                    f"{dataset.where(row)}: no answer to {question.question!r}; questions of split "
                    f"{question.split} need one"
                )
        _need_candidates(settings, dataset)

    @classmethod
    def examples(cls, dataset: QuestionDataset) -> list[tuple[int, dict[str, Any]]]:
        """Every question of a split with its answers and their weights."""
        return [
            (row, {"question": item.question, "answers": item.answers, "weights": item.weights})
            for row, item in enumerate(dataset)
        ]

    def collate(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        questions = self._questions([row["question"] for row in rows])
        answers = self._answers([answer for row in rows for answer in row["answers"]])
        return {
            "pixel_values": torch.stack([row["pixels"] for row in rows]),
            "question_ids": questions.ids,
            "question_mask": questions.mask,
            "answer_ids": answers.ids,
            "answer_mask": answers.mask,
            "answer_lengths": answers.lengths().tolist(),
            "which": [place for place, row in enumerate(rows) for _ in row["answers"]],
            "weights": torch.tensor([weight for row in rows for weight in row["weights"]], dtype=torch.float32),
        }

    def forward(
        self,
        pixel_values: Tensor,
        question_ids: Tensor,
        question_mask: Tensor,
        answer_ids: Tensor,
        answer_mask: Tensor,
        which: Sequence[int] | Tensor,
        weights: Tensor,
        answer_lengths: Sequence[int] | None = None,
    ) -> dict[str, Tensor]:
        """``loss`` of a batch: the sum over answers of weight * cross-entropy, divided by the number of pictures."""
        backbone, asked = self.backbone, Texts(question_ids, question_mask)
        media = media_states(backbone, pixel_values)
        context = None
        if self.training and any(part.field == "context" for _, _, part in additions(self.model)):
            context = gather(backbone.question_context(asked))
        questions = backbone.encode_question(asked, media, context=context)
        losses = backbone.answer_loss(
            Texts(answer_ids, answer_mask),
            questions,
            question_mask,
            which,
            lengths=answer_lengths,
            label_smoothing=self.settings.label_smoothing,
        )
        return {"loss": (weights * losses).sum() / len(pixel_values)}

    @torch.no_grad()
    def evaluate(
        self, dataset: QuestionDataset, *, cache: Path | None = None, rescore: int = 0, progress: bool = False
    ) -> tuple[dict[str, float], Answers]:
        """Accuracy of a split, also by kind of question, and its answers.

        Raises:
            AuroraError: if rank has no candidates to choose from, or for ``rescore``.
        """
        if rescore:
            raise AuroraError("task vqa ranks no lists to score again; leave out --rescore")
        _need_candidates(self.settings, dataset)
        was_training = self.training
        self.eval()
        try:
            own: dict[int, str] = {}  # row -> answer, of this rank's share
            candidates = list(dataset.candidates)
            tokens = self._answers(candidates) if self.settings.inference == "rank" else None
            for rows, states, mask in self._encoded(dataset, progress):
                if tokens is None:
                    found = self.backbone.generate_answers(
                        states, mask, num_beams=self.settings.num_beams, max_tokens=self.settings.max_answer_tokens
                    )
                else:
                    best = self.rank(states, mask, tokens)
                    found = [candidates[place] for place in best.tolist()]
                own |= dict(zip(rows, found, strict=True))
        finally:
            self.train(was_training)
        every = {row: answer for share in objects(own) for row, answer in share.items()}
        answers = [every[row] for row in range(len(dataset))]
        scores = [question_score(answer, question) for answer, question in zip(answers, dataset, strict=True)]
        return vqa_metrics(scores, list(dataset)), Answers(answers, scores)

    @torch.no_grad()
    def rank(self, question_states: Tensor, question_mask: Tensor, candidates: Texts) -> Tensor:
        """The likeliest of C candidates for each of Q questions, (Q,) on the CPU.

        The ``k_test`` candidates whose first token is likeliest are scored in full, by the loss of training. Among
        candidates of one first token those that come first are taken.

        Args:
            question_states: (Q, S, D), as `AnsweringBackbone.encode_question` gives them, with their mask (Q, S).
            candidates: C of them on the CPU: which are scored, and how, is known there.
        """
        backbone, k, device = self.backbone, min(self.settings.k_test, len(candidates)), question_states.device
        start = candidates.ids[:1, :1].expand(len(question_states), 1).to(device)
        words = backbone.answer_logits(Texts(start, torch.ones_like(start)), question_states, question_mask)[:, 0]
        first, of = candidates.ids[:, 1].unique(return_inverse=True)
        likely = words[:, first.to(device)][:, of.to(device)]
        chosen = likely.argsort(dim=1, descending=True, stable=True)[:, :k].cpu()  # (Q, k)
        which = torch.arange(len(chosen)).repeat_interleave(k)
        flat = chosen.flatten()
        lengths = candidates.lengths()[flat]
        losses = torch.empty(len(flat), device=device)
        for part in lengths.argsort(stable=True).split(PAIRS):  # alike lengths: little padding
            losses[part.to(device)] = backbone.answer_loss(
                candidates.rows(flat[part]).trimmed().to(device),
                question_states,
                question_mask,
                which[part],
                lengths=lengths[part].tolist(),
                label_smoothing=self.settings.label_smoothing,
            )
        best = losses.view(-1, k).argmin(1).cpu()
        return chosen.gather(1, best[:, None])[:, 0]

    def errors(self, found: Answers) -> np.ndarray:  # type: ignore[override]
        """1 less how right each answer is."""
        return 1 - np.array([score for score in found.scores if score is not None])

    def check_upload(self, dataset: QuestionDataset) -> None:
        upload_rows([""] * len(dataset), list(dataset))

    def upload(self, dataset: QuestionDataset, found: Answers) -> list[dict[str, Any]]:  # type: ignore[override]
        """See `evaluation.vqa_accuracy.upload_rows`."""
        return upload_rows(found.answers, list(dataset))

    def _encoded(self, dataset: QuestionDataset, progress: bool) -> Iterator[tuple[list[int], Tensor, Tensor]]:
        """Rows, states (Q, S, D) and mask (Q, S) of this rank's questions, a batch at a time; those of one picture
        follow each other and share it."""
        device = next(iter(self.backbone.parameters())).device
        view = self.backbone.view()
        places: dict[str, list[int]] = {}
        for row, question in enumerate(dataset):
            places.setdefault(question.image, []).append(row)
        share = own_share(len(places))
        order = [row for rows in list(places.values())[share.start : share.stop] for row in rows]
        for first in tqdm(range(0, len(order), QUESTIONS), "questions", leave=False, disable=not progress):
            rows = order[first : first + QUESTIONS]
            shown = {dataset[row].image: row for row in rows}
            numbers = {image: number for number, image in enumerate(shown)}
            pixels = [load_media(dataset, row, view, self.settings.evaluation_frames) for row in shown.values()]
            media = media_states(self.backbone, torch.stack(pixels).to(device))
            questions = self._questions([dataset[row].question for row in rows]).to(device)
            which = [numbers[dataset[row].image] for row in rows]
            yield rows, self.backbone.encode_question(questions, media, which), questions.mask

    def _questions(self, texts: list[str]) -> Texts:
        plain = [text.translate(DROPPED) for text in texts]
        return self.backbone.texts(plain, self.settings.max_question_tokens)

    def _answers(self, texts: list[str]) -> Texts:
        return self.backbone.texts(texts, self.backbone.longest)


def _need_candidates(settings: VQASettings, dataset: QuestionDataset) -> None:
    if settings.inference == "rank" and not dataset.candidates:
        raise AuroraError(
            f"{dataset.name} has no list of answers to rank; set task.inference=generate, which writes them"
        )
