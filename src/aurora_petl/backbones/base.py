"""What tasks and evaluation may ask of a backbone: a few small capabilities, of which each family offers some.

Shapes: B pictures or texts, N picture tokens, T text tokens, D the width of states, P the width of the joint space, V
vectors an item. Tensors are on the model's device, but for ``which``, places that decide on shapes: a list, or a tensor
on the CPU.
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

    def __call__(self, image: Image.Image, rng: random.Random | None = None) -> Tensor:
        """RGB picture -> (3, H, W)"""
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
        context: Tensor | None = None,
        positive: Tensor | None = None,
        begun: Tensor | None = None,
        kept: dict[int, tuple[Tensor, Tensor]] | None = None,
        frames: Tensor | None = None,
    ) -> Tensor:
        """ITM logits (B, 2) of text-picture pairs, column 1 for a match.

        Args:
            image_states: (M, N, D), a picture's keys and values being computed once for all the texts it meets.
            which: (B,), the picture that each text meets. None: text i meets picture i, or all meet the only one.
            context: (C, D), `context` of a training batch, for adapters that enhance fused states by it.
            positive: (B,), which pairs match, for the released form of that.
            begun: what `begin_match` gave for these texts.
            kept: an empty dict, in which a call keeps the pictures' keys and values for later calls with the same
                ``image_states``, without gradient to them.
            frames: (B, F), frame-aware attention: by how much each text weighs the keys of each frame's patches, where
                ``image_states`` are those of clips, (M, F * N, D).
        """
        ...


def is_matcher(backbone: Any) -> TypeGuard[Matcher]:
    """Whether a backbone has a second stage."""
    return hasattr(backbone, "match")


class AnsweringBackbone(Tunable, Protocol):
    """A `Tunable` that answers questions about pictures: Q questions of S tokens, A answers of T tokens.

    The first token of a question or an answer, [CLS] as it comes from the tokenizer, is replaced by the one that the
    model wants there. Without ``which`` answer i is of question i, or all are of the only one, and likewise for the
    pictures of questions.
    """

    def image_states(self, pixel_values: Tensor) -> Tensor:
        """(B, 3, image_size, image_size) -> picture states (B, N, D)"""
        ...

    def question_context(self, questions: Texts) -> Tensor:
        """What adapters enhance fused states by: one text-only state of each question, (Q, D)."""
        ...

    def encode_question(
        self,
        questions: Texts,
        image_states: Tensor,
        which: Tensor | Sequence[int] | None = None,
        *,
        context: Tensor | None = None,
    ) -> Tensor:
        """Fused states (Q, S, D) of questions.

        Args:
            image_states: (M, N, D), a picture's keys and values being computed once for all its questions.
            which: (Q,), the picture of each question.
            context: (C, D), `question_context` of a training batch, for adapters that enhance fused states by it.
        """
        ...

    def answer_logits(
        self,
        answers: Texts,
        question_states: Tensor,
        question_mask: Tensor,
        which: Tensor | Sequence[int] | None = None,
    ) -> Tensor:
        """A answers, (Q, S, D), (Q, S) -> logits (A, T, words), at each place of the token that follows."""
        ...

    def answer_loss(
        self,
        answers: Texts,
        question_states: Tensor,
        question_mask: Tensor,
        which: Tensor | Sequence[int] | None = None,
        *,
        lengths: Sequence[int] | None = None,
        label_smoothing: float = 0.0,
    ) -> Tensor:
        """Cross-entropy of each answer, summed over its tokens and its end, (A,); arguments as `answer_logits`.

        Args:
            which: (A,), the question of each answer, whose keys and values are computed once for all its answers.
            lengths: tokens of each answer, if they are known; else the mask is asked, which waits for the device.
            label_smoothing: share of the target that is spread over all words.
        """
        ...

    def generate_answers(
        self, question_states: Tensor, question_mask: Tensor, *, num_beams: int, max_tokens: int
    ) -> list[str]:
        """The likeliest answers, greedily or by beams, of at most ``max_tokens`` tokens with the first."""
        ...
