"""A device that is not there: tensors that say they lie on a GPU, and an error where one meets a tensor that does not.

The machines that test have no GPU, and on a CPU a number that was left behind is never noticed.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

GPU = torch.device("cuda", 0)
FREE = ("__getitem__", "__setitem__", "copy_", "index_put_", "__get__")
"""Functions that take tensors of both kinds: those that copy, and indices that lie on the CPU."""


class OnGpu(Tensor):
    """A tensor that says that it lies on a GPU."""


def on_gpu(x: Any) -> Any:
    """The same numbers, said to be on the GPU; of a module its parameters and buffers, in place."""
    if isinstance(x, nn.Module):
        for part in x.modules():
            for name, p in part._parameters.items():
                if p is not None:
                    part._parameters[name] = nn.Parameter(on_gpu(p.data), p.requires_grad)
            part._buffers.update({name: on_gpu(b) for name, b in part._buffers.items()})
        return x
    if isinstance(x, Tensor):
        return x.as_subclass(OnGpu)
    if isinstance(x, tuple) and hasattr(x, "_fields"):
        return type(x)(*map(on_gpu, x))
    return type(x)(tuple(map(on_gpu, x))) if isinstance(x, (list, tuple)) else x


def tensors_of(x: Any) -> Iterator[Tensor]:
    """All tensors in the arguments of a function."""
    if isinstance(x, Tensor):
        yield x
    elif isinstance(x, (list, tuple, dict)):
        for part in x.values() if isinstance(x, dict) else x:
            yield from tensors_of(part)


class OtherDevice(TorchFunctionMode):
    """Compute on the CPU, as if `OnGpu` were elsewhere; raises RuntimeError as torch does where devices meet."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, name, of = dict(kwargs or {}), getattr(func, "__name__", ""), getattr(func, "__self__", None)
        found = list(tensors_of([args, kwargs]))
        gpu = any(isinstance(x, OnGpu) for x in found)
        if of is Tensor.device or of is Tensor.is_cuda:
            there = isinstance(args[0], OnGpu)
            return there if of is Tensor.is_cuda else GPU if there else torch.device("cpu")
        with torch._C.DisableTorchFunctionSubclass():
            if func is Tensor.to:
                return self.moved(*args, **kwargs)
            if func is Tensor.cpu:
                return args[0].as_subclass(Tensor)
            if str(kwargs.get("device", "")).startswith("cuda"):
                return on_gpu(func(*args, **(kwargs | {"device": "cpu"})))
            mixed = gpu and any(x.dim() > 0 and not isinstance(x, OnGpu) for x in found)
            if (mixed and name not in FREE) or (gpu and name in ("numpy", "__array__")):
                raise RuntimeError(f"{name}: tensors of two devices, or one on a GPU is to become an array")
            out = func(*args, **kwargs)
            return on_gpu(out) if gpu and not (name == "__getitem__" and not isinstance(args[0], OnGpu)) else out

    def moved(self, x: Tensor, *where: Any, **options: Any) -> Tensor:
        """`Tensor.to` of a device, a type, or another tensor."""
        there, rest = isinstance(x, OnGpu), []
        for one in (options.pop("device", None), *where):
            if isinstance(one, Tensor):
                there = isinstance(one, OnGpu)
                rest.append(one.dtype)
            elif isinstance(one, (str, torch.device)):
                there = str(one).startswith("cuda")
            elif one is not None:
                rest.append(one)
        out = x.as_subclass(Tensor)
        out = out.to(*rest, **options) if rest or options else out
        return on_gpu(out) if there else out  # type: ignore[no-any-return]
