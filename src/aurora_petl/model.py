"""A model as it is used from Python: pictures and texts to vectors, a ranking, or answers to questions."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property
from io import IOBase
from pathlib import Path
from typing import Any, TypeAlias, cast

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from .backbones import DualEncoder, Writer, is_ranker, similarity
from .data.given import given_picture
from .errors import AuroraError, short, whole_number
from .files import read_json
from .recipe import Recipe
from .search.encoder import Encoder
from .search.nearest import top_k
from .tasks.settings import RetrievalSettings, VQASettings
from .tasks.vqa import VQA
from .training import ANSWERS

Picture: TypeAlias = str | Path | Image.Image  # a file, or a picture of PIL
Vectors: TypeAlias = np.ndarray | Tensor


@dataclass(frozen=True)
class Ranked:
    """An item of a ranking: its place in the list that was ranked, from 0, and its score."""

    index: int
    score: float


class Model:
    """A pretrained or tuned model in evaluation mode; `aurora_petl.load` makes one.

    Threads may share it. Pictures are decoded by several threads, and one batch at a time goes through the model, under
    a lock: a tokenizer changes while it is used.

    Args:
        backbone: on its device, with its adapter if it has one.
        name: what it was loaded by.
        task: ``retrieval`` or ``vqa``.
        recipe: of the run that tuned it; None if none did.
        folder: that run's.
    """

    def __init__(
        self,
        backbone: DualEncoder | Writer,
        name: str,
        task: str,
        recipe: Recipe | None = None,
        folder: Path | None = None,
    ) -> None:
        self.backbone, self.name, self.task = backbone, name, task
        self.recipe, self.folder = recipe, folder
        backbone.module.eval()
        self._view = backbone.view()
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        """What goes to other processes: all but the lock, and what is made anew."""
        return {name: value for name, value in vars(self).items() if name not in ("_lock", "_encoder")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, _lock=threading.Lock())

    def __repr__(self) -> str:
        tuned = f", tuned by {self.recipe.method}" if self.recipe else ""
        return f"Model({self.name!r}, {self.task}{tuned}, on {self.device})"

    @property
    def device(self) -> torch.device:
        return next(iter(self.backbone.parameters())).device

    @cached_property
    def metrics(self) -> dict[str, Any]:
        """What the run left in ``metrics.json``; empty if no run tuned the model."""
        file = self.folder / "metrics.json" if self.folder else None
        return read_json(file) if file and file.is_file() else {}

    @property
    def feature_shape(self) -> tuple[int, ...]:
        """The shape of what `encode_images` gives for a picture: (P,), or (V, P) where a picture has V vectors.

        Raises:
            AuroraError: if the model is not one of retrieval.
        """
        return self._encoder.backbone.feature_shape

    # Retrieval

    def encode_images(
        self,
        images: Picture | Iterable[Picture],
        *,
        batch_size: int = 32,
        convert_to_tensor: bool = False,
        show_progress_bar: bool = False,
    ) -> Any:
        """Vectors of pictures, each of length 1.

        Args:
            images: files or pictures of PIL, or a single one.
            batch_size: pictures that go through the model at once.
            convert_to_tensor: give a tensor on the CPU in the place of an array.

        Returns:
            float32 of shape (N, P), or (N, V, P) where a picture has V vectors, as BLIP-2's do; (P,) or (V, P) of a
            single picture.

        Raises:
            AuroraError: if the model is not one of retrieval, or a picture cannot be read.
        """
        encoder, (every, alone) = self._encoder, _listed(images)
        parts = self._batches("pictures", every, batch_size, show_progress_bar)
        vectors = [self._alone(encoder.pictures, torch.stack(self._pixels(part))) for part in parts]
        return _given(vectors, self.feature_shape, alone, convert_to_tensor)

    def encode_texts(
        self,
        texts: str | Iterable[str],
        *,
        batch_size: int = 32,
        convert_to_tensor: bool = False,
        show_progress_bar: bool = False,
    ) -> Any:
        """Vectors of texts, each of length 1. A text is cut where the run, or else the model, cuts texts.

        Args:
            texts: texts, or a single one.
            batch_size: texts that go through the model at once.
            convert_to_tensor: give a tensor on the CPU in the place of an array.

        Returns:
            float32 of shape (N, P); (P,) of a single text.

        Raises:
            AuroraError: if the model is not one of retrieval, or a text is none.
        """
        encoder, (every, alone) = self._encoder, _listed(texts)
        _check_texts(every)
        parts = self._batches("texts", every, batch_size, show_progress_bar)
        vectors = [self._alone(encoder.texts, part) for part in parts]
        return _given(vectors, self.feature_shape[-1:], alone, convert_to_tensor)

    def similarity(self, queries: Vectors, items: Vectors) -> np.ndarray:
        """The similarity of every query with every item, (Q, N): the dot product of their vectors. Where one side has V
        vectors an item it is the largest of their products; where both have, the mean of those of like number.

        Args:
            queries: (Q, P) or (Q, V, P), as `encode_images` and `encode_texts` give them; (P,) is one query.
            items: (N, P) or (N, V, P); (P,) is one item.

        Raises:
            AuroraError: if these are no vectors of one width.
        """
        asked, given = _tensor(queries), _tensor(items)
        if asked.shape[-1] != given.shape[-1]:
            raise AuroraError(
                f"queries have {asked.shape[-1]} numbers each and items {given.shape[-1]}; encode both with one model"
            )
        return similarity(asked, given).numpy()

    def rank(
        self,
        query: Picture,
        *,
        images: Iterable[Picture] | Vectors | None = None,
        texts: Iterable[str] | Vectors | None = None,
        k: int = 10,
        rerank: int = 0,
        batch_size: int = 32,
        show_progress_bar: bool = False,
    ) -> list[Ranked]:
        """The ``k`` pictures, or texts, that fit a query best, best first.

        Args:
            query: a text; or a picture, as `Path` or picture of PIL, since text is read as text.
            images: the pictures to rank, or what `encode_images` gave for them.
            texts: the texts to rank in their place, or what `encode_texts` gave for them.
            rerank: so many of the best, at least ``k``, are ordered by ITM match logit + beta * similarity, beta of the
                run's recipe, as `aurora search --rerank` does. It needs pictures with a text, or texts with a picture,
                and a model with a second stage: BLIP or BLIP-2.

        Raises:
            AuroraError: if there is nothing to rank, both kinds are given, or the second stage lacks what it needs.
        """
        encoder = self._encoder
        if (images is None) == (texts is None):
            raise AuroraError("rank wants either images or texts to rank; give one of them")
        k, rerank = whole_number("k", k, 1), whole_number("rerank", rerank, 0)
        options: dict[str, Any] = {"batch_size": batch_size, "show_progress_bar": show_progress_bar}
        worded = isinstance(query, str)
        items: Any = images if texts is None else texts
        if not _are_numbers(items):
            items = _listed(items)[0]
        if rerank:
            self._check_rerank(encoder, worded, texts is None, items)
        encode = self.encode_images if texts is None else self.encode_texts
        vectors = _tensor(items if _are_numbers(items) else encode(items, **options))
        if not len(vectors):
            return []
        asked = self.encode_texts(query) if isinstance(query, str) else self.encode_images(query)
        if asked.shape[-1] != vectors.shape[-1]:
            raise AuroraError(
                f"the vectors to rank have {vectors.shape[-1]} numbers each, those of {self.name} {asked.shape[-1]}; "
                "encode them with this model"
            )
        scores, rows = top_k(_tensor(asked[None]), vectors, max(k, rerank) if rerank else k)
        ranked = [Ranked(int(row), float(score)) for row, score in zip(rows[0], scores[0], strict=True)]
        if rerank:
            ranked = self._reranked(encoder, query, items, ranked, batch_size)
        return ranked[:k]

    def _check_rerank(self, encoder: Encoder, worded: bool, pictures: bool, items: Any) -> None:
        if not encoder.matches:
            raise AuroraError(f"{self.name} has no second stage, which rerank needs; leave out rerank")
        if worded != pictures:
            raise AuroraError("rerank scores a picture with a text, not two of a kind; leave out rerank")
        if _are_numbers(items):
            raise AuroraError("rerank reads pictures and texts themselves; give them in the place of their vectors")

    def _reranked(
        self, encoder: Encoder, query: Picture, items: Any, ranked: list[Ranked], batch_size: int
    ) -> list[Ranked]:
        """The same items by the match logit of the second stage + beta * similarity."""
        scored = []
        for part in self._batches("pairs", ranked, batch_size, False):
            chosen = [items[one.index] for one in part]
            pixels = torch.stack(self._pixels(chosen if isinstance(query, str) else [query]))
            logits = self._alone(encoder.match, pixels, [query] if isinstance(query, str) else chosen)
            pairs = zip(part, logits.tolist(), strict=True)
            scored += [replace(one, score=logit + encoder.beta * one.score) for one, logit in pairs]
        return sorted(scored, key=lambda one: -one.score)

    @cached_property
    def _encoder(self) -> Encoder:
        if self.task != "retrieval":
            raise AuroraError(f"{self.name} answers questions, it gives no vectors; load a model or a run of retrieval")
        settings = self.recipe.task if self.recipe else RetrievalSettings()
        assert isinstance(settings, RetrievalSettings)
        return Encoder(cast(DualEncoder, self.backbone), settings.longest_text, settings.beta, self.device)

    # Question answering

    def answer(
        self,
        images: Picture | Iterable[Picture],
        questions: str | Iterable[str],
        *,
        candidates: Sequence[str] | None = None,
        batch_size: int = 32,
        show_progress_bar: bool = False,
    ) -> Any:
        """Answers to questions about pictures.

        A run answers as it is evaluated: by ``rank``, the likeliest of the answers in its data, or word by word, as its
        ``task.inference`` says. A model that no run tuned writes word by word.

        Args:
            images: a picture for each question, or one for all.
            questions: questions, or a single one.
            candidates: the answers to choose from; BLIP alone chooses.
            batch_size: questions that go through the model at once.

        Returns:
            A list with an answer for each question; a single answer to a single question.

        Raises:
            AuroraError: if the model is not one of ``vqa``, pictures and questions are not equally many, a picture
                cannot be read, or the run's list of answers is gone.
        """
        asked, single = _listed(questions)
        _check_texts(asked)
        shown, alone = _listed(images)
        if not alone and len(shown) != len(asked):
            raise AuroraError(
                f"{len(shown)} pictures for {len(asked)} questions; give one for each question, or one for all"
            )
        task, answer = self._answerer(candidates)
        one = self._pixels(shown) if alone else None
        answers: list[str] = []
        for part in self._batches("questions", range(len(asked)), batch_size, show_progress_bar):
            pixels = one if one is not None else self._pixels([shown[row] for row in part])
            which = [0] * len(part) if alone else None
            answers += self._alone(_answered, task, answer, pixels, [asked[row] for row in part], which)
        return answers[0] if single else answers

    def _answerer(self, candidates: Sequence[str] | None) -> tuple[VQA, Callable[[dict[str, Any]], list[str]]]:
        if self.task != "vqa":
            raise AuroraError(f"{self.name} finds pictures and texts, it answers no questions; load it with task='vqa'")
        backbone = cast(Writer, self.backbone)
        settings = self.recipe.task if self.recipe else VQASettings(inference="generate")
        assert isinstance(settings, VQASettings)
        if candidates is not None:
            if not is_ranker(backbone):
                raise AuroraError(f"{self.name} writes its answers and cannot choose; leave out candidates")
            if not candidates:
                raise AuroraError("candidates is empty; name the answers to choose from, or leave it out")
            settings = replace(settings, inference="rank")
        task = VQA(backbone, settings)
        if candidates is None and task.numbers.inference == "rank":
            candidates = self._own_candidates
        with self._lock:
            return task, task.answerer(candidates or ())

    @cached_property
    def _own_candidates(self) -> tuple[str, ...]:
        """The answers that the run's data offer, as the run keeps them."""
        assert self.folder is not None
        file = self.folder / ANSWERS
        if not file.is_file():
            raise AuroraError(f"{file} is missing, from which {self.name} chooses its answers; give candidates")
        answers = read_json(file)
        if not isinstance(answers, list) or not answers or not all(isinstance(answer, str) for answer in answers):
            raise AuroraError(f"{file} is no list of answers; give candidates")
        return tuple(answers)

    # All tasks

    def _pixels(self, pictures: Sequence[Picture]) -> list[Tensor]:
        """Pictures as the model reads them, decoded by several threads."""

        def read(picture: Picture) -> Tensor:
            return self._view(given_picture(picture))

        with ThreadPoolExecutor() as pool:
            return list(pool.map(read, pictures))

    def _alone(self, call: Callable[..., Any], *words: Any) -> Any:
        with self._lock, torch.inference_mode():
            return call(*words)

    def _batches(self, what: str, items: Sequence[Any], size: int, progress: bool) -> Iterator[Sequence[Any]]:
        size = whole_number("batch_size", size, 1)
        for first in tqdm(range(0, len(items), size), what, leave=False, disable=not progress):
            yield items[first : first + size]


