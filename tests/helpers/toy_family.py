"""A family of models as a newcomer would add it: averaged colours and a bag of words, in one file."""

from __future__ import annotations

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

from aurora_petl.backbones.base import Encoded, Texts
from aurora_petl.backbones.folder import read_model
from aurora_petl.backbones.wrapper import Backbone
from aurora_petl.data.media import PictureFormat

WIDTH, WORDS, LONGEST, SIZE = 16, 200, 12, 8


class ToyConfig(PretrainedConfig):
    model_type = "toy"


class ToyModel(PreTrainedModel):
    config_class = ToyConfig

    def __init__(self, config):
        super().__init__(config)
        self.query_proj = nn.Linear(3 * SIZE * SIZE, WIDTH)
        self.words = nn.Embedding(WORDS, WIDTH)
        self.key_proj = nn.Linear(WIDTH, WIDTH)
        self.scale = nn.Parameter(torch.tensor(2.0))
        self.post_init()

    def _init_weights(self, module):
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=0.1)


class ToyBackbone(Backbone):
    heads = ("scale",)
    contrast = "softmax"
    defaults: ClassVar[dict] = {
        "queue_size": 0,
        "momentum": 0.0,
        "alpha": 0.0,
        "max_tokens": LONGEST,
        "ranking": "itc",
        "k_test": 0,
    }
    feature_shape = (WIDTH,)
    longest = LONGEST

    def texts(self, words, longest=0):
        rows = [
            [1 + sum(map(ord, word)) % (WORDS - 1) for word in text.split()][: longest or LONGEST] for text in words
        ]
        width = max(map(len, rows))
        ids = torch.tensor([row + [0] * (width - len(row)) for row in rows])
        return Texts(ids, (ids > 0).long())

    def encode_image(self, pixel_values):
        return Encoded(F.normalize(self.model.query_proj(pixel_values.flatten(1)).float(), dim=-1))

    def encode_text(self, texts):
        words = self.model.words(texts.ids) * texts.mask[..., None]
        return Encoded(F.normalize(self.model.key_proj(words.sum(1)).float(), dim=-1))

    def logits(self, similarities):
        return similarities * self.model.scale.exp()


def configure(content, path):
    return ToyConfig()


def check(folder, config, name, image_size=None):
    pass


def empty(config, name, task="retrieval", image_size=None):
    return ToyBackbone(ToyModel(config), None, PictureFormat(SIZE), name)


def load(folder, config, name, task="retrieval", image_size=None):
    model, _ = read_model(ToyModel, config, folder, name, task, "copy the model again")
    return ToyBackbone(model, None, PictureFormat(SIZE), name)
