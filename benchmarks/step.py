"""What a user feels of a training step: pairs a second and peak memory, the whole step long.

    OMP_NUM_THREADS=2 python benchmarks/step.py --model blip --size 224 --layers 3 --batch 4 --out step.json
    python benchmarks/step.py --device cuda --preset gpu --seconds 180 --out step.json

A step is the forward and the backward pass of the whole objective, clipping and AdamW: of BLIP-base ITC with a queue
and a momentum encoder, and ITM with hard negatives; of a dual encoder of CLIP ViT-B/16's size the contrast over the
batch. Random weights of the published sizes. Each method runs twice: "ours" is the task of `aurora train` with
Aurora's attention, "usual" is `usual_step.py`, the code that was released with BLIP on transformers' own attention.

Precisions: ``float32``; ``autocast``, float32 weights that PyTorch casts to bfloat16; ``bf16``, the same over a model
that is held in bfloat16, with what peft adds in float32; ``pure-bf16``, every weight in bfloat16 and no autocast.

Variants take turns, beside LoRA r=64 with the usual code, of whose paired turns the ratios are medians. Peak memory
holds weights, gradients, the optimizer's state and all else that the step needs: of a GPU as its allocator counts it,
of a CPU what a process of its own adds to what it holds after its imports. ``--out`` is written anew after each
variant, with a table beside it (``.md``); a later call with the same file goes on where the first one ended.
"""

# ruff: noqa: E402 (imports count in the time that is spent)
from __future__ import annotations

import time

BEGUN = time.monotonic()

import argparse
import ctypes
import gc
import json
import math
import os
import subprocess
import sys
import tempfile
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from copy import deepcopy
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import torch
import transformers
from measure import seconds
from torch import Tensor
from transformers import BlipConfig, BlipForImageTextRetrieval, CLIPConfig, CLIPModel
from usual_step import Stock, UsualBlip, UsualDual, stock_blip

from aurora_petl.backbones.blip.config import ORIGINAL_EPSILON
from aurora_petl.backbones.blip.model import ENC, BlipBackbone
from aurora_petl.backbones.dual import KINDS, DualBackbone
from aurora_petl.baselines import apply_method, is_head
from aurora_petl.data.media import PictureFormat
from aurora_petl.files import read_json, write_json, write_text
from aurora_petl.report.tables import markdown_table, table
from aurora_petl.tasks.retrieval import Retrieval
from aurora_petl.tasks.settings import RetrievalSettings

METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "Aurora": ("aurora", {"r": 64}),
    "Aurora, ICE, GQT": ("aurora", {"r": 64, "context": "batch", "gate": "scale_shift"}),  # BLIP's, ours alone
    "heads": ("heads", {}),
    "LoRA r=64": ("lora", {"r": 64, "lora_alpha": 64}),
    "LoRA r=16": ("lora", {"r": 16, "lora_alpha": 16}),
    "DoRA r=64": ("dora", {"r": 64, "lora_alpha": 64}),
    "VeRA r=256": ("vera", {"r": 256}),
    "full": ("full", {}),
}
FUSION = "Aurora, ICE, GQT"
SIDES = ("ours", "usual")
MODELS = ("blip", "clip")
PRECISIONS = ("float32", "autocast", "bf16", "pure-bf16")
REFERENCE = ("LoRA r=64", "usual")
LONGEST = {"blip": 35, "clip": 77}  # tokens of a text
QUEUE = 57_600  # pairs, BLIP's
WORDS, SPREAD, SHORTEST = 13, 2.4, 8  # tokens of a caption: mean, standard deviation, least
RATE, DECAY, CLIP = 1e-5, 0.05, 1.0
WARM, REPEATED = 2, 2  # steps before the first turn, and steps of a turn on a GPU
FAILED: list[str] = []  # what the profiler said, once is enough to be told
ENDED = "the process ended in it"


@dataclass(frozen=True)
class Variant:
    """One row of the result."""

    model: str
    size: int  # pixels a side
    precision: str
    method: str
    side: str
    batch: int
    graph: bool = False  # whether the step is replayed as one CUDA graph

    @property
    def key(self) -> str:
        graph = ", CUDA graph" if self.graph else ""
        return f"{self.model} {self.size}, {self.precision}, {self.batch} pairs: {self.method}, {self.side}{graph}"

    @property
    def is_possible(self) -> bool:
        return self.method != FUSION or (self.side == "ours" and self.model == "blip")

    def reference(self) -> Variant:
        """What it is compared with: LoRA r=64 with the usual code, launched kernel by kernel."""
        method, side = REFERENCE
        return replace(self, method=method, side=side, graph=False)


