"""Pictures of a folder as they are read to be indexed."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from concurrent.futures import Executor
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..backbones.base import View
from ..data.media import load_image, taken
from ..errors import AuroraError
from ..files import read_bytes
from .encoder import Encoder
from .manifest import Picture
from .scan import is_utf8
from .shards import digest

BATCH = 32  # pictures that are encoded at once
TEXT_BATCH = 128
LARGEST = 2 * 1024**3  # bytes of a file; a picture of as many pixels as are decoded is smaller


def read_picture(folder: Path, path: str, held: Container[str], transform: View) -> tuple[Picture, Tensor | None] | str:
    """A picture of ``folder``, with its pixels unless its content is ``held``; or why it can't be read.

    Args:
        held: digests of what is encoded already.
        transform: makes pixels as the model reads them.
    """
    if not is_utf8(path):
        return f"{path}: the name is not UTF-8; rename it"
    try:
        status = (folder / path).stat()  # before it is read: a change in between is then seen the next time
        if status.st_size > LARGEST:
            return f"{path}: larger than {LARGEST // 1024**3} GB; scale it down"
        data = read_bytes(folder / path)
        when = taken(data)
        picture = Picture(path, len(data), status.st_mtime_ns, digest(data), when.isoformat() if when else None)
        return picture, None if picture.sha256 in held else transform(load_image(data, path, transform.least))
    except AuroraError as error:
        return str(error)
    except OSError as error:  # gone, say, since it was listed
        return f"{path}: {error.strerror or error}"


def encode_pictures(encoders: dict[str, Encoder], pixels: Sequence[Tensor]) -> dict[str, Tensor]:
    """B pictures as the model reads them -> features by view, (B, P) or (B, V, P).

    Raises:
        AuroraError: if a feature is no number.
    """
    features = {view: encoder.pictures(torch.stack(list(pixels))) for view, encoder in encoders.items()}
    for view, rows in features.items():
        if not rows.isfinite().all():
            raise AuroraError(
                f"the {view} model gives features that are no numbers; its weights are broken or its training "
                "diverged, so take another --model"
            )
    return features


def ahead(pool: Executor, call: Callable[[str], Any], items: Iterable[str], most: int) -> Iterator[Any]:
    """What ``call`` makes of each item, in order, at most ``most`` made before they are wanted."""
    waiting: deque = deque()
    for item in items:
        waiting.append(pool.submit(call, item))
        if len(waiting) > most:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()
