"""FSDP2: every process keeps a part of each parameter and gathers a block's weights only while it computes with them.

What a checkpoint holds is the same with and without: `whole` gathers, `cut_like` cuts what was read into this process's parts.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from selftaught.core.errors import ConfigError
from selftaught.core.launch import place

SHARDINGS = ("ddp", "fsdp")


def shard(method: nn.Module, device: str) -> None:
    """Divide all parameters over the processes, block by block; `method.loss` then gathers what it computes with.

    Blocks are the children of module lists (transformer blocks, residual stages); what is left belongs to the method as a whole.
    Raises ConfigError where torch cannot do it.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

    scalars = [name for name, p in method.named_parameters() if p.ndim == 0]
    if scalars:
        raise ConfigError(f"{scalars[0]} is a single number, which cannot be sharded.", do="Use --sharding ddp.")
    for p in method.parameters():  # a copied encoder may keep its channels last
        p.data = p.data.contiguous()
    mesh = init_device_mesh(torch.device(device).type, (place()[1],))
    for part in method.modules():
        if isinstance(part, nn.ModuleList):
            for block in part:
                if any(True for _ in block.children()):
                    fully_shard(block, mesh=mesh)
    fully_shard(method, mesh=mesh)
    register_fsdp_forward_method(method, "loss")


def is_sharded(x: Any) -> bool:
    """Whether a tensor is only this process's part of one."""
    return hasattr(x, "device_mesh")


def whole(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Gather what is sharded; all processes must call it."""
    return {name: x.full_tensor() if is_sharded(x) else x for name, x in tensors.items()}  # type: ignore[attr-defined]


def cut_like(tensors: Mapping[str, Tensor], models: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Cut whole tensors as the models of their names are cut; each process keeps its part and sends nothing."""
    from torch.distributed.tensor import distribute_tensor

    cut = dict(tensors)
    for name, model in models.items():
        if is_sharded(model) and name in cut and cut[name].shape == model.shape:
            x = cut[name].to(model.device)
            cut[name] = distribute_tensor(x, model.device_mesh, model.placements, src_data_rank=None)  # type: ignore[attr-defined]
    return cut


def cut_optimizer(tensors: Mapping[str, Tensor], optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Cut the state of an optimiser ("3.exp_avg": parameter 3) as its parameters are cut."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    owners = {name: parameters[int(name.split(".")[0])] for name in tensors if name.split(".")[0].isdigit()}
    return cut_like(tensors, owners)


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
