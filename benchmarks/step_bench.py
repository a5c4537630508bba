"""The order in which `step.py` measures: variants by turns, beside the one that they are compared with."""

from __future__ import annotations

import argparse
import gc
import json
import math
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from measure import seconds
from step_measure import first_line, kernels, resident, trim, waits
from step_tables import HEAD, Result, body_of
from step_variants import REPEATED, WARM, Replayed, Step, Unavailable, Variant, fresh_model
from torch import Tensor

from aurora_petl.files import read_json
from aurora_petl.report.tables import table

SCRIPT = str(Path(__file__).with_name("step.py"))


@dataclass
class Held:
    """A variant that is ready to take its turns."""

    variant: Variant
    row: dict[str, Any]
    step: Callable[[], Tensor]


class Bench:
    """Measures groups of variants that share model, size, precision and batch."""

    def __init__(self, options: argparse.Namespace, result: Result, began: float) -> None:
        self.options, self.result, self.device = options, result, options.device
        self.began = began
        self.on_gpu = options.device.startswith("cuda")
        self._base: tuple[tuple[Any, ...], Any] | None = None
        self.broken: str | None = None  # why the GPU computes no more

    def left(self) -> float:
        """Seconds until no new variant is started."""
        return self.options.seconds - (time.monotonic() - self.began)

    def group(self, variants: list[Variant]) -> None:
        """Measure those that are not in the result yet, so many at a time, each time beside the reference."""
        wanted = [variant for variant in variants if variant.is_possible and not self.result.has(variant)]
        wanted = [v for v in wanted if v != v.reference()]
        if self.on_gpu and not self.options.here:
            captured = [variant for variant in wanted if variant.graph]
            wanted = [variant for variant in wanted if not variant.graph]
            for variant in captured:
                self._elsewhere(variant)
            if captured and not wanted:
                return
        reference = variants[0].reference()
        if not wanted and self.result.has(reference):
            return
        if self.left() <= 0:
            return
        print(f"\n{time.monotonic() - self.began:.0f} s: {_title(reference)}", flush=True)
        first = self._ready(reference)
        hold = self.options.hold or len(wanted)
        for start in range(0, max(1, len(wanted)), max(1, hold)):
            held = [first] if first is not None else []
            for variant in wanted[start : start + hold]:
                if self.left() > 0 and self.broken is None and (one := self._ready(variant)) is not None:
                    held.append(one)
            self._turns(held, first)
            held.clear()
            self._free()
        keys = [variant.key for variant in (reference, *wanted)]
        rows = [self.result.rows[key] for key in dict.fromkeys(keys) if key in self.result.rows]
        print(table(HEAD, [[cell[:60] for cell in cells] for cells in body_of(rows)]), flush=True)

    def _elsewhere(self, variant: Variant) -> None:
        """Measure a captured step in a process of its own: after a capture that failed, PyTorch's random generator
        takes itself to be captured still, and the next draw raises."""
        if self.left() <= 0:
            return
        self._base = None
        self._free()
        row = self.result.begin(variant)
        print(f"{time.monotonic() - self.began:.0f} s: {variant.key}", flush=True)
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder) / "step.json"
            words = [sys.executable, SCRIPT, "--one-of", json.dumps(asdict(variant)), "--out", str(out)]
            names = ("device", "width", "layers", "queue", "repeats", "seconds")
            words += [
                f"--{name}={min(self.left(), 1e6) if name == 'seconds' else getattr(self.options, name)}"
                for name in names
            ]
            ran = subprocess.run(words, capture_output=True, text=True)
            rows = {found["key"]: found for found in read_json(out)["rows"]} if out.is_file() else {}
        row.update(rows.get(variant.key, {}))
        if row["error"] is None and not row["all_seconds"]:
            lines = ran.stderr.strip().splitlines()
            row["error"] = lines[-1][:200] if lines else f"ended with {ran.returncode}"
        reference = rows.get(variant.reference().key)
        if reference is not None:
            self.result.rows.setdefault(reference["key"], reference)
        self.result.write()
        print(table(HEAD, [[cell[:60] for cell in cells] for cells in body_of([row])]), flush=True)

    def _ready(self, variant: Variant) -> Held | None:
        """Make and warm a variant, and take what is counted once; None if that failed, which its row says."""
        if (was := self.result.rows.get(variant.key)) is not None:
            row, known = was, True
            row["error"] = None
        else:
            row, known = self.result.begin(variant), False
        step: Any = None
        try:
            gc.collect()
            base = self._model(variant)
            before = torch.cuda.memory_allocated() if self.on_gpu else 0
            step = Step(variant, base, self.options)
            if self.on_gpu:
                torch.cuda.synchronize()
                torch.cuda.reset_peak_memory_stats()
            for _ in range(WARM):
                loss = step()
            if variant.graph:
                step = Replayed(step)
            row["loss"] = float(loss)
            row["trainable"] = step.trainable
            if not math.isfinite(row["loss"]):
                raise Unavailable(f"the loss is {row['loss']}")
            del loss
            if self.on_gpu:
                torch.cuda.synchronize()
                row["peak_bytes"] = torch.cuda.max_memory_allocated() - before
                row["resident_bytes"] = torch.cuda.memory_allocated() - before
            if not known:
                if self.on_gpu and not variant.graph:
                    row["waits"] = waits(step)
                row |= kernels(step, self.device)
                if not self.on_gpu and self.options.peak:
                    row |= peak_elsewhere(variant, self.options)
            self.result.write()
            return Held(variant, row, step)
        except Exception as error:
            row["error"] = str(error) if isinstance(error, Unavailable) else first_line(error)
            if not isinstance(error, (Unavailable, torch.OutOfMemoryError)):
                row["traceback"] = traceback.format_exc()[-2000:]
        del step
        print(f"  {variant.key}: {row['error']}", flush=True)
        self._free()
        self._check()
        self.result.write()
        return None

    def _turns(self, held: list[Held], first: Held | None) -> None:
        steps = REPEATED if self.on_gpu else 1
        for turn in range(-1 if self.on_gpu else 0, self.options.repeats):  # the first, untimed, takes memory again
            taken: dict[str, float] = {}
            for one in list(held):
                if self.broken is not None:
                    break
                try:
                    if not self.on_gpu:
                        trim()
                    several = lambda s=one.step: [s() for _ in range(steps)]  # type: ignore[misc]  # noqa: E731
                    spent = seconds(several, self.device) / steps
                    if turn >= 0:
                        taken[one.variant.key] = spent
                except Exception as error:
                    one.row["error"] = first_line(error)
                    print(f"  {one.variant.key}: {one.row['error']}", flush=True)
                    held.remove(one)
                    self._check()
            for one in held:
                if (mine := taken.get(one.variant.key)) is not None:
                    one.row["all_seconds"].append(mine)
                    if first is not None and (theirs := taken.get(first.variant.key)) is not None:
                        one.row.setdefault("reference_seconds", []).append(theirs)
            self.result.write()
            if self.left() <= -self.options.seconds * 0.06:
                break

    def _model(self, variant: Variant) -> Any:
        key = variant.model, variant.size
        if self._base is None or self._base[0] != key:
            self._base = None
            self._free()
            self._base = key, fresh_model(variant, self.options)
        return self._base[1]

    def _free(self) -> None:
        gc.collect()
        if self.on_gpu and self.broken is None:
            with suppress(Exception):
                torch.cuda.empty_cache()

    def _check(self) -> None:
        """Whether the GPU still computes after an error."""
        if not self.on_gpu:
            return
        try:
            torch.cuda.set_sync_debug_mode("default")
            torch.rand(4, device=self.device).sum().item()
        except Exception as error:
            self.broken = first_line(error)
            print(f"the GPU computes no more: {self.broken}", flush=True)


