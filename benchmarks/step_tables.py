"""The result of `step.py`: its rows in a file that is taken up again, and its tables."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Any

import torch
import transformers
from step_variants import REFERENCE, Variant

from aurora_petl.files import read_json, write_json, write_text
from aurora_petl.report.tables import markdown_table

ENDED = "the process ended in it"


class Result:
    """All rows, in a file that is whole at any time."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.path: Path | None = options.out
        self.settings = {name: getattr(options, name) for name in ("device", "width", "layers", "queue")}
        on_gpu = options.device.startswith("cuda")
        self.settings |= {
            "machine": torch.cuda.get_device_name() if on_gpu else cpu_name(),
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "peft": sys.modules["peft"].__version__,
        }
        self.rows: dict[str, dict[str, Any]] = {}
        if self.path is not None and self.path.is_file():
            before = read_json(self.path)
            if before.get("settings") != self.settings:
                raise SystemExit(f"{self.path} holds figures of other settings or versions; give another --out")
            self.rows = {row["key"]: row for row in before["rows"]}
            for row in self.rows.values():
                if row.get("error") is None and not row.get("all_seconds"):
                    row["error"] = ENDED

    def begin(self, variant: Variant) -> dict[str, Any]:
        row = self.rows[variant.key] = {"key": variant.key, **asdict(variant), "error": None, "all_seconds": []}
        self.write()
        return row

    def has(self, variant: Variant) -> bool:
        return variant.key in self.rows

    def write(self) -> None:
        for row in self.rows.values():
            self._derive(row)
        if self.path is not None:
            write_json(self.path, {"settings": self.settings, "rows": list(self.rows.values())})
            write_text(self.path.with_suffix(".md"), self.markdown())

    def _derive(self, row: dict[str, Any]) -> None:
        if not row["all_seconds"]:
            return
        row["seconds"] = median(row["all_seconds"])
        row["pairs_per_second"] = row["batch"] / row["seconds"]
        pairs = list(zip(row.get("reference_seconds", []), row["all_seconds"], strict=False))
        row["times_as_fast"] = median(theirs / mine for theirs, mine in pairs) if pairs else None
        same = {"method": REFERENCE[0], "side": REFERENCE[1], "graph": False}
        reference = next((r for r in self.rows.values() if _group(r) == _group(row) and same.items() <= r.items()), {})
        theirs, mine = reference.get("peak_bytes"), row.get("peak_bytes")
        row["peak_ratio"] = mine / theirs if theirs and mine else None

    def groups(self) -> dict[tuple[Any, ...], list[dict[str, Any]]]:
        found: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
        for row in self.rows.values():
            found.setdefault(_group(row), []).append(row)
        return found

    def markdown(self) -> str:
        settings = ", ".join(f"{name} {value}" for name, value in self.settings.items())
        parts = [f"{settings}\n"]
        for (model, size, precision, batch), rows in self.groups().items():
            parts.append(f"## {model} {size} px, {precision}, {batch} pairs\n\n{markdown_table(HEAD, body_of(rows))}\n")
        return "\n".join(parts)


def _group(row: dict[str, Any]) -> tuple[Any, ...]:
    return row["model"], row["size"], row["precision"], row["batch"]


HEAD = ("", "ms a step", "pairs/s", "x LoRA r=64, usual", "peak GiB", "of it", "kernels", "GPU busy ms", "trainable")


def body_of(rows: Iterable[dict[str, Any]]) -> list[list[str]]:
    """Cells of a table; a row without figures says why in the second one."""
    body = []
    for row in rows:
        name = f"{row['method']}, {row['side']}" + (", CUDA graph" if row["graph"] else "")
        if row["error"] is not None or not row["all_seconds"]:
            body.append([name, row["error"] or "not measured", *[""] * (len(HEAD) - 2)])
            continue

        def cell(key: str, form: str, scale: float = 1.0, row: dict[str, Any] = row) -> str:
            value = row.get(key)
            return "" if value is None else format(value * scale, form)

        body.append(
            [
                name,
                cell("seconds", ".1f", 1e3),
                cell("pairs_per_second", ".2f"),
                cell("times_as_fast", ".2f"),
                cell("peak_bytes", ".2f", 2**-30),
                cell("peak_ratio", ".2f"),
                cell("kernels", ",.0f"),
                cell("device_seconds", ".1f", 1e3),
                cell("trainable", ",.0f"),
            ]
        )
    return body


def cpu_name() -> str:
    with suppress(OSError, IndexError):
        return Path("/proc/cpuinfo").read_text().split("model name")[1].split(":")[1].split("\n")[0].strip()
    return "CPU"
