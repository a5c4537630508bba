"""What the ``aurora`` command owes its terminal: no words but its own, bars for a person alone, and one line in the
place of a traceback where the machine is at its limits."""

from __future__ import annotations

import io
import logging
import os
import signal
import sys
import warnings
from typing import Any

from .errors import AuroraError, AuroraWarning, SharedError, first_line
from .files import disk_error


def settle() -> None:
    """Silence warnings, and make every text printable on every terminal."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # else tokenizers warn of it in every loader worker
    if logging.lastResort:
        logging.lastResort.setLevel(logging.ERROR)
    if not sys.warnoptions:
        warnings.simplefilter("ignore")
        warnings.simplefilter("default", AuroraWarning)
        warnings.showwarning = _show


def silence() -> None:
    """Silence the libraries' own bars and logs, once they are imported."""
    import huggingface_hub.utils
    import transformers.utils.logging
    from tqdm import tqdm

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    huggingface_hub.utils.logging.set_verbosity_error()
    huggingface_hub.utils.disable_progress_bars()
    tqdm.monitor_interval = 0  # its thread warns


def _show(message: Warning | str, *rest: Any, **more: Any) -> None:
    say(f"aurora: warning: {message}")


def say(line: str) -> None:
    """Print a line to stderr, if there is one."""
    if sys.stderr is not None:
        print(" ".join(line.split()), file=sys.stderr, flush=True)


def progress(quiet: bool) -> bool:
    """Whether bars are shown: on a terminal, unless they are not wanted. In a file they would be lines of rubbish."""
    return not quiet and sys.stderr is not None and sys.stderr.isatty()


def ending(error: BaseException) -> tuple[int, str] | None:
    """The exit status and the line with which the command ends after ``error``; None for a bug, whose traceback is
    wanted."""
    if isinstance(error, KeyboardInterrupt):
        number = getattr(error, "signum", signal.SIGINT)
        saved = getattr(error, "saved", None)
        where = "stopped" if saved is None else f"stopped, step {saved} is saved"
        return 128 + number, f"aurora: {where}; train goes on with --resume, index when called again"
    words = _words(error)
    return None if words is None else (1, f"aurora: error: {words}")


def _words(error: BaseException) -> str | None:
    text = _last_line(error)
    if isinstance(error, AuroraError):
        return text
    if isinstance(error, BrokenPipeError):
        return "what reads the output has gone away"
    if isinstance(error, MemoryError) or _is_memory(error):
        detail = f" ({first_line(error)})" if str(error).strip() else ""
        return f"out of memory{detail}; lower train.batch_size or image_size, or close other programs"
    if (full := disk_error(error)) is not None:
        return str(full)
    if isinstance(error, OSError):
        return text if len(text) <= 500 else f"{text[:500]}..."  # a name that is too long is one of these errors
    if isinstance(error, RecursionError):
        return "something in the input is nested too deeply"
    if isinstance(error, UnicodeEncodeError):
        return f"text that cannot be written as {error.encoding}: {first_line(error)}"
    if isinstance(error, RuntimeError) and _is_lost(error):
        return "another process of this run ended; train goes on with --resume"
    if isinstance(error, RuntimeError) and str(error).startswith("DataLoader worker"):
        return f"{text}; memory was short, most likely: lower train.workers or --workers"
    return None


def is_told(error: BaseException) -> bool:
    """Whether the first of several processes says it."""
    if not isinstance(error, SharedError):
        return False
    from .distributed import rank

    return rank() > 0


def _is_lost(error: RuntimeError) -> bool:
    from .distributed import is_lost

    return is_lost(error)


def _is_memory(error: BaseException) -> bool:
    text = str(error)
    return isinstance(error, RuntimeError) and (
        type(error).__name__ == "OutOfMemoryError" or "out of memory" in text or "DefaultCPUAllocator" in text
    )


def _last_line(error: BaseException) -> str:
    """An error's words on one line: what a loader worker raised comes with its traceback before them."""
    text = str(error)
    if "Original Traceback" in text:
        text = text.strip().splitlines()[-1]
        text = text.partition(": ")[2] or text
    return " ".join(text.split()) or type(error).__name__


def close_output() -> None:
    """Let go of an output that takes no more, so that the interpreter does not complain of it when it ends."""
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except (OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
