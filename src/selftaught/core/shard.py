"""FSDP2: every process keeps a part of each parameter and gathers a block's weights only while it computes with them.

What a checkpoint holds is the same with and without: `whole_...` gathers, `cut_...` cuts what was read into this process's parts.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from selftaught.core.checkpoint import flatten_optimizer
from selftaught.core.launch import place

SHARDINGS = ("ddp", "fsdp")


def shard(method: nn.Module, device: str) -> None:
    """Divide all parameters over the processes, block by block; `method.loss` and `method.settle` then gather what they compute with.

    Blocks are the children of module lists (transformer blocks, residual stages); what is left belongs to the method as a whole.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

    numbers = _lengthen_numbers(method)
    for p in method.parameters():  # a copied encoder may keep its channels last
        p.data = p.data.contiguous()
    mesh = init_device_mesh(torch.device(device).type, (place()[1],))
    for part in method.modules():
        if isinstance(part, nn.ModuleList):
            for block in part:
                if any(True for _ in block.children()):
                    fully_shard(block, mesh=mesh)
    fully_shard(method, mesh=mesh)
    for name in ("loss", "settle"):
        register_fsdp_forward_method(method, name)
    for name, p in method.named_parameters():
        p.is_number = name in numbers  # type: ignore[attr-defined]


def _lengthen_numbers(method: nn.Module) -> set[str]:
    """Make parameters without dimensions, which torch cannot shard, vectors of one number; return their names."""
    found = {name for name, p in method.named_parameters() if p.ndim == 0}
    for name in found:
        owner, _, leaf = name.rpartition(".")
        p = method.get_parameter(name)
        setattr(method.get_submodule(owner), leaf, nn.Parameter(p.data.view(1), p.requires_grad))
    return found


def is_sharded(x: Any) -> bool:
    """Whether a tensor is only this process's part of one."""
    return hasattr(x, "device_mesh")


def whole(x: Tensor) -> Tensor:
    """The whole of a tensor that may be sharded; all processes must call it."""
    return x.full_tensor() if is_sharded(x) else x  # type: ignore[attr-defined,no-any-return]


def whole_tensors(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Gather what is sharded; all processes must call it."""
    return {name: whole(x) for name, x in tensors.items()}


def whole_state(method: nn.Module) -> dict[str, Tensor]:
    """The state dict with whole tensors, in the shapes that it has in one process; all processes must call it."""
    state = whole_tensors(method.state_dict())
    return {**state, **{name: state[name].view(()) for name, p in method.named_parameters() if _is_number(p)}}


def cut_state(state: Mapping[str, Tensor], method: nn.Module) -> dict[str, Tensor]:
    """Invert `whole_state`: this process's parts, for `load_state_dict`."""
    longer = {name: state[name].view(1) for name, p in method.named_parameters() if _is_number(p) and name in state}
    return _cut({**state, **longer}, method.state_dict())


def whole_optimizer(optimizer: torch.optim.Optimizer) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """`checkpoint.flatten_optimizer` with whole tensors; all processes must call it."""
    tensors, meta = flatten_optimizer(optimizer)
    owners = _owners(tensors, optimizer)
    return {
        name: x.view(()) if _is_number(owners.get(name)) and x.ndim else x for name, x in whole_tensors(tensors).items()
    }, meta


def cut_optimizer(tensors: Mapping[str, Tensor], optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Invert `whole_optimizer`: this process's parts, for `checkpoint.restore_optimizer`."""
    owners = _owners(tensors, optimizer)
    moments = {name for name, p in owners.items() if _is_number(p) and not name.endswith(".step")}
    return _cut({name: x.view(1) if name in moments else x for name, x in tensors.items()}, owners)


def _owners(tensors: Mapping[str, Tensor], optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The parameter that each tensor of an optimiser's state ("3.exp_avg": parameter 3) belongs to."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    numbers = {name: int(name.split(".")[0]) for name in tensors if name.split(".")[0].isdigit()}
    return {name: parameters[i] for name, i in numbers.items() if i < len(parameters)}


def _is_number(p: Any) -> bool:
    """Whether a parameter has no dimensions in one process."""
    return getattr(p, "is_number", False)


def _cut(tensors: dict[str, Tensor], models: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Cut whole tensors as the models of their names are cut; each process keeps its part and sends nothing."""
    from torch.distributed.tensor import distribute_tensor

    for name, model in models.items():
        if is_sharded(model) and name in tensors and tensors[name].shape == model.shape:
            x = tensors[name].to(model.device)
            tensors[name] = distribute_tensor(x, model.device_mesh, model.placements, src_data_rank=None)  # type: ignore[attr-defined]
    return tensors


def own_parts(named: Iterable[tuple[str, nn.Parameter]]) -> list[tuple[str, Tensor]]:
    """Parameters with their gradients, sharded ones as this process's part, so that looking at them sends nothing."""
    parts: list[tuple[str, Tensor]] = []
    for name, p in named:
        if is_sharded(p):
            local = p.detach().to_local()  # type: ignore[attr-defined]
            local.grad = None if p.grad is None else p.grad.to_local()  # type: ignore[attr-defined]
            parts.append((name, local))
        else:
            parts.append((name, p))
    return parts