def _title(variant: Variant) -> str:
    return f"{variant.model} {variant.size} px, {variant.precision}, {variant.batch} pairs"


@contextmanager
def quiet() -> Iterator[None]:
    """Without warnings of libraries that say nothing of what is measured."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def peak_here(variant: Variant, options: argparse.Namespace) -> dict[str, int]:
    """What this process, which does nothing else, holds at most in two steps, and after them, less what it holds after
    its imports."""
    tiny = torch.randn(8, 8, requires_grad=True)
    (tiny @ tiny).sum().backward()  # what PyTorch loads late
    trim()
    start = resident()
    step = Step(variant, fresh_model(variant, options), options)
    trim()
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew, without that of making the model
    for _ in range(2):
        step()
    status = Path("/proc/self/status").read_text()
    peak = int(status.split("VmHWM:")[1].split()[0]) * 1024
    trim()
    return {"peak_bytes": peak - start, "resident_bytes": resident() - start}


def peak_elsewhere(variant: Variant, options: argparse.Namespace) -> dict[str, Any]:
    """`peak_here` of another process."""
    words = [sys.executable, SCRIPT, "--peak-of", json.dumps(asdict(variant)), "--device", options.device]
    words += [f"--{name}={getattr(options, name)}" for name in ("width", "layers", "queue")]
    ran = subprocess.run(words, capture_output=True, text=True)
    if ran.returncode:
        lines = ran.stderr.strip().splitlines()
        return {"peak_error": lines[-1][:200] if lines else f"ended with {ran.returncode}, as for want of memory"}
    return dict(json.loads(ran.stdout.strip().splitlines()[-1]))
