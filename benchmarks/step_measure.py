"""How `step.py` measures a step beside its time: kernels, waits for the device, memory at the peak."""

from __future__ import annotations

import ctypes
import gc
import os
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

OWN = (__file__, str(Path(__file__).with_name("step_variants.py")), warnings.__file__)  # no reader asks for these lines
FAILED: list[str] = []  # what the profiler said, once is enough to be told


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
    frames = [f for f in traceback.extract_stack() if f.filename not in OWN]
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
