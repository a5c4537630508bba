"""The sigmoid loss of SigLIP (Zhai et al., 2023, arXiv 2303.15343): every pair of a picture and a text is a yes-or-no
question of its own.

Use it for models that were trained with it, SigLIP and SigLIP 2: their logits have a bias that a softmax would not see.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def sigmoid_loss(logits: Tensor, image_ids: Tensor, text_ids: Tensor) -> Tensor:
    """The sum over texts, the mean over pictures, of -log sigmoid(+-logit), a scalar.

    Args:
        logits: (B, L), of B pictures with all ranks' L texts.
        image_ids: (B,); a text of the same id matches.
        text_ids: (L,)
    """
    signs = 2 * (image_ids[:, None] == text_ids[None]).to(logits.dtype) - 1
    return -F.logsigmoid(signs * logits).sum(1).mean()
