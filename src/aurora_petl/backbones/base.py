"""What tasks and evaluation may ask of a backbone: a few small capabilities, of which each family offers some.

Shapes: B pictures or texts, N picture tokens, T text tokens, D the width of states, P the width of the joint space, V
vectors an item. Tensors are on the model's device. ``which``, the places of pictures, may be a list or a tensor on the
CPU too: then shapes are the smallest that it allows. On another device it is not read.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, NamedTuple, Protocol, TypeGuard

import torch
import torch.nn.functional as F
from peft import PeftModel
from PIL import Image
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

PRODUCTS = 2**26  # of queries with vectors of items that are formed at once, 256 MiB in float32


@dataclass(frozen=True)
class Texts:
    """Tokens of B texts, and which of them are no padding; `Tunable.texts` gives them on the CPU."""

    ids: Tensor  # (B, T)
    mask: Tensor  # (B, T)
    fixed: bool = False  # whether padding must stay, as the model reads its last token

    def __len__(self) -> int:
        return len(self.ids)

    def rows(self, which: Any) -> Texts:
        """Some of the texts, by whatever indexes a tensor."""
        return replace(self, ids=self.ids[which], mask=self.mask[which])

    def split(self, count: int) -> list[Texts]:
        """Parts of ``count`` texts at most."""
        parts = zip(self.ids.split(count), self.mask.split(count), strict=True)
        return [replace(self, ids=ids, mask=mask) for ids, mask in parts]

    def to(self, device: Any) -> Texts:
        return replace(self, ids=self.ids.to(device), mask=self.mask.to(device))

    def lengths(self) -> Tensor:
        """(B,) tokens without padding"""
        return self.mask.sum(1)

    def cut(self, longest: int) -> Texts:
        """The first ``longest`` columns."""
        return Texts(self.ids[:, :longest], self.mask[:, :longest])

    def trimmed(self) -> Texts:
        """Without the columns that are padding in every row, if that may go. To look at the mask takes a wait if it is
        not on the CPU."""
        return self if self.fixed else self.cut(int(self.lengths().max()))

    def padded(self, width: int) -> Texts:
        """With columns of padding up to ``width``."""
        more = (0, max(0, width - self.ids.shape[1]))
        return Texts(F.pad(self.ids, more), F.pad(self.mask, more))


class Encoded(NamedTuple):
    """Pictures or texts, encoded."""

    feature: Tensor  # (B, P) of length 1; (B, V, P) where an item has V vectors
    states: Tensor | None = None  # (B, N, D) for a second stage, where it reads them


def similarity(queries: Tensor, items: Tensor) -> Tensor:
    """The dot product of every query's feature with every item's -> (Q, M).

    Where one side has several vectors, as BLIP-2's pictures do, it is the largest of their products. Where both have,
    which are two pictures, it is the mean over the products of like-numbered vectors: 1 of a picture with itself.

    Args:
        queries: (Q, P) or (Q, V, P).
        items: (M, P) or (M, V, P).
    """
    if queries.dim() == items.dim() == 2:
        return queries @ items.T
    if queries.dim() == items.dim():
        return queries.flatten(1) @ items.flatten(1).T / items.shape[1]
    if queries.dim() == 3:
        return similarity(items, queries).T
    at_once = max(1, PRODUCTS // (len(items) * items.shape[1] or 1))
    flat = items.flatten(0, 1).T
    return torch.cat([(part @ flat).unflatten(1, items.shape[:2]).amax(2) for part in queries.split(at_once)])


class View(Protocol):
    """A picture as a model reads it; all chance is drawn from ``rng``."""

    least: int  # pixels that it needs of either side of a picture, see `media.load_image`; 0: all that there are

    def __call__(self, image: Image.Image, rng: random.Random | None = None) -> Tensor:
        """RGB picture -> (3, H, W), or another tensor of three axes that `DualEncoder.encode_image` reads"""
        ...


class Tunable(Protocol):
    """A pretrained vision-language model, whatever its task: what methods, training and all tasks ask of it.

    ``model`` is the transformers model that peft adapts in place; every method reads it at call time, so an
    injected adapter takes part.
    """

    name: str
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    image_size: int  # pixels a side of the pictures that it reads
    longest: int  # tokens that a text may have
    heads: tuple[str, ...]  # modules and single parameters that `train_heads` trains beside the adapter
    adapter: PeftModel | None  # peft's wrapper of ``model`` once a method is applied

    @property
    def module(self) -> nn.Module:
        """The outermost module, which owns every weight: ``adapter`` if there is one, else ``model``."""
        ...

    def parameters(self) -> Iterable[nn.Parameter]: ...

    def view(self, training: bool = False, *, flip: bool = True) -> View:
        """What makes pixels of a picture; size, resampling, mean and deviation are the model's own.

        Args:
            training: crop, mirror and change it at random.
            flip: whether that mirrors half of the pictures.
        """
        ...

    def view_key(self) -> str:
        """A text that differs where `view` differs."""
        ...

    def before_graph(self, batch: dict[str, Any]) -> dict[str, Any]:
        """A batch with that part of the work done which torch.compile cannot follow; most models have none."""
        ...

    def texts(self, words: Sequence[str], longest: int = 0) -> Texts:
        """Tokens of texts on the CPU, first token, padding and its side as the model has them.

        Args:
            longest: where texts are cut; 0 takes the model's own length.
        """
        ...


class DualEncoder(Tunable, Protocol):
    """A `Tunable` that encodes pictures and texts apart, into one space."""

    feature_shape: tuple[int, ...]  # of an item: (P,), or (V, P) where pictures have several vectors
    contrast: ClassVar[str]  # the objective that it was trained with: softmax or sigmoid
    defaults: ClassVar[Mapping[str, Any]]  # settings of retrieval that are left to the model

    def encode_image(self, pixel_values: Tensor) -> Encoded:
        """(B, 3, H, W) -> features and, for a `Matcher`, states"""
        ...

    def encode_text(self, texts: Texts) -> Encoded:
        """B texts -> features and, where `Matcher.context` reads them, text-only states"""
        ...

    def logits(self, similarities: Tensor) -> Tensor:
        """Similarities of any shape -> logits of the objective: over a temperature, or times a scale, plus a bias."""
        ...


class Matcher(DualEncoder, Protocol):
    """A `DualEncoder` with a second stage, which reads a text and a picture together: image-text matching (ITM)."""

    def begin_match(self, texts: Texts) -> Tensor | None:
        """(B, T, D), what `match` computes of texts before they meet a picture, for its ``begun``; None if there is no
        such part."""
        ...

    def context(self, texts: Encoded) -> Tensor | None:
        """What adapters enhance fused states by: one state of each text, (B, D); None where no adapter does."""
        ...

    def match(
        self,
        texts: Texts,
        image_states: Tensor,
        which: Tensor | Sequence[int] | None = None,
        *,
        certain: int = 0,
        context: Tensor | None = None,
        positive: Tensor | None = None,
        begun: Tensor | None = None,
        kept: dict[int, tuple[Tensor, Tensor]] | None = None,
        frames: Tensor | None = None,
        lengths: Tensor | None = None,
    ) -> Tensor:
        """ITM logits (B, 2) of text-picture pairs, column 1 for a match.

        Args:
            image_states: (M, N, D), a picture's keys and values being computed once for all the texts it meets.
            which: (B,), the picture that each text meets. None: text i meets picture i, or all meet the only one.
            certain: how many texts meet each picture at least, where ``which`` is on a device, which is not read.
            context: (C, D), `context` of a training batch, for adapters that enhance fused states by it.
            positive: (B,), which pairs match, for the released form of that.
            begun: what `begin_match` gave for these texts, without padding, (n, D): the states of all their n tokens,
                one text behind the other. Needs ``lengths``.
            kept: an empty dict, in which a call keeps the pictures' keys and values for later calls with the same
                ``image_states``, without gradient to them.
            frames: (B, F), frame-aware attention: by how much each text weighs the keys of each frame's patches, where
                ``image_states`` are those of clips, (M, F * N, D).
            lengths: (B,) on the CPU, in inference: tokens of each text, whose padding then costs as little as the model
                allows. ``which`` is on the CPU as well.
        """
        ...


def is_matcher(backbone: Any) -> TypeGuard[Matcher]:
    """Whether a backbone has a second stage."""
    return hasattr(backbone, "match")


class Writer(Tunable, Protocol):
    """A `Tunable` that writes answers to questions about M pictures or clips: Q questions, A answers."""

    # settings of question answering that are left to the model: inference, prompt, label_smoothing, max_question_tokens
    defaults: Mapping[str, Any]

    def collate(
        self,
        pixels: Sequence[Tensor],
        questions: Sequence[str],
        answers: Sequence[str] = (),
        of: Sequence[int] = (),
        which: Sequence[int] | None = None,
        *,
        prompt: str,
        longest: int,
        multiple: int = 1,
    ) -> dict[str, Any]:
        """What the model reads, on the CPU: tensors, and in inference lists of what decides on shapes.

        Args:
            pixels: M, as `view` gives them, (..., H, W), of clips (frames, ..., H, W).
            answers: what `losses` is about; without them the batch is one for `write`.
            of: (A,), the question of each answer.
            which: (Q,), the picture of each question. None: question i is about picture i.
            prompt: what is asked, with ``{question}`` for the question.
            longest: tokens that a question may have; it is cut there.
            multiple: of which numbers of tokens are made by padding, so that batches are of few shapes.
        """
        ...

    def losses(self, batch: Mapping[str, Any], label_smoothing: float = 0.0) -> Tensor:
        """Cross-entropy of each answer of a `collate`d batch, summed over its tokens and its end, (A,).

        Args:
            label_smoothing: share of the target that is spread over all words.
        """
        ...

    def write(self, batch: Mapping[str, Any], *, beams: int, longest: int) -> list[str]:
        """The likeliest answers to a batch's Q questions, greedily or by beams, of at most ``longest`` tokens."""
        ...


class Ranker(Writer, Protocol):
    """A `Writer` that also scores given answers at a price that allows for many."""

    def rank(
        self, batch: Mapping[str, Any], candidates: Texts, *, k_test: int, label_smoothing: float = 0.0
    ) -> list[int]:
        """(Q,), the likeliest of C candidates for each question of a batch without answers.

        Args:
            candidates: as `texts` gives them, on the CPU.
            k_test: of the candidates that the model likes best by their first token, how many are scored in full, by
                the loss of training.
        """
        ...


def is_ranker(backbone: Any) -> TypeGuard[Ranker]:
    """Whether a backbone ranks candidates."""
    return hasattr(backbone, "rank")


def asked(questions: Iterable[str], prompt: str) -> list[str]:
    """Questions as they are put to a model.

    Examples:
        >>> asked(["how many?"], "{question} Answer briefly.")
        ['how many? Answer briefly.']
    """
    return [prompt.replace("{question}", question) for question in questions]
