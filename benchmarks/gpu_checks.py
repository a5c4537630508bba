"""What only a GPU can tell of Aurora, in about a minute: start it once on a new machine or release of PyTorch.

    python benchmarks/gpu_checks.py --out checks.json

- The tests that are marked ``gpu``.
- A training step of every objective and family, of tiny models: loss and gradients are the CPU's, and how often the
  step waits for the GPU, by the line that asks (`torch.cuda.set_sync_debug_mode`). A step that never waits can be
  captured as one CUDA graph, which is tried.
- A run of `aurora train` on the embedded pictures, from data to scores.

A check that fails has its reason in the table, and the others go on. The exit status is 1 if one failed.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers
from accelerate.utils import send_to_device
from PIL import Image
from step_measure import first_line, first_of, told, waits
from step_variants import Unavailable
from torch import Tensor

from aurora_petl.backbones import load_backbone
from aurora_petl.baselines import apply_method
from aurora_petl.files import write_json
from aurora_petl.report.tables import table
from aurora_petl.tasks.base import Task
from aurora_petl.tasks.retrieval import Retrieval
from aurora_petl.tasks.settings import RetrievalSettings, VQASettings
from aurora_petl.tasks.vqa import VQA

ROOT = Path(__file__).parents[1]
FUSION: dict[str, Any] = {"context": "batch", "gate": "scale_shift"}
CAPTIONS = ("a red circle on the left", "two blue stars")
Made = Callable[[torch.device], tuple[Task, dict[str, Any]]]


def retrieval(
    model: str | Path, settings: dict[str, Any], same: bool = False, method: str = "aurora", **options: Any
) -> Made:
    """A task of two pairs, which leave no choice of negatives, on a device."""

    def make(device: torch.device) -> tuple[Task, dict[str, Any]]:
        backbone = _backbone(model, "retrieval", method, options)
        backbone.module.to(device)
        task = Retrieval(backbone, RetrievalSettings(**settings)).to(device)
        pixels = _pixels(backbone, settings.get("frames", 0))
        rows = [
            {"pixels": picture, "caption": caption, "id": 0 if same else number}
            for number, (picture, caption) in enumerate(zip(pixels, CAPTIONS, strict=True))
        ]
        return task, task.collate(rows)

    return make


def answering(model: str | Path, method: str = "aurora", **options: Any) -> Made:
    def make(device: torch.device) -> tuple[Task, dict[str, Any]]:
        backbone = _backbone(model, "vqa", method, options)
        backbone.module.to(device)
        task = VQA(backbone, VQASettings()).to(device)
        asked = [("what is it?", ["a red apple", "apple"], [0.7, 0.3]), ("is it a circle?", ["yes"], [1.0])]
        names = ("question", "answers", "weights")
        rows = [
            {"pixels": pixels, **dict(zip(names, row, strict=True))}
            for pixels, row in zip(_pixels(backbone), asked, strict=True)
        ]
        return task, task.collate(rows)

    return make


def _backbone(model: str | Path, task: str, method: str, options: dict[str, Any]) -> Any:
    backbone = load_backbone(model, task=task)
    if method == "aurora":
        options = {"r": 8, "init_weights": False, "scale": 0.1} | options
    torch.manual_seed(0)
    apply_method(backbone, method, options)
    return backbone


def _pixels(backbone: Any, frames: int = 0) -> list[Any]:
    """What the model reads of two noisy pictures, or of two clips."""
    draw = torch.Generator().manual_seed(1)

    def one() -> Any:
        values = torch.randint(0, 256, (48, 48, 3), generator=draw, dtype=torch.uint8)
        return backbone.view()(Image.fromarray(values.numpy()))

    return [torch.stack([one() for _ in range(frames)]) if frames else one() for _ in range(2)]


def cases(folder: Path) -> dict[str, Callable[[], Made]]:
    """By name what makes each; those of other families than BLIP need the tests' helpers."""
    plain = {"queue_size": 0, "momentum": 0.0, "alpha": 0.0}
    made: dict[str, Callable[[], Made]] = {
        "BLIP: ITC, queue, momentum, ITM": lambda: retrieval("blip-mini", {"queue_size": 8}),
        "the same, ICE, GQT": lambda: retrieval("blip-mini", {"queue_size": 8}, **FUSION),
        "BLIP: ITC, ITM, one picture": lambda: retrieval("blip-mini", {"queue_size": 8}, same=True),
        "BLIP: ITC alone": lambda: retrieval("blip-mini", plain | {"itm_weight": 0.0}),
        "BLIP: clips of 2 frames": lambda: retrieval("blip-mini", {"queue_size": 8, "frames": 2}),
        "BLIP: LoRA": lambda: retrieval("blip-mini", {"queue_size": 8}, method="lora", r=8),
        "BLIP: full": lambda: retrieval("blip-mini", {"queue_size": 8}, method="full"),
        "BLIP: answers": lambda: answering("blip-mini", **FUSION),
    }

    def family(kind: str, module: str) -> Path:
        sys.path.insert(0, str(ROOT))
        helpers = __import__(f"tests.helpers.{module}", fromlist=["make"])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return Path(helpers.make(kind, folder / kind))

    def of_family(kind: str) -> Made:
        return retrieval(family(kind, "families"), {})

    def of_writers(kind: str) -> Made:
        return answering(family(kind, "writers"))

    for kind in ("clip", "metaclip_2", "siglip", "naflex", "blip-2"):
        made[kind] = partial(of_family, kind)
    for kind in ("qwen2_5_vl", "smolvlm", "internvl"):
        made[f"{kind}: answers"] = partial(of_writers, kind)
    return made