class Unavailable(Exception):
    """A variant that cannot be measured, with the reason."""


# Models and batches


def fresh_model(variant: Variant, options: argparse.Namespace) -> Any:
    """transformers' model in float32 with random weights, without adapter."""
    width, layers = options.width, options.layers
    shape = dict(hidden_size=width, intermediate_size=4 * width, num_hidden_layers=layers)
    shape |= dict(num_attention_heads=max(1, width // 64))
    vision = dict(shape, image_size=variant.size, patch_size=16)
    torch.manual_seed(0)
    with torch.device(options.device):
        if variant.model == "clip":
            narrow = max(64, width * 2 // 3)
            text = dict(shape, hidden_size=narrow, intermediate_size=4 * narrow, num_attention_heads=narrow // 64)
            return CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=narrow))
        vision |= dict(layer_norm_eps=ORIGINAL_EPSILON, initializer_range=0.02)
        text = dict(shape, encoder_hidden_size=width, vocab_size=ENC + 1, initializer_range=0.02)
        return BlipForImageTextRetrieval(BlipConfig(text_config=text, vision_config=vision, image_text_hidden_size=256))


def made_batch(variant: Variant, device: str) -> dict[str, Tensor]:
    """Pictures with captions of usual lengths: as wide as the longest, or as the model reads at most."""
    draw = torch.Generator().manual_seed(1)
    count, most = variant.batch, LONGEST[variant.model]
    lengths = torch.randn(count, generator=draw).mul(SPREAD).add(WORDS).round().long().clamp(SHORTEST, most)
    width = most if variant.side == "usual" else int(lengths.max())
    ids = torch.randint(1000, 30_000, (count, most), generator=draw)[:, :width]
    mask = (torch.arange(width) < lengths[:, None]).long()
    if variant.model == "clip":
        ids[:, 0], end = 49_406, 49_407
        ids = torch.where(torch.arange(width) < lengths[:, None] - 1, ids, end)
    else:
        ids[:, 0] = 101
        ids[torch.arange(count), lengths - 1] = 102
        ids = ids * mask
    pixels = torch.randn(count, 3, variant.size, variant.size, generator=draw)
    batch = {"pixel_values": pixels, "input_ids": ids, "attention_mask": mask, "ids": torch.arange(count)}
    return {name: value.to(device) for name, value in batch.items()}


def queue_of(rows: int, width: int, device: str) -> tuple[Tensor, Tensor]:
    """Random features of earlier pictures and texts."""
    draw = torch.Generator().manual_seed(3)
    return tuple(  # type: ignore[return-value]
        torch.nn.functional.normalize(torch.randn(rows, width, generator=draw), dim=1).to(device) for _ in range(2)
    )


class Step:
    """A training step: call it. It returns the loss, which stays on the device.

    Args:
        variant: which.
        base: the model without adapter; it is copied.
    """

    def __init__(self, variant: Variant, base: Any, options: argparse.Namespace) -> None:
        self.variant, self.device = variant, options.device
        kind = torch.device(options.device).type
        autocast = variant.precision in ("autocast", "bf16")
        self._autocast = lambda: torch.autocast(kind, torch.bfloat16) if autocast else nullcontext()
        model = deepcopy(base)
        if variant.precision in ("bf16", "pure-bf16"):
            model.to(torch.bfloat16)
        method, settings = METHODS[variant.method]
        backbone = self._backbone(model)
        torch.manual_seed(0)
        apply_method(backbone, method, dict(settings))
        backbone.module.to(options.device)
        if variant.precision == "pure-bf16":
            backbone.module.to(torch.bfloat16)
        backbone.module.train()
        self.batch = made_batch(variant, options.device)
        rows = options.queue // variant.batch * variant.batch if variant.model == "blip" else 0
        self._loss = self._ours(backbone, rows) if variant.side == "ours" else self._usual(backbone, rows)
        own = [(name, weight) for name, weight in backbone.module.named_parameters() if weight.requires_grad]
        self.weights = [weight for _, weight in own]
        self.trainable = sum(weight.numel() for weight in self.weights)
        groups: dict[tuple[bool, bool], list[Tensor]] = {}
        for name, weight in own:
            groups.setdefault((is_head(backbone, name), weight.dim() > 1), []).append(weight)
        self.optimizer = torch.optim.AdamW(
            [{"params": found, "weight_decay": DECAY * decays} for (_, decays), found in groups.items()],
            lr=RATE,
            fused=True,
        )

    def _backbone(self, model: Any) -> Any:
        if self.variant.model == "clip":
            if self.variant.side == "usual":
                return Stock(model, KINDS["clip"].heads)
            return DualBackbone(model, None, PictureFormat(self.variant.size), "random", KINDS["clip"])
        return stock_blip(model) if self.variant.side == "usual" else BlipBackbone(model, None, "random")

    def _usual(self, backbone: Stock, rows: int) -> Callable[[], Tensor]:
        if self.variant.model == "clip":
            loss: Any = UsualDual(backbone)
        else:
            loss = UsualBlip(backbone, *queue_of(rows, backbone.model.config.image_text_hidden_size, self.device))
        return lambda: loss(**self.batch)

    def _ours(self, backbone: Any, rows: int) -> Callable[[], Tensor]:
        task = Retrieval(backbone, RetrievalSettings(queue_size=rows)).to(self.device).train()
        if rows:
            task._contrast.fill(*queue_of(rows, backbone.feature_shape[-1], self.device), -100)
        return lambda: task(**self.batch)["loss"]

    def __call__(self) -> Tensor:
        with self._autocast():
            loss = self._loss()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.weights, CLIP)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return loss.detach()


class Replayed:
    """The same step, captured as one CUDA graph.

    Raises:
        Unavailable: if it cannot be captured, with the reason.
    """

    def __init__(self, step: Step) -> None:
        self.step, self.trainable = step, step.trainable
        if places := waits(step):
            raise Unavailable(f"not captured: the step waits for the device {told(places)}")
        for group in step.optimizer.param_groups:
            group["capturable"] = True
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of steps that are not captured
            for _ in range(WARM):
                step()
        torch.cuda.current_stream().wait_stream(stream)
        torch.cuda.synchronize()
        self.graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(self.graph):
                self.loss = step()
        except Exception as error:  # that of the capture's end hides the one that broke it off
            raise Unavailable(f"not captured: {first_line(first_of(error))}") from error

    def __call__(self) -> Tensor:
        self.graph.replay()
        return self.loss


def waits(step: Callable[[], Tensor]) -> dict[str, int]:
    """How often a step waits for the GPU, by the line that asks, as PyTorch notes it."""
    places: dict[str, int] = {}

    def note(message: Any, *_: Any) -> None:
        if "called a synchronizing" in str(message):  # and not that this mode is a prototype
            place = caller()
            places[place] = places.get(place, 0) + 1

    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = note  # type: ignore[assignment]
        torch.cuda.set_sync_debug_mode("warn")
        try:
            step()
        finally:
            torch.cuda.set_sync_debug_mode("default")
            torch.cuda.synchronize()
    return places


def caller() -> str:
    """The innermost line of the package or of the usual code, else of whatever library asked."""
    frames = [f for f in traceback.extract_stack() if f.filename not in (__file__, warnings.__file__)]
    own = [f for f in frames if "aurora_petl" in f.filename or "usual_step" in f.filename]
    frame = own[-1] if own else frames[-1] if frames else None
    if frame is None:
        return "PyTorch"
    path = frame.filename.split("aurora_petl/")[-1] if own else "/".join(Path(frame.filename).parts[-3:])
    return f"{Path(path).name if 'usual_step' in path else path}:{frame.lineno}"


def told(places: dict[str, int]) -> str:
    return ", ".join(f"{count} x at {place}" for place, count in sorted(places.items(), key=lambda it: -it[1])[:4])


# Figures


def kernels(step: Callable[[], Tensor], device: str) -> dict[str, Any]:
    """Kernels of a step. Of a GPU those that ran, with the seconds that it was busy and how often it was read from; of
    a CPU the operations that would launch one, see `count_kernels.py`."""
    if device.startswith("cuda"):
        try:
            return profiled(step)
        except Exception as error:
            if not FAILED:
                print(f"  the profiler failed, operations are counted instead: {first_line(error)}", flush=True)
            FAILED.append(first_line(error))
    from count_kernels import Kernels

    with Kernels() as counted:
        step()
    return {"kernels": sum(counted.counts.values()), "kernels_are": "operations dispatched"}


def profiled(step: Callable[[], Tensor]) -> dict[str, Any]:
    from torch.profiler import ProfilerActivity, profile

    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CUDA]) as found:
        step()
        torch.cuda.synchronize()
    count = reads = 0
    busy = 0.0
    for event in device_events(found):
        name, duration = event
        if name.startswith(("Optimizer.", "ProfilerStep", "aten::", "cuda", "Activity")):
            continue
        busy += duration
        if "Memcpy DtoH" in name:
            reads += 1
        elif not name.startswith(("Memcpy", "Memset")):
            count += 1
    if not count:
        raise RuntimeError("it saw no kernel")
    return {"kernels": count, "kernels_are": "launched", "device_seconds": busy, "copies_to_host": reads}


