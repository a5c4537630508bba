"""Scores of retrieval from matrices, and their dense definition."""

import numpy as np
import torch

from aurora_petl.evaluation import scores as module
from aurora_petl.evaluation.scores import Candidates, Scores, Similarity


class Known(Similarity):
    """Similarity (M, L) that is given."""

    def __init__(self, matrix):
        super().__init__(torch.as_tensor(matrix), torch.as_tensor(matrix).T)

    def blocks(self):
        rows = max(1, module.BLOCK // max(1, len(self.text)))
        for first in range(0, len(self.image), rows):
            yield first, self.image[first : first + rows]


class Crafted(Scores):
    """Scores of two directions that have nothing to do with each other."""

    def __init__(self, image_to_text, text_to_image):
        super().__init__(Known(image_to_text))
        self.turned = torch.as_tensor(text_to_image)

    def blocks(self):
        for first, rows in self.near.blocks():
            yield first, rows, self.turned[:, first : first + len(rows)].T


def all_rescored(logits, near):
    """Scores (M, L) where every pair is a candidate of both directions."""
    image, text = np.nonzero(np.ones_like(logits))
    asked = np.ones(len(image), bool)
    return Scores(Known(near), Candidates(image, text, near[image, text], asked, asked, logits[image, text]))
