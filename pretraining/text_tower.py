"""The start of the text tower: MiniLM's word embeddings, then its sentence vectors."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from corpus import Corpus, words
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


def start_text(
    model: BlipMini, data: Corpus, encode: Callable[[list[str]], tuple[Tensor, Tensor]], cache: Path, minutes: float
) -> float:
    """Teach the text tower MiniLM's sentence vectors, reduced to the joint space by the principal components of the
    training captions', on training captions and lists of random words. Returns the last cosine."""
    device = model.words.device
    teacher = BertModel.from_pretrained(minilm(cache)).eval().to(device)
    vocabulary = [
        word
        for word in (minilm(cache) / "vocab.txt").read_text(encoding="utf-8").splitlines()
        if len(word) > 2 and word.isascii() and word.isalpha()
    ]
    mean, basis = data.meaning.mean(0).to(device), _components(data.meaning, 128).to(device)
    rng = random.Random(0)
    optimizer = torch.optim.AdamW(model.text_tower(), betas=(0.9, 0.98), weight_decay=0.01)
    begun, step, cosine = time.time(), 0, 0.0
    while (done := (time.time() - begun) / (60 * minutes)) < 1:
        for group in optimizer.param_groups:
            group["lr"] = 1e-3 * min(1, (step + 1) / 100) * max(0.01, 0.5 * (1 + math.cos(math.pi * done)))
        rows = [rng.randrange(len(data.names)) for _ in range(64)]
        texts = [words(data.names[row], data.tags[row], rng) for row in rows]
        texts += [", ".join(rng.sample(vocabulary, rng.randint(1, 6))) for _ in range(64)]
        ids, mask = encode(texts)
        with torch.autocast(device.type, torch.bfloat16):
            with torch.no_grad():
                vectors = sentence(teacher, ids, mask)
                wanted = F.normalize((vectors - mean) @ basis, dim=-1)
            cosines = (model.texts(ids, mask) * wanted).sum(1)
        optimizer.zero_grad()
        (1 - cosines.mean()).backward()
        optimizer.step()
        step, cosine = step + 1, 0.98 * cosine + 0.02 * cosines.mean().item()
    # as BLIP's, the decoder's own self-attention starts from the encoder's
    for mine, theirs in zip(model.decoder.bert.encoder.layer, model.blip.text_encoder.encoder.layer, strict=True):
        mine.attention.load_state_dict(theirs.attention.state_dict())
    return cosine
