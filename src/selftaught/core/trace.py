"""Find where numbers stop being finite: the first operation, the line of code, and the first module."""

from __future__ import annotations

import re
import traceback
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

_TORCH = str(Path(torch.__file__).parent)
_FRAME = re.compile(r'File "(.+)", line (\d+), in (.+)')
_FILLS = ("full", "masked_fill", "fill", "new_full", "scalar_tensor", "_to_copy", "copy", "clone", "detach")
"""Operations that write what they were told to, such as minus infinity behind a mask: infinities are not born there."""
_RESERVES = ("empty", "new_empty")
"""How operations begin that reserve memory and write nothing: what lies there by chance is nobody's number."""


class Trace(TorchDispatchMode):
    """Context manager around a training step of `module` that notes the first NaN, the first infinity, and the first module.

    `lines()` tells them in words. Infinities that an operation was told to write, as masks are, do not count. Forward
    and backward are watched; of the backward pass the line of the forward pass is named that it belongs to.
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.born: dict[str, str] = {}
        self.module = ""
        self._root = module
        self._stack: list[str] = []
        self._hooks: list[Any] = []
        self._anomaly = torch.autograd.set_detect_anomaly(False)

    def __enter__(self) -> Trace:
        for name, part in self._root.named_modules():
            self._hooks.append(part.register_forward_pre_hook(self._enter(name)))
            self._hooks.append(part.register_forward_hook(self._leave(name), always_call=True))
        # Anomaly mode keeps, with each node of the graph, the lines that made it.
        self._anomaly = torch.autograd.set_detect_anomaly(True, check_nan=False)
        self._anomaly.__enter__()
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._anomaly.__exit__()
        for hook in self._hooks:
            hook.remove()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        before = {kind: _any(kind, (args, kwargs)) for kind in _KINDS if kind not in self.born}
        out = func(*args, **kwargs)
        name = func.overloadpacket.__name__
        for kind, had in before.items():
            if had or name.rstrip("_") in _FILLS or name.startswith(_RESERVES) or not _any(kind, out):
                continue
            self.born[kind] = f"{name} {self._where()}"
        return out

    def lines(self) -> list[str]:
        """What was found, a line each; empty when all numbers stayed finite."""
        found = [f"first {kind}: {where}" for kind, where in self.born.items()]
        return found + ([f"first module with an output that is not finite: {self.module}"] if self.module else [])

    def _where(self) -> str:
        node = torch._C._current_autograd_node()
        if node is not None:
            return f"in the backward pass of {_line(_kept(node))}"
        inside = f", inside {self._stack[-1]}" if self._stack and self._stack[-1] else ""
        return f"at {_line(traceback.format_stack())}{inside}"

    def _enter(self, name: str) -> Any:
        def hook(part: nn.Module, args: Any) -> None:
            self._stack.append(name)

        return hook

    def _leave(self, name: str) -> Any:
        def hook(part: nn.Module, args: Any, out: Any) -> None:
            if self._stack:
                self._stack.pop()
            if not self.module and not _finite(out):
                words = ["its input was " + ("finite" if _finite(args) else "not")]
                bad = [key for key, value in part.named_parameters(recurse=False) if not _finite(value)]
                words += [f"its {', '.join(bad)} not finite"] if bad else ["its weights were finite"]
                self.module = f"{name or 'the method itself'} ({type(part).__name__}); {', '.join(words)}"

        return hook


_KINDS = {"NaN": torch.isnan, "infinity": torch.isinf}


def _tensors(value: Any) -> Iterator[Tensor]:
    """All floating tensors inside nested lists, tuples and dictionaries."""
    if isinstance(value, Tensor):
        if value.is_floating_point():
            yield value
    elif isinstance(value, dict):
        yield from _tensors(list(value.values()))
    elif isinstance(value, (list, tuple)):
        for one in value:
            yield from _tensors(one)


def _any(kind: str, value: Any) -> bool:
    return any(bool(_KINDS[kind](x.detach()).any()) for x in _tensors(value))


def _finite(value: Any) -> bool:
    return all(bool(torch.isfinite(x.detach()).all()) for x in _tensors(value))


def _kept(node: Any) -> list[str]:
    """The lines that made a node of the graph."""
    return list(node.metadata.get("traceback_", []))


def _line(frames: Iterable[str]) -> str:
    """The innermost line of code that is neither torch's nor this file's: "simclr.py:73 in nt_xent"."""
    for text in reversed(list(frames)):
        match = _FRAME.search(text)
        if match and not match[1].startswith(_TORCH) and match[1] != __file__:
            return f"{Path(match[1]).name}:{match[2]} in {match[3]}"
    return "an unknown line"