def check(make: Made, device: torch.device) -> tuple[dict[str, Any], Callable[[], str] | None]:
    """Loss and gradients against the CPU's, and the waits of a step; and what tries to capture it, if it never waits.

    A capture that fails can spoil what follows, so captures are tried when all else is done.
    """
    row: dict[str, Any] = {}
    on_cpu, found = (_loss_and_gradients(make, place) for place in (torch.device("cpu"), device))
    row["loss"], row["loss_difference"] = found[0], abs(found[0] - on_cpu[0]) / max(1e-12, abs(on_cpu[0]))
    row["gradient_difference"] = float((found[1] - on_cpu[1]).norm() / on_cpu[1].norm().clamp(min=1e-12))
    task, batch = make(device)
    task.train()
    batch = send_to_device(batch, device)
    weights = [weight for _, weight in task.trained()]
    optimizer = torch.optim.AdamW(weights, 1e-4, fused=True)

    def step() -> Tensor:
        with torch.autocast(device.type, torch.bfloat16):
            loss = task(**batch)["loss"]
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.detach()

    for _ in range(2):
        step()
    if device.type != "cuda":
        return row | {"waits": {}, "graph": "no GPU"}, None
    row["waits"] = waits(step)
    row["graph"] = "it waits" if row["waits"] else "not tried"
    return row, None if row["waits"] else lambda: _captured(step, optimizer)


def _loss_and_gradients(make: Made, device: torch.device) -> tuple[float, Tensor]:
    task, batch = make(device)
    task.train()
    loss = task(**send_to_device(batch, device))["loss"]
    loss.backward()
    parts = [w.new_zeros(w.shape) if w.grad is None else w.grad for _, w in task.trained()]
    return float(loss.detach()), torch.cat([part.flatten().float().cpu() for part in parts])


def _captured(step: Callable[[], Tensor], optimizer: torch.optim.Optimizer) -> str:
    for group in optimizer.param_groups:
        group["capturable"] = True
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(2):
            step()
    torch.cuda.current_stream().wait_stream(stream)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph):
            loss = step()
    except Exception as error:
        raise Unavailable(first_line(first_of(error))) from error
    losses = []
    for _ in range(3):
        graph.replay()
        losses.append(round(float(loss), 4))
    return f"yes, losses {losses}"


