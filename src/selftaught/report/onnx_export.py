"""ONNX export of a torch module, accepted only when onnxruntime computes the same numbers."""

from __future__ import annotations

import copy
import importlib
import logging
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from selftaught.core.atomic import replacing
from selftaught.core.errors import RunError

if TYPE_CHECKING:
    import torch

TOLERANCE = 1e-4
_OPSET = 18
_log = logging.getLogger(__name__)


def export_onnx(
    module: torch.nn.Module,
    example: torch.Tensor | Sequence[torch.Tensor],
    path: Path,
    *,
    say: Callable[[str], None] | None = None,
) -> float:
    """Write `module` as ONNX with a free batch axis; return the largest absolute difference to torch.

    `example` is the module's input, or several, each (B, ...) float; the module is copied, set to eval and float32 on
    the CPU. The difference is measured by onnxruntime at the example's batch and at one larger. torch's exporter is
    tried first, then its older TorchScript exporter; `say` is told which was taken. Raises RunError when packages are
    missing, when neither exporter succeeds, or when the difference is above 1e-4; nothing is written then.
    """
    import torch

    for package in ("onnx", "onnxruntime"):
        _need(package)
    tell = say if say is not None else _log.info
    inputs = tuple(tensor.detach().cpu().float() for tensor in _several(example))
    # One picture would let the exporter take the batch for a constant.
    inputs = tuple(torch.cat([tensor, tensor]) if len(tensor) == 1 else tensor for tensor in inputs)
    network = copy.deepcopy(module).cpu().float().eval()
    problems = []
    for name, dynamo in (("torch.export", True), ("TorchScript", False)):
        try:
            with replacing(path) as temp:
                _export(network, inputs, temp, dynamo)
                difference = onnx_difference(network, inputs, temp)
                if not difference <= TOLERANCE:
                    raise ArithmeticError(f"largest difference to torch {difference:.1e}")
        except RunError:
            raise
        # The exporters raise errors of many kinds, their own, torch's and onnxruntime's; each means: try the other one.
        except Exception as error:
            problems.append(f"{name}: {type(error).__name__}: {_first_line(error)}")
            continue
        tell(f"{Path(path).name}: written by the {name} exporter, largest difference to torch {difference:.1e}")
        return difference
    raise RunError(
        "The ONNX export failed.", expected=f"a difference of at most {TOLERANCE:g}", why="; ".join(problems)
    )


def onnx_difference(module: torch.nn.Module, inputs: Sequence[torch.Tensor], path: Path) -> float:
    """Return the largest absolute difference between torch and onnxruntime on the CPU, at batch B and at B + 1."""
    import torch

    runtime = _need("onnxruntime")
    options = runtime.SessionOptions()
    options.log_severity_level = 3
    session = runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    names = [node.name for node in session.get_inputs()]
    worst = 0.0
    for batch in (list(inputs), [torch.cat([tensor, tensor[:1].flip(-1)]) for tensor in inputs]):
        with torch.no_grad():
            expected = _several(module(*batch))
        found = session.run(None, dict(zip(names, (tensor.numpy() for tensor in batch), strict=True)))
        for reference, output in zip(expected, found, strict=True):
            if tuple(reference.shape) != np.shape(output):
                raise ArithmeticError(f"torch gives {tuple(reference.shape)}, ONNX {np.shape(output)}")
            difference = np.abs(reference.numpy().astype(np.float64) - np.asarray(output, dtype=np.float64))
            # NaN must not pass for agreement.
            worst = max(worst, float(np.where(np.isnan(difference), np.inf, difference).max(initial=0.0)))
    return worst


def _export(network: torch.nn.Module, inputs: tuple[torch.Tensor, ...], temp: Path, dynamo: bool) -> None:
    import torch

    names = ["input"] if len(inputs) == 1 else [f"input_{index}" for index in range(len(inputs))]
    with torch.no_grad():
        amount = len(_several(network(*inputs)))
    outputs = ["output"] if amount == 1 else [f"output_{index}" for index in range(amount)]
    with warnings.catch_warnings():
        # The exporters warn about themselves; whether the file is right is measured afterwards.
        warnings.simplefilter("ignore")
        if dynamo:
            batch = torch.export.Dim("batch", min=1)
            torch.onnx.export(
                network,
                inputs,
                str(temp),
                input_names=names,
                output_names=outputs,
                dynamic_shapes=tuple({0: batch} for _ in inputs),
                opset_version=_OPSET,
                dynamo=True,
                external_data=False,
                verbose=False,
            )
        else:
            torch.onnx.export(
                network,
                inputs,
                str(temp),
                input_names=names,
                output_names=outputs,
                dynamic_axes={name: {0: "batch"} for name in [*names, *outputs]},
                opset_version=17,
                dynamo=False,
            )


def _several(value: Any) -> tuple[Any, ...]:
    return tuple(value) if isinstance(value, (tuple, list)) else (value,)


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [""])[0][:200]


def _need(package: str) -> Any:
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise RunError(
            f"ONNX export needs {package}, which is not installed.", do="pip install 'selftaught[export]'"
        ) from error