def device_events(found: Any) -> Iterator[tuple[str, float]]:
    """Name and seconds of what ran on the GPU."""
    kind = torch.autograd.DeviceType.CUDA
    try:
        raw = found.profiler.kineto_results.events()
        yield from [(event.name(), event.duration_ns() / 1e9) for event in raw if event.device_type() == kind]
    except AttributeError:
        for event in found.events():
            if event.device_type == kind:
                yield event.name, event.time_range.elapsed_us() / 1e6


def first_of(error: BaseException) -> BaseException:
    """The error that an error was raised beside."""
    while error.__context__ is not None:
        error = error.__context__
    return error


def first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:200] if lines else ''}"


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def trim() -> None:
    gc.collect()
    if sys.platform == "linux":
        ctypes.CDLL(None).malloc_trim(0)


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
    words = [sys.executable, __file__, "--peak-of", json.dumps(asdict(variant)), "--device", options.device]
    words += [f"--{name}={getattr(options, name)}" for name in ("width", "layers", "queue")]
    ran = subprocess.run(words, capture_output=True, text=True)
    if ran.returncode:
        lines = ran.stderr.strip().splitlines()
        return {"peak_error": lines[-1][:200] if lines else f"ended with {ran.returncode}, as for want of memory"}
    return dict(json.loads(ran.stdout.strip().splitlines()[-1]))


