"""Features of an index in safetensors, by the digest of what each row was made from.

A shard names its rows and carries, for every view, a SHA-256 over the model's key, the names and the features. So a
row that was lost, exchanged or changed is noticed, and so is a shard of another model's index.
"""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path

import torch
from torch import Tensor

from ..distributed import rank, ranks
from ..errors import AuroraError
from ..files import open_tensors, parse_json, write_tensors

SHARD = 1024  # rows at least, but for the last of a run: about ten minutes of BLIP-base on a core
MEND = "remove it and run aurora index again"
ALIKE = 0.01  # by how much an entry of a unit vector may differ when two ranks encoded the same content


def digest(data: bytes) -> str:
    """What features are stored under."""
    return hashlib.sha256(data).hexdigest()


class Shards:
    """The shards of one kind, ``pictures`` or ``captions``.

    Args:
        keys: view -> key of the model that the features are of.

    Raises:
        AuroraError: if a shard is a link, broken, or does not say what its rows are.
    """

    def __init__(self, out: Path, kind: str, keys: dict[str, str]) -> None:
        self.out, self.kind, self.keys = out, kind, keys
        named = re.compile(rf"{kind}-(\d{{5,9}})\.safetensors")
        numbers = {path: int(match[1]) for path in out.iterdir() if (match := named.fullmatch(path.name))}
        self.names = {path: _names(path) for path in sorted(numbers)}
        self.rows = {name for names in self.names.values() for name in names}
        self._number = max(numbers.values(), default=-1) + 1 + rank()  # every rank has numbers of its own
        self._names: list[str] = []
        self._parts: list[dict[str, Tensor]] = []

    def add(self, names: list[str], features: dict[str, Tensor]) -> None:
        """Rows of features by view; a shard is written whenever there are enough."""
        self._names += names
        self._parts.append(features)
        self.rows.update(names)
        if len(self._names) >= SHARD:
            self.flush()

    def flush(self) -> None:
        """Write what is left as a shard."""
        if not self._names:
            return
        path = self.out / f"{self.kind}-{self._number:05}.safetensors"
        tensors = {view: torch.cat([part[view] for part in self._parts]).half().contiguous() for view in self.keys}
        digests = {view: self._digest(view, self._names, value) for view, value in tensors.items()}
        # one entry, since safetensors writes several in no certain order
        write_tensors(path, tensors, {"rows": json.dumps({"names": self._names, "digests": digests})})
        self._number += ranks()
        self.names[path] = self._names
        self._names, self._parts = [], []

    def verify(self) -> None:
        """Read every shard whole.

        Raises:
            AuroraError: if one does not hold what it says.
        """
        for path in self.names:
            for view in self.keys:
                self._read(path, view)

    def prune(self, wanted: set[str]) -> None:
        """Remove shards of which nothing is wanted."""
        for path, names in self.names.items():
            if wanted.isdisjoint(names):
                path.unlink(missing_ok=True)

    def load(self, names: list[str], view: str) -> Tensor:
        """The rows called ``names``, (len(names), P) float16, or (len(names), V, P) where pictures have V vectors.

        Raises:
            KeyError: of a name that no shard holds.
            AuroraError: if a shard is broken, or of another model.
        """
        place: dict[str, int] = {}
        parts: list[Tensor] = []
        twice: list[tuple[int, int, Path]] = []
        for path, held in self.names.items():
            part = self._read(path, view)
            if parts and part.shape[1:] != parts[0].shape[1:]:
                shapes = [" x ".join(map(str, one.shape[1:])) for one in (part, parts[0])]
                raise AuroraError(f"{path} is broken ({shapes[0]} wide, others {shapes[1]}); {MEND}")
            parts.append(part)
            for row, name in enumerate(held, len(place) + len(twice)):
                if place.setdefault(name, row) != row:
                    twice.append((place[name], row, path))
        features = torch.cat(parts) if parts else torch.empty(0, 0, dtype=torch.float16)
        for first, second, path in twice:
            if not torch.allclose(features[first].float(), features[second].float(), atol=ALIKE):
                raise AuroraError(f"{path} is broken (of what another shard holds too, it has other features); {MEND}")
        return features[[place[name] for name in names]]

    def _read(self, path: Path, view: str) -> Tensor:
        with open_tensors(path, mend=MEND) as file:
            if set(file.keys()) != set(self.keys):
                raise AuroraError(f"{path} is broken (not of {' and '.join(self.keys)}); {MEND}")
            values = file.get_tensor(view)
            names, digests = _rows(path, file.metadata())
        if values.dtype != torch.float16 or values.dim() not in (2, 3) or len(values) != len(names):
            raise AuroraError(f"{path} is broken ({len(names)} names, {view}: {tuple(values.shape)}); {MEND}")
        if not values.isfinite().all():
            raise AuroraError(f"{path} is broken ({view} holds what is no number); {MEND}")
        if names != self.names[path] or digests.get(view) != self._digest(view, names, values):
            raise AuroraError(f"{path} is changed, or of another index; {MEND}")
        return values

    def _digest(self, view: str, names: list[str], values: Tensor) -> str:
        made = hashlib.sha256(json.dumps([view, self.keys[view], names, list(values.shape)]).encode())
        made.update(values.reshape(-1).view(torch.uint8).numpy().data)
        return made.hexdigest()


def _names(path: Path) -> list[str]:
    if path.is_symlink() or not path.is_file():  # planted; a pipe would never open
        raise AuroraError(f"{path} is no file of an index, but a link or the like; {MEND}")
    with open_tensors(path, mend=MEND) as file:
        return _rows(path, file.metadata())[0]


def _rows(path: Path, metadata: dict[str, str] | None) -> tuple[list[str], dict[str, str]]:
    """What a shard's rows are called, and its digests by view."""
    try:
        rows = parse_json((metadata or {})["rows"], "its rows")
        names, digests = rows["names"], rows["digests"]
    except (KeyError, TypeError, AuroraError) as error:
        raise AuroraError(f"{path} is broken (it does not say what its rows are); {MEND}") from error
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names) or not isinstance(digests, dict):
        raise AuroraError(f"{path} is broken (its rows have no names); {MEND}")
    if len(set(names)) < len(names):
        raise AuroraError(f"{path} is broken (it names a row twice); {MEND}")
    return names, digests
