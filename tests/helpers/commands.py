"""The `aurora` command in a process of its own, and cells of the tables that it prints."""

import subprocess
import sys

BLIP_MINI = [(192, 576, 3)] * 6 + [(192, 192, 1)] * 4 * 6  # (in, out, slices); text layers attend to self and picture


def shell(*words: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "aurora_petl.cli", *map(str, words)], capture_output=True, text=True)


def row(out: str, name: str) -> list[str]:
    """Cells of the table row called ``name``."""
    return next(line for line in out.splitlines() if line.startswith(f"{name} "))[len(name) :].split()
