"""The start of the text tower: MiniLM's word embeddings, then its sentence vectors."""

from __future__ import annotations

import random
from pathlib import Path

import torch
import torch.nn.functional as F
from feed import moved, text
from mini import ENC, WIDTH, BlipMini
from minilm import minilm, sentence
from safetensors.torch import load_file
from torch import Tensor
from transformers import BertModel

CLS = 101  # first word piece of a text alone


def start_words(model: BlipMini, cache: Path) -> None:
    """Word embeddings from the first `WIDTH` principal components of MiniLM's, at BERT's usual spread."""
    table = load_file(minilm(cache) / "model.safetensors")["embeddings.word_embeddings.weight"].float()
    reduced = (table - table.mean(0)) @ _components(table, WIDTH)
    with torch.no_grad():
        model.words[: len(reduced)] = reduced * (0.04 / reduced.std())
        model.words[ENC] = model.words[CLS]  # the fused pass then reads a text as the text-only pass has learned to


def _components(rows: Tensor, count: int) -> Tensor:
    """The first principal components of ``rows`` (n, d) as columns, (d, count)."""
    centred = rows - rows.mean(0)
    return torch.linalg.eigh(centred.T @ centred).eigenvectors[:, -count:]


def word_lists(cache: Path, count: int, seed: int) -> list[str]:
    """Lists of one to six random English words."""
    vocabulary = [
        word
        for word in (minilm(cache) / "vocab.txt").read_text(encoding="utf-8").splitlines()
        if len(word) > 2 and word.isascii() and word.isalpha()
    ]
    rng = random.Random(seed)
    return [", ".join(rng.sample(vocabulary, rng.randint(1, 6))) for _ in range(count)]


class Lesson:
    """Teaches the text tower MiniLM's sentence vectors, reduced to the joint space by the principal components of the
    training captions'.

    Args:
        tables: token numbers (texts, LONGEST), each of which gives the same share of a batch.
        meaning: (n, 384) unit sentence vectors, whose components span the joint space.
    """

    def __init__(self, model: BlipMini, tables: list[Tensor], meaning: Tensor, cache: Path) -> None:
        device = model.words.device
        self.model, self.tables = model, tables
        self.teacher = BertModel.from_pretrained(minilm(cache)).eval().to(device)
        sample = meaning[:100_000].float().to(device)
        self.mean, self.basis = sample.mean(0), _components(sample, 128)

    def loss(self, step: int, batch: int) -> Tensor:
        """1 - the mean cosine of a batch that the number of the step fixes."""
        device = self.model.words.device
        chosen = torch.Generator().manual_seed(step)
        rows = [
            table[torch.randint(len(table), (batch // len(self.tables),), generator=chosen)] for table in self.tables
        ]
        cut = moved(text(torch.cat(rows).long()), device)
        with torch.no_grad():
            vectors = sentence(self.teacher, cut.ids, cut.mask)
            wanted = F.normalize((vectors - self.mean) @ self.basis, dim=-1)
        return 1 - (self.model.texts(cut.ids, cut.mask) * wanted).sum(1).mean()

    def end(self) -> None:
        """As BLIP's, the decoder's own self-attention starts from the encoder's."""
        layers = self.model.blip.text_encoder.encoder.layer
        for mine, theirs in zip(self.model.decoder.bert.encoder.layer, layers, strict=True):
            mine.attention.load_state_dict(theirs.attention.state_dict())
