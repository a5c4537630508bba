"""Files on disk: written whole, read with one line on what is wrong, listed with links.

Every file of a run, an index or a cache is written through `whole` or `whole_folder`, and every JSON, YAML and
safetensors file that a user may bring is read through `read_json`, `yaml_files.parse_yaml` and `open_tensors`.
"""

from __future__ import annotations

import codecs
import errno
import glob
import json
import math
import os
import secrets
import shutil
import stat
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open

from .errors import AuroraError, first_line

if TYPE_CHECKING:
    from torch import Tensor

LEFTOVER_SECONDS = 24 * 3600  # older ones were left behind by a killed process
STDOUT = Path("-")  # in the place of a JSON file
LFS_POINTER = b"version https://git-lfs"  # what git leaves in a file's place where git-lfs is not installed


# Writing


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A new empty file beside ``path`` to write to, which takes the place of ``path`` when the block ends without an
    error, and is removed otherwise.

    Nobody reads half a file, a planted link is replaced and never written through, and the file has the permissions
    that the umask gives whatever the library that writes it sets.

    Raises:
        OSError: if there is no room or no right to write, or ``path`` is a device or a pipe; it is then as it was.
    """
    if _is_special(path):  # as root, replacing /dev/null would take it away from the whole system
        raise OSError(errno.EINVAL, "it is a device or a pipe, not a file", str(path))
    partial = _beside(path)
    handle = os.open(partial, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
    mode = stat.S_IMODE(os.fstat(handle).st_mode)
    os.close(handle)
    try:
        yield partial
        partial.chmod(mode)
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """The same for a folder: a new empty one beside ``path``, which must not exist when the block ends."""
    partial = _beside(path)
    partial.mkdir()
    mode = stat.S_IMODE(partial.stat().st_mode)
    try:
        yield partial
        for place, folders, names in os.walk(partial):
            for name in folders:
                Path(place, name).chmod(mode)
            for name in names:
                Path(place, name).chmod(mode & 0o666)
        os.replace(partial, path)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def _beside(path: Path) -> Path:
    """A name beside ``path`` that nobody has; what killed processes left under such names is removed."""
    for old in path.parent.glob(f".{glob.escape(path.name)}.*.part"):
        with suppress(OSError):
            if time.time() - old.lstat().st_mtime > LEFTOVER_SECONDS:
                shutil.rmtree(old) if old.is_dir() and not old.is_symlink() else old.unlink()
    return path.with_name(f".{path.name}.{secrets.token_hex(6)}.part")


def _is_special(path: Path) -> bool:
    """Whether a path leads to something else than a file or a folder; /dev/stdout is a link."""
    try:
        mode = path.stat().st_mode
    except OSError:
        return False
    return not (stat.S_ISREG(mode) or stat.S_ISDIR(mode))


def check_output(path: Path, suffix: str = "") -> None:
    """Make the folder of a file that a command writes when its work is done, and see beforehand that it can be written.

    Args:
        suffix: that of the only kind of file that the command writes; empty if `write_json` does, which takes `STDOUT`.

    Raises:
        AuroraError: if ``path`` is a folder, a device or a pipe, or is called as a file of another kind.
        OSError: if there is no such folder and it cannot be made, or there is no right to write to it.
    """
    if path.is_dir() or _is_special(path):
        what = "folder" if path.is_dir() else "device or a pipe"
        raise AuroraError(f"{path} is a {what}, not a file; name another file")
    if suffix and path.suffix.lower() != suffix:
        raise AuroraError(f"{path} would be a {suffix} file; name it {path.with_suffix(suffix)}")
    if path == STDOUT:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise OSError(errno.EACCES, os.strerror(errno.EACCES), str(path.parent))


def write_text(path: Path, text: str) -> None:
    """Write ``text`` as UTF-8."""
    with whole(path) as partial:
        partial.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write as JSON, to the process's standard output if ``path`` is `STDOUT`.

    Numbers that are not finite become null: JSON has none, and a gradient norm that overflowed in half precision must
    not cost a finished run its results.
    """
    if path == STDOUT:  # which a command may have turned aside; escapes are whole in every encoding
        print(json.dumps(finite(value), indent=1, allow_nan=False), file=sys.__stdout__, flush=True)
        return
    write_text(path, json.dumps(finite(value), indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def finite(value: Any) -> Any:
    """A value that JSON can hold, with None in the place of numbers that are not finite."""
    if isinstance(value, dict):
        return {key: finite(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """Write tensors of any device as safetensors.

    Raises:
        OSError: if there is no room or no right to write.
    """
    from safetensors.torch import save_file  # and PyTorch, which reading a recipe does without

    with whole(path) as partial, as_os_error(path):
        save_file({name: value.detach().cpu().contiguous() for name, value in tensors.items()}, partial, metadata)


@contextmanager
def as_os_error(path: Path) -> Iterator[None]:
    """What safetensors and torch raise in place of an OSError on a full disk becomes one that names ``path``."""
    try:
        yield
    except SafetensorError as error:
        raise disk_error(error, path) or error from error
    except RuntimeError as error:
        if (told := disk_error(error, path)) is None:
            raise
        raise told from error


def disk_error(error: BaseException, path: Path | None = None) -> OSError | None:
    """The OSError behind what a library raised while it wrote a file; None if the error is of another kind."""
    if isinstance(error, OSError):
        return error if error.errno in (errno.ENOSPC, errno.EDQUOT) else None
    words = str(error)
    full = "No space left on device" in words or "os error 28" in words or "file write failed" in words
    quota = "Disk quota exceeded" in words or "os error 122" in words
    if not (full or quota or (isinstance(error, SafetensorError) and "os error" in words)):
        return None
    code = errno.ENOSPC if full else errno.EDQUOT if quota else errno.EIO
    what = os.strerror(code) if full or quota else first_line(error)
    return OSError(code, what, None if path is None else str(path))


# Reading


def read_bytes(path: Path, most: int = -1) -> bytes:
    """A file's bytes; pipes, sockets and devices, which may never end, are not opened.

    Args:
        most: how many bytes, from the first on; -1 gives all.

    Raises:
        OSError: if it is missing, cannot be read, or is no file.
    """
    try:
        mode = os.stat(path).st_mode
    except ValueError as error:  # a NUL in the name
        raise OSError(errno.ENOENT, os.strerror(errno.ENOENT), str(path)) from error
    if not stat.S_ISREG(mode):
        raise OSError(errno.EINVAL, "it is a folder" if stat.S_ISDIR(mode) else "it is a pipe or a device", str(path))
    if most < 0:
        return path.read_bytes()
    with path.open("rb") as file:
        return file.read(most)


def read_text(path: Path) -> str:
    """A text file as UTF-8, with or without a byte order mark.

    Raises:
        AuroraError: if it is missing, cannot be read, is a pointer of git-lfs or not UTF-8.
    """
    try:
        data = read_bytes(path)
    except OSError as error:
        raise AuroraError(f"{path} cannot be read: {error.strerror or first_line(error)}") from error
    return parse_text(data, str(path))


def parse_text(data: bytes, where: str) -> str:
    """The same from a file's bytes.

    Raises:
        AuroraError: if they are a pointer of git-lfs or not UTF-8.
    """
    if data.startswith(LFS_POINTER):
        raise AuroraError(f"{where} is a pointer of git-lfs, not the file; fetch it with git lfs pull")
    try:
        return data.decode(encoding_of(data))
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise AuroraError(f"{where}, line {line}: not UTF-8; save the file as UTF-8") from error


def encoding_of(data: bytes) -> str:
    """How a text's bytes are to be decoded: UTF-16 where they begin with its mark, as Excel's "Unicode text" does."""
    return "utf-16" if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) else "utf-8-sig"


def parse_json(text: str | bytes, where: str) -> Any:
    """A value from JSON.

    Raises:
        AuroraError: if it is no JSON, nested too deeply, holds numbers of thousands of digits, or text that no UTF-8
            file can hold (half of a surrogate pair).
    """
    try:
        text = text.decode("utf-8-sig") if isinstance(text, bytes) else text
        value = json.loads(text)
        if not text.isascii():
            text.encode()
        if "\\ud" in text or "\\uD" in text:
            _check_text(value)
        return value
    except json.JSONDecodeError as error:
        raise AuroraError(f"{where}: not JSON ({error.msg}: line {error.lineno} column {error.colno})") from error
    except UnicodeDecodeError as error:
        raise AuroraError(f"{where}: not UTF-8; save the file as UTF-8") from error
    except UnicodeEncodeError as error:
        raise AuroraError(f"{where}: holds half of a surrogate pair, which is no character; write it anew") from error
    except RecursionError as error:
        raise AuroraError(f"{where}: nested too deeply") from error
    except ValueError as error:
        raise AuroraError(f"{where}: {first_line(error)}") from error


def _check_text(value: Any) -> None:
    if isinstance(value, str):
        value.encode()
    elif isinstance(value, dict):
        for key, part in value.items():
            key.encode()
            _check_text(part)
    elif isinstance(value, list):
        for part in value:
            _check_text(part)


def read_json(path: Path) -> Any:
    """A JSON file; see `read_text` and `parse_json` for what is raised."""
    return parse_json(read_text(path), str(path))


@contextmanager
def open_tensors(path: Path, device: str = "cpu", mend: str = "download it again") -> Iterator[Any]:
    """A safetensors file as `safe_open` gives it.

    Args:
        mend: what the message tells the user to do about a broken file.

    Raises:
        AuroraError: if it is missing, a pointer of git-lfs, empty, cut off, or no safetensors.
    """
    try:
        head = read_bytes(path, 40)
    except OSError as error:
        raise AuroraError(f"{path} cannot be read: {error.strerror or first_line(error)}") from error
    if head.startswith(LFS_POINTER):
        raise AuroraError(f"{path} is a pointer of git-lfs, not the weights; fetch them with git lfs pull")
    try:
        with safe_open(path, "pt", device=device) as opened:
            yield opened
    except (SafetensorError, OSError, MemoryError) as error:
        what = "is empty" if not head else f"is broken ({first_line(error)})"
        raise AuroraError(f"{path} {what}; {mend}") from error


# Listing

_OF_SYSTEMS = frozenset(  # folders that Synology, QNAP, macOS and Windows fill with thumbnails and what was deleted
    ("@eaDir", "@Recycle", "#recycle", "#snapshot", "__MACOSX", "$RECYCLE.BIN", "System Volume Information")
)


def is_hidden(name: str) -> bool:
    """Whether a name of a file or folder, without its place, begins with a dot or is one that systems give."""
    return name.startswith(".") or name in _OF_SYSTEMS


def walk(folder: Path, *, hidden: bool = True, problem: Callable[[str, str], None] | None = None) -> Iterator[str]:
    """Files under ``folder``, relative to it with forward slashes, in the order of their names.

    Links to folders are followed, but never to a folder that contains them, and those inside of a linked folder only
    to what was not listed before: loops end, and a web of links is not unrolled.

    Args:
        hidden: whether names are listed that are hidden, see `is_hidden`.
        problem: is told what is left out, by its relative path, and why: a folder that cannot be listed, a link to
            nothing, a pipe.

    Raises:
        AuroraError: if ``folder`` itself cannot be listed; folders inside that cannot are left out.
    """
    try:
        root = _identity(folder)
        first = _entries(folder)
    except OSError as error:
        raise AuroraError(f"{folder} cannot be listed: {error.strerror or first_line(error)}") from error
    known = {root}
    containing = {_identity(place) for place in folder.resolve().parents}
    open_folders = [("", {root} | containing, False, first)]
    while open_folders:
        prefix, above, linked, entries = open_folders[-1]
        for entry in entries:
            if is_hidden(entry.name) and not hidden:
                continue
            try:
                if not entry.is_dir():
                    if entry.is_file():
                        yield prefix + entry.name
                    elif problem:
                        why = "a link to nothing" if entry.is_symlink() else "a pipe or a device, not a file"
                        problem(prefix + entry.name, why)
                    continue
                place, link = _identity(Path(entry.path)), entry.is_symlink()
                if place in above or (link and linked and place in known):
                    continue
                known.add(place)
                inside = (f"{prefix}{entry.name}/", above | {place}, linked or link, _entries(Path(entry.path)))
            except OSError as error:  # no right to list it, or a link to itself
                if problem:
                    problem(prefix + entry.name, error.strerror or first_line(error))
                continue
            open_folders.append(inside)
            break
        else:
            open_folders.pop()


def _entries(folder: Path) -> Iterator[os.DirEntry[str]]:
    with os.scandir(folder) as entries:
        return iter(sorted(entries, key=lambda entry: entry.name))


def _identity(folder: Path) -> tuple[int, int]:
    found = os.stat(folder)
    return found.st_dev, found.st_ino