def _answered(
    task: VQA,
    answer: Callable[[dict[str, Any]], list[str]],
    pixels: list[Tensor],
    asked: list[str],
    which: list[int] | None,
) -> list[str]:
    return answer(task.read(pixels, asked, which=which))


def _listed(items: Any) -> tuple[list[Any], bool]:
    """Items as a list, and whether it was a single one. What is no picture and no text counts as a single item, which
    its reader refuses by name."""
    if isinstance(items, (str, bytes, bytearray, Path, Image.Image, IOBase)) or _are_numbers(items):
        return [items], True
    if isinstance(items, Iterable) and not isinstance(items, Mapping):
        return list(items), False
    raise AuroraError(f"{short(items)} is neither one item nor a list of them")


def _are_numbers(items: Any) -> bool:
    return isinstance(items, Tensor) or (isinstance(items, np.ndarray) and items.dtype.kind not in "OSUT")


def _check_texts(texts: Sequence[Any]) -> None:
    for text in texts:
        if not isinstance(text, str):
            raise AuroraError(f"a text is {short(text)}; give text")
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise AuroraError(f"the text {short(text)} is not UTF-8; write it anew") from error


def _given(parts: list[Tensor], shape: tuple[int, ...], single: bool, as_tensor: bool) -> Any:
    """Vectors in the form that was asked for."""
    every = torch.cat(parts).float() if parts else torch.empty(0, *shape)
    every = every[0] if single else every
    return every if as_tensor else every.numpy()


def _tensor(vectors: Any) -> Tensor:
    """Vectors as float32 on the CPU, (N, ...); a single one, (P,), as (1, P)."""
    try:
        tensor = torch.as_tensor(vectors).detach().cpu().float()
    except (TypeError, ValueError) as error:
        raise AuroraError(
            f"{short(vectors)} holds no vectors; give what encode_images or encode_texts returns"
        ) from error
    return tensor if tensor.dim() > 1 else tensor[None]
