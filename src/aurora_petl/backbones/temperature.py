"""The learned temperature of image-text contrast, by which BLIP and BLIP-2 divide similarities."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ..errors import AuroraError
from ..files import open_tensors
from .folder import Stored

START = 0.07  # where training of BLIP and of BLIP-2 starts


class Temperature(nn.Module):
    """A number that is learned: a module so that peft saves it with the heads, and called a weight so that peft takes
    it out of its wrapper again."""

    def __init__(self, value: float = START) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([value]))

    def forward(self) -> Tensor:
        """Scalar in [0.001, 0.5]."""
        return self.weight.clamp(0.001, 0.5)[0]

    def read(self, stored: Mapping[str, Stored]) -> None:
        """Take the value that a model folder has under ``temperature``, if it has one: transformers' classes have none.

        Raises:
            AuroraError: if it is not one finite number.
        """
        if (place := stored.get("temperature")) is None:
            return
        with open_tensors(place.file, mend="copy the model again") as file:
            value = file.get_tensor("temperature").float()
        if value.numel() != 1 or not value.isfinite().all():
            raise AuroraError(
                f"{place.file}: temperature is not one finite number but {place.shape}; copy the model again"
            )
        self.weight.data.copy_(value.reshape(1))
