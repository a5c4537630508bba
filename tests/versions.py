"""The default tests with the oldest and with the newest releases that pyproject.toml allows.

    python tests/versions.py                     both ends, one after the other
    python tests/versions.py oldest -- -k blip   one end, and what pytest shall do

Each end gets a virtual environment of its own, which is made anew. PyTorch is the release of constraints.txt in both,
or that of --torch: the others cost gigabytes where no build for the CPU is at hand.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
LOWER = re.compile(r"([A-Za-z0-9_.-]+(?:\[[a-z,]+\])?)>=([0-9.]+)")


def requirements(end: str) -> list[str]:
    """What pip shall install: every package at its lower bound, or as new as its range allows."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    tested = [
        *project["dependencies"],
        *extras["heic"],
        *extras["postgres"],
        *extras["search"],
        *extras["serve"],
        *extras["siglip"],
        *extras["video"],
        *extras["dev"],
    ]
    wanted = []
    for line in tested:
        found = LOWER.match(line)
        if not found or found[1] in ("torch", "mypy", "ruff"):
            continue  # PyTorch comes first and by itself, the linters have nothing to do with releases
        wanted.append(f"{found[1]}=={found[2]}" if end == "oldest" else line)
    return wanted


def pinned_torch() -> str:
    """The release of constraints.txt."""
    return next(line for line in (ROOT / "constraints.txt").read_text().split() if line.startswith("torch=="))


def run(end: str, folder: Path, torch: str, arguments: list[str]) -> int:
    """Make an environment, print what is in it, run the tests; returns pytest's status."""
    subprocess.run([sys.executable, "-m", "venv", "--clear", folder], check=True)
    python, pins = str(folder / "bin/python"), folder / "torch.txt"
    pins.write_text(f"{torch}\n")
    install = [python, "-m", "pip", "install", "--quiet", "--constraint", str(pins)]
    subprocess.run([*install, torch], check=True)
    subprocess.run([*install, *requirements(end)], check=True)
    subprocess.run([*install, "--no-deps", "--editable", str(ROOT)], check=True)
    subprocess.run([python, "-m", "pip", "list"], check=True)
    return subprocess.run([python, "-m", "pytest", "-p", "no:cacheprovider", *arguments], cwd=ROOT).returncode


def main() -> int:
    """Run the ends that were asked for; returns 1 if a test failed in one of them."""
    parser = argparse.ArgumentParser(description="Run the tests with the oldest and the newest releases allowed.")
    parser.add_argument("end", nargs="?", choices=("oldest", "newest"), help="default: both, one after the other")
    parser.add_argument("--torch", default=pinned_torch(), help="requirement of PyTorch (default: %(default)s)")
    parser.add_argument("--folder", type=Path, help="where environments are made and stay (default: a temporary one)")
    words = sys.argv[1:]
    split = words.index("--") if "--" in words else len(words)
    options, arguments = parser.parse_args(words[:split]), words[split + 1 :]
    status = {}
    with tempfile.TemporaryDirectory() as scratch:
        for end in [options.end] if options.end else ("oldest", "newest"):
            folder = (options.folder or Path(scratch)) / end
            status[end] = run(end, folder, options.torch, arguments)
    for end, code in status.items():
        print(f"{end}: {'passed' if code == 0 else 'failed'}")
    return int(any(status.values()))


if __name__ == "__main__":
    sys.exit(main())