# The order of measuring


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


@dataclass
class Held:
    """A variant that is ready to take its turns."""

    variant: Variant
    row: dict[str, Any]
    step: Callable[[], Tensor]


class Bench:
    """Measures groups of variants that share model, size, precision and batch."""

    def __init__(self, options: argparse.Namespace, result: Result) -> None:
        self.options, self.result, self.device = options, result, options.device
        self.on_gpu = options.device.startswith("cuda")
        self._base: tuple[tuple[Any, ...], Any] | None = None
        self.broken: str | None = None  # why the GPU computes no more

    def left(self) -> float:
        """Seconds until no new variant is started."""
        return self.options.seconds - (time.monotonic() - BEGUN)

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
        print(f"\n{time.monotonic() - BEGUN:.0f} s: {_title(reference)}", flush=True)
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
        print(f"{time.monotonic() - BEGUN:.0f} s: {variant.key}", flush=True)
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder) / "step.json"
            words = [sys.executable, __file__, "--one-of", json.dumps(asdict(variant)), "--out", str(out)]
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


def preset(batch: int) -> list[list[Variant]]:
    """The groups for a GPU that is at hand for minutes: what tells most comes first."""
    ours, usual = ("Aurora", "ours"), ("Aurora", "usual")
    main = [ours, ("LoRA r=64", "ours"), usual, ("full", "usual"), (FUSION, "ours"), ("heads", "ours")]
    few = [ours, ("LoRA r=64", "ours"), ("full", "usual")]
    rest = [(m, side) for m in ("heads", "full", "LoRA r=16", "DoRA r=64", "VeRA r=256") for side in reversed(SIDES)]
    graphs = [ours, ("LoRA r=64", "ours"), ("LoRA r=64", "usual")]
    plan: list[tuple[str, int, str, list[tuple[str, str]], bool]] = [
        ("blip", 224, "bf16", main, False),
        ("blip", 384, "bf16", main, False),
        ("blip", 224, "bf16", graphs, True),
        ("blip", 384, "autocast", few, False),
        ("blip", 224, "autocast", few, False),
        ("blip", 384, "float32", few, False),
        ("blip", 224, "float32", few, False),
        ("clip", 224, "bf16", [*few, usual], False),
        ("clip", 224, "bf16", graphs, True),
        ("blip", 384, "bf16", graphs[:1], True),
        ("clip", 224, "autocast", few, False),
        ("clip", 224, "float32", few, False),
        ("blip", 224, "bf16", rest, False),
        ("blip", 384, "bf16", rest, False),
        ("clip", 224, "bf16", rest, False),
        ("blip", 224, "pure-bf16", few, False),
        ("blip", 384, "pure-bf16", few, False),
    ]
    return [
        [Variant(model, size, precision, method, side, batch, graph) for method, side in variants]
        for model, size, precision, variants, graph in plan
    ]