class Started:
    """A command that runs beside the checks.

    Args:
        words: of the command.
    """

    def __init__(self, words: list[str]) -> None:
        self.begun = time.monotonic()
        self.output = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")  # noqa: SIM115 (till `end`)
        self.process = subprocess.Popen(words, stdout=self.output, stderr=subprocess.STDOUT, cwd=ROOT)

    def end(self, seconds: float) -> str:
        """Wait for it, and say how it ended."""
        try:
            status: Any = self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            status = "late"
        spent = time.monotonic() - self.begun
        self.output.seek(0)
        end = " / ".join(line.strip() for line in self.output.read().strip().splitlines()[-3:])[-300:]
        if status == "late":
            return f"failed: stopped after {spent:.0f} s: {end}"
        return f"{'failed' if status else 'passed'} within {spent:.0f} s: {end}"


def marked_tests() -> Started | None:
    """pytest with the tests for a GPU; None if there are none."""
    files = [str(path) for path in (ROOT / "tests").rglob("test_*.py") if "mark.gpu" in path.read_text("utf-8")]
    words = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "-o", "addopts=", "-p", "no:cacheprovider", *files]
    return Started(words) if files else None


def run(folder: Path, device: str) -> Started:
    """`aurora train` of four steps."""
    words = [sys.executable, "-m", "aurora_petl.cli", "train", "emoji", "train.max_steps=4", "train.evaluations=1"]
    return Started([*words, "train.workers=0", "--device", device, "--out", str(folder / "run"), "--quiet"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--only", help="cases with this in their names")
    parser.add_argument("--seconds", type=float, default=60.0, help="no check is started later")
    parser.add_argument("--out", type=Path, help="write what was seen here")
    options = parser.parse_args()
    begun, device = time.monotonic(), torch.device(options.device)
    captures: dict[str, Callable[[], str]] = {}
    torch.backends.cudnn.allow_tf32 = False  # so that losses can be compared with the CPU's
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    result: dict[str, Any] = {"torch": torch.__version__, "device": options.device, "steps": {}}

    def left() -> float:
        return options.seconds - (time.monotonic() - begun)

    def write() -> None:
        if options.out is not None:
            write_json(options.out, result)

    with tempfile.TemporaryDirectory() as name, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        folder = Path(name)
        beside = {} if options.only else {"marked": marked_tests(), "run": run(folder, options.device)}
        for title, make in cases(folder).items():
            if (options.only and options.only not in title) or left() <= 0:
                continue
            try:
                row, capture = check(make(), device)
                if capture is not None:
                    captures[title] = capture
            except Exception as error:
                text = str(error) if isinstance(error, Unavailable) else first_line(error)
                row = {"error": text, "traceback": traceback.format_exc()[-2000:]}
                if device.type == "cuda":
                    torch.cuda.set_sync_debug_mode("default")
            result["steps"][title] = row
            write()
        for title, capture in captures.items():
            if left() <= 0:
                break
            try:
                result["steps"][title]["graph"] = capture()
            except Exception as error:
                result["steps"][title]["graph"] = str(error) if isinstance(error, Unavailable) else first_line(error)
                break  # after one that failed PyTorch takes its random generator to be captured still
            finally:
                write()
        for title, started in beside.items():
            result[title] = "none" if started is None else started.end(max(20.0, left()))
            write()
    write()
    body = [
        [
            title,
            row["error"][:90] if "error" in row else f"{row['loss_difference']:.0e}",
            "" if "error" in row else f"{row['gradient_difference']:.0e}",
            "" if "error" in row else told(row["waits"]) or "never",
            "" if "error" in row else row["graph"][:60],
        ]
        for title, row in result["steps"].items()
    ]
    print(table(("a step of", "loss off by", "gradients", "waits at", "captured"), body))
    print(f"tests marked gpu: {result.get('marked', 'not run')}\naurora train: {result.get('run', 'not run')}")
    print(f"{time.monotonic() - begun:.0f} s", flush=True)
    missing = "need a newer transformers"  # a family that the machine's libraries do not have
    failed = [title for title, row in result["steps"].items() if missing not in row.get("error", missing)]
    if failed or any(result.get(name, "").startswith("failed") for name in ("marked", "run")):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
