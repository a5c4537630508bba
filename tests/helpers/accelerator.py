"""A stand-in for a GPU: tensors that hold values, that no operation mixes with the CPU's, and whose reading is noted.

    with Accelerator() as accelerator:
        model.to(DEVICE)                       # as "cuda" would be
        model(pixels)                          # raises: pixels are on the CPU
        model(pixels.to(DEVICE)).sum().item()  # noted in accelerator.reads

PyTorch's own stand-in, the meta device, has no values, so what depends on them cannot run there; and it takes some CPU
tensors without a word (of `index_select`, of matrix products). Its name serves here: the engine of autograd runs its
backward passes in the thread that called, where the modes below are at work.
"""

from __future__ import annotations

import traceback
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

DEVICE = torch.device("meta")
SOURCES = str(Path(__file__).parents[2] / "src" / "aurora_petl")
BELOW = (str(Path(torch.__file__).parent), __file__)
aten = torch.ops.aten

# what waits for a GPU: its result's shape depends on values, or it is a number
WAITING = {aten.nonzero, aten._unique2, aten.masked_select, aten.bincount, aten.equal, aten._local_scalar_dense}
MIXING = {aten.copy_, aten._to_copy}  # the ways between devices


class Remote(Tensor):
    """A tensor on the stand-in; ``inner`` holds its values."""

    inner: Tensor

    @staticmethod
    def __new__(cls, inner: Tensor) -> Remote:
        with torch.inference_mode(False):  # a view of a tensor that is older than the mode is to be none of the mode
            made: Remote = Tensor._make_wrapper_subclass(
                cls,
                inner.size(),
                strides=inner.stride(),
                storage_offset=inner.storage_offset(),
                dtype=inner.dtype,
                device=DEVICE,
            )
        made.inner = inner.detach()
        return made

    def __repr__(self, *, tensor_contents=None) -> str:
        return f"Remote({self.inner})"

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        if func == Tensor.data.__set__:  # which knows nothing of `inner`
            args[0].inner = args[1].inner
            return None
        if func == Tensor.tolist:  # which PyTorch refuses subclasses
            return args[0].cpu().tolist()
        with torch._C.DisableTorchFunctionSubclass():  # results are of the class that they are of
            return func(*args, **(kwargs or {}))

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        raise AssertionError(f"{func} of a tensor on the accelerator outside of it")


class Accelerator(TorchDispatchMode):
    """Within it, `DEVICE` is a device of its own. ``reads`` has an entry for each time that the CPU waited for it,
    ``sends`` one for each time that it sent values there, for which it waits too unless they lie in pinned memory."""

    def __init__(self) -> None:
        super().__init__()
        self.reads: list[str] = []
        self.sends: list[str] = []
        self._literals = _Literals()

    @property
    def own_reads(self) -> list[str]:
        """Those of ``reads`` that lines of the package asked for."""
        return [read for read in self.reads if not read.startswith("not ours")]

    def __enter__(self) -> Accelerator:
        self._literals.__enter__()
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._literals.__exit__(*error)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        remote = [tensor for tensor in tensors if isinstance(tensor, Remote)]
        wanted = kwargs.get("device")
        if not remote and (wanted is None or torch.device(wanted) != DEVICE):
            return func(*args, **kwargs)
        with self, torch._C.DisableTorchFunction():  # in inference mode operations arrive whole
            if (result := func.decompose(*args, **kwargs)) is not NotImplemented:
                return result
        kind = func.overloadpacket
        if kind not in MIXING and (alone := [t for t in tensors if t.dim() and not isinstance(t, Remote)]):
            shapes = ", ".join(f"{t.dtype} {tuple(t.shape)}" for t in alone)
            raise RuntimeError(f"{func} mixes the accelerator with tensors on the CPU: {shapes}")
        for tensor in tensors:
            assert tensor.dtype != torch.float64 or not tensor.dim(), f"{func}: float64, which MPS does not have"
        to_cpu = kind is aten._to_copy and wanted is not None and torch.device(wanted) != DEVICE
        to_cpu = to_cpu or (kind is aten.copy_ and not isinstance(args[0], Remote))
        if kind in MIXING and not to_cpu and not isinstance(args[1 if kind is aten.copy_ else 0], Remote):
            self.sends.append(_place(func))
        if to_cpu or kind in WAITING or _selects_by_mask(kind, args):
            self.reads.append(_place(func))
        if wanted is not None:
            kwargs["device"] = torch.device("cpu")
        wrappers = {id(tensor.inner): tensor for tensor in remote}
        plain = tree_map(lambda leaf: leaf.inner if isinstance(leaf, Remote) else leaf, (args, kwargs))
        result = func(*plain[0], **plain[1])
        if to_cpu:
            return args[0] if kind is aten.copy_ else result

        return tree_map(lambda leaf: _wrapped(leaf, wrappers), result)


def _wrapped(leaf: Any, wrappers: dict[int, Remote]) -> Any:
    if not isinstance(leaf, Tensor):
        return leaf
    known = wrappers.get(id(leaf))
    return Remote(leaf) if known is None else known


def _selects_by_mask(kind: Any, args: tuple) -> bool:
    if kind not in (aten.index, aten.index_put, aten.index_put_):
        return False
    return any(place is not None and place.dtype in (torch.bool, torch.uint8) for place in args[1])


def _place(func: Any) -> str:
    """The line that asked for ``func``, of the package or of a library other than PyTorch."""
    frames = [frame for frame in traceback.extract_stack() if not frame.filename.startswith(BELOW)]
    path = frames[-1].filename if frames else "PyTorch"
    if path.startswith(SOURCES):
        return f"{path.removeprefix(SOURCES)[1:]}:{frames[-1].lineno} {func.overloadpacket.__name__}"
    return f"not ours: {path}:{frames[-1].lineno} {func.overloadpacket.__name__}"


class _Literals(TorchFunctionMode):
    """`torch.tensor` makes its values on the CPU first, which for the meta device it leaves out."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        if func in (torch.tensor, torch.as_tensor) and kwargs.get("device") is not None:
            device = kwargs.pop("device")
            return func(*args, **kwargs).to(device)
        return func(*args, **kwargs)