def chosen(options: argparse.Namespace) -> list[list[Variant]]:
    """The groups that the options name."""
    groups = []
    for model in options.model or MODELS:
        for size in options.size or ((224, 384) if model == "blip" else (224,)):
            for precision in options.precision or PRECISIONS[:3]:
                for graph in (False, True) if options.graphs else (False,):
                    groups.append(
                        [
                            Variant(model, size, precision, method, side, options.batch, graph)
                            for method in options.method or METHODS
                            for side in options.side or SIDES
                        ]
                    )
    return groups


def groups_of(options: argparse.Namespace) -> list[list[Variant]]:
    if options.one_of is not None:
        return [[Variant(**options.one_of)]]
    return preset(options.batch) if options.preset else chosen(options)


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", action="append", choices=MODELS, help="both if not given")
    parser.add_argument("--size", action="append", type=int, help="pixels a side; 224 and, of BLIP, 384")
    parser.add_argument("--precision", action="append", choices=PRECISIONS, help="the first three if not given")
    parser.add_argument("--method", action="append", choices=METHODS, help="all if not given")
    parser.add_argument("--side", action="append", choices=SIDES, help="both if not given")
    parser.add_argument("--graphs", action="store_true", help="CUDA graphs beside launches")
    parser.add_argument("--preset", choices=("gpu",), help="groups for a GPU in their order, in place of the above")
    for name, value in dict(batch=0, repeats=0, layers=12, width=768, queue=QUEUE, hold=0).items():
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--seconds", type=float, default=math.inf, help="no variant is started later, imports included")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--no-peak", dest="peak", action="store_false", help="leave out peak memory on a CPU")
    parser.add_argument("--out", type=Path, help="write the numbers here, and a table beside them")
    parser.add_argument("--peak-of", type=json.loads, help=argparse.SUPPRESS)
    parser.add_argument("--one-of", type=json.loads, help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.here = options.one_of is not None
    on_gpu = options.device.startswith("cuda")
    options.batch = options.batch or (16 if on_gpu else 4)
    options.repeats = options.repeats or (3 if on_gpu else 5)
    options.hold = options.hold or (0 if on_gpu else 3)
    return options


def main() -> None:
    options = parsed()
    if options.peak_of is not None:
        with quiet():
            print(json.dumps(peak_here(Variant(**options.peak_of), options)))
        return
    if options.device.startswith("cuda"):
        torch.cuda.set_device(torch.device(options.device).index or 0)
        warm = torch.randn(256, 256, device=options.device)
        (warm @ warm).sum().item()  # the workspace of products, which no variant is to pay for
    gc.freeze()  # what was imported need not be looked at
    result = Result(options)
    bench = Bench(options, result)
    with quiet():
        for group in groups_of(options):
            if bench.broken is None:
                bench.group(group)
    result.write()
    if options.out is None:
        print(result.markdown())
    print(f"{time.monotonic() - BEGUN:.0f} s", flush=True)
    if bench.broken is not None:
        raise SystemExit(f"the GPU computes no more: {bench.broken}; start anew with the same --out")


if __name__ == "__main__":
    main()
