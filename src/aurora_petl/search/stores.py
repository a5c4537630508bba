"""Where libraries of pictures are: a folder, or an address of PostgreSQL."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import AuroraError, install
from .index import build_index
from .library import Library
from .lines import Update
from .postgres.address import is_address, parse_address
from .store import Store

if TYPE_CHECKING:
    from .postgres.address import Address


def build_store(folder: Path, place: str | Path, model: str, *, progress: bool = True) -> Update:
    """Bring the library at ``place``, a folder or an address, up to date with the pictures under ``folder``.

    Raises:
        AuroraError: see `index.build_index` and `postgres.build.build_library`.
    """
    if not is_address(place):
        return build_index(folder, Path(place), model, progress=progress)
    address = _address(str(place))
    from .postgres.build import build_library

    return build_library(folder, address, model, progress=progress)


def open_store(place: str | Path) -> Store:
    """The library at ``place``, a folder or an address.

    Raises:
        AuroraError: see `library.Library` and `postgres.library.PostgresLibrary`.
    """
    if not is_address(place):
        return Library(Path(place))
    address = _address(str(place))
    from .postgres.library import PostgresLibrary

    return PostgresLibrary(address)


def place_name(place: str | Path) -> str:
    """As messages call the place, without a password."""
    return str(_address(str(place))) if is_address(place) else str(place)


def _address(place: str) -> Address:
    try:
        return parse_address(place)
    except ImportError as error:
        raise AuroraError(f"a library in PostgreSQL needs psycopg: {install('postgres')}") from error
