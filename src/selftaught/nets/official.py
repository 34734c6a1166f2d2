"""Weights that others published for DINO, DINOv2 and MAE, brought into timm's names, shapes and position tables.

    read(file)          .safetensors only; nothing else is ever opened
    match(tensors, net) one name and shape for every tensor of the network: none missing, none left over that is not known by name
    load_weights(...)   both, then a check for numbers that are not finite, then the copy

Understood are the names of timm, of the official files (facebookresearch: dino, dinov2, mae), and of transformers, below any
prefix (`teacher.backbone.`, `model.`, `module.`, ...).
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from selftaught.core.errors import ConfigError, suggest

RANDOM = ("", "random")
"""Values of `weights` that load nothing."""
ANCHORS = ("patch_embed.proj.weight", "embeddings.patch_embeddings.projection.weight")
"""A name that every vision transformer has; what stands before it is the prefix of the network in the file."""
RENAMES = tuple(
    (re.compile(pattern), name)
    for pattern, name in (
        # facebookresearch; in DINOv2's training checkpoints blocks lie in chunks, and the inner number counts through.
        (r"^blocks\.\d+\.(\d+)\.", r"blocks.\1."),
        (r"^register_tokens$", "reg_token"),
        (r"\.mlp\.w12\.", ".mlp.fc1."),
        (r"\.mlp\.w3\.", ".mlp.fc2."),
        (r"\.gamma_([12])$", r".ls\1.gamma"),
        # transformers: ViT (DINO), ViTMAE, Dinov2, Dinov2WithRegisters
        (r"^embeddings\.(cls_token|mask_token)$", r"\1"),
        (r"^embeddings\.register_tokens$", "reg_token"),
        (r"^embeddings\.position_embeddings$", "pos_embed"),
        (r"^embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
        (r"^encoder\.layer\.(\d+)\.", r"blocks.\1."),
        (r"\.attention\.attention\.", ".attn."),
        (r"\.attention\.output\.dense\.", ".attn.proj."),
        (r"\.layernorm_before\.", ".norm1."),
        (r"\.layernorm_after\.", ".norm2."),
        (r"\.intermediate\.dense\.", ".mlp.fc1."),
        (r"\.output\.dense\.", ".mlp.fc2."),
        (r"\.mlp\.weights_in\.", ".mlp.fc1."),
        (r"\.mlp\.weights_out\.", ".mlp.fc2."),
        (r"\.layer_scale([12])\.lambda1$", r".ls\1.gamma"),
        (r"^layernorm\.", "norm."),
    )
)
SPLIT = re.compile(r"(?P<block>.*\.attn\.)(?P<letter>[qkv])(?:uery|ey|alue)?(?:\.|_)(?P<kind>weight|bias)")
"""Queries, keys and values apart: attn.query.weight (transformers), attn.q.weight, attn.q_bias (BEiT and its kin)."""
LEFT_OUT = re.compile(r"mask_token|decoder[._].*|(head|fc|pooler|dino_head|ibot_head|fc_norm)\..*")
"""What a file may hold beside the encoder: mask token, MAE's decoder, heads of training and classification."""
SHOWN = 4
"""Names per kind of problem that an error shows."""


def load_weights(net: nn.Module, weights: str, backbone: str) -> str:
    """Copy published weights into a network and return one sentence about it for the log.

    Args:
        net: a timm model without classifier, already built for the size of the pictures; nothing is changed when this fails.
        weights: path of a .safetensors file, or "timm": timm's own file for `backbone`, from the hub's local cache or the network.
        backbone: name of the network, timm:MODEL, for messages and for "timm".

    Raises ConfigError for a file that is absent, of another format, damaged, or of another network; it says what was expected.
    """
    path = hub_file(backbone) if weights == "timm" else Path(weights).expanduser()
    tensors = read(path)
    state, left = match(tensors, net, path.name, backbone)
    bad = [name for name, t in state.items() if t.is_floating_point() and not bool(torch.isfinite(t).all())]
    if bad:
        raise ConfigError(f"{path.name} holds NaN or infinite weights: {few(bad)}.", do="Fetch or convert the file again.")
    net.load_state_dict(state)
    rest = f"; {len(left)} left out: {few(left)}" if left else ""
    return f"{backbone} starts from {path.name} (sha256 {sha256(path)[:16]}), {len(state)} tensors{rest}"


def read(path: Path) -> dict[str, Tensor]:
    """The tensors of a .safetensors file by name; raises ConfigError for anything else."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not path.is_file():
        near = suggest(path.name, [p.name for p in path.parent.iterdir()]) if path.parent.is_dir() else ""
        raise ConfigError(f"There is no file of weights {path}.{near}", expected="a .safetensors file, or weights=timm")
    if path.suffix.lower() != ".safetensors":
        raise ConfigError(
            f"{path.name} is no .safetensors file.",
            expected="weights as .safetensors",
            why="files of the other kinds can run programs when they are opened",
            do=f"selftaught weights import {path} --out {path.stem}.safetensors converts it once; then give that file.",
        )
    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise ConfigError(
            f"{path.name} cannot be read as safetensors.", why=str(error), do="Fetch or convert the file again."
        ) from error


def match(
    tensors: Mapping[str, Tensor], net: nn.Module, file: str, backbone: str
) -> tuple[dict[str, Tensor], list[str]]:
    """Name, join and resize the tensors of a file as a network has them.

    Works on any device, "meta" included. Returns (a whole state dict for `net`, names in the file that were left out on purpose);
    raises ConfigError when a tensor is missing, has another shape, or is not known.
    """
    wanted = {name: tuple(t.shape) for name, t in net.state_dict().items()}
    prefix = prefix_of(tensors, ANCHORS if ANCHORS[0] in wanted else (next(iter(wanted)),), file)
    inside = {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}
    named = join_qkv({renamed(name): t for name, t in inside.items()})
    if hasattr(net, "pos_embed"):
        fit_positions(named, net)
    unknown = [name for name in named if name not in wanted and not LEFT_OUT.fullmatch(name)]
    left = [n for n in tensors if not n.startswith(prefix)] + [n for n in named if n not in wanted and n not in unknown]
    missing = [name for name in wanted if name not in named]
    shapes = [
        f"{name} is {tuple(named[name].shape)} instead of {shape}"
        for name, shape in wanted.items()
        if name in named and tuple(named[name].shape) != shape
    ]
    if missing or shapes or unknown:
        problems = (("missing", missing), ("of another shape", shapes), ("unknown", unknown))
        fits = fitting(named)
        raise ConfigError(
            f"The weights in {file} do not fit {backbone}.",
            expected=f"{len(wanted)} tensors, e.g. " + ", ".join(f"{n} {s}" for n, s in list(wanted.items())[:2]),
            why="; ".join(f"{len(names)} {problem}: {few(names)}" for problem, names in problems if names),
            do=f"--set backbone=timm:{fits} is what this file was made for." if fits and f"timm:{fits}" != backbone else "",
        )
    return {name: named[name] for name in wanted}, left


def prefix_of(names: Iterable[str], anchors: tuple[str, ...], file: str) -> str:
    """What stands before the network's names in a file; a teacher is taken before a student, an outer network before an inner one."""
    found = {n.removesuffix(a) for n in names for a in anchors if n == a or n.endswith("." + a)}
    if not found:
        raise ConfigError(
            f"{file} holds no network that is known here.",
            expected=f"a name that ends in {anchors[0]}",
            why=f"it holds {few(list(names)) or 'no tensors'}",
        )
    rank = {p: ("teacher" not in p, "student" in p, p.count(".")) for p in found}
    best = [p for p in sorted(found) if rank[p] == min(rank.values())]
    if len(best) > 1:
        raise ConfigError(
            f"{file} holds several networks: {', '.join(best)}.",
            expected="one, or a teacher among them",
            do="Convert the original again with the one that is meant.",
        )
    return best[0]


def renamed(name: str) -> str:
    """timm's name for a tensor."""
    for pattern, replacement in RENAMES:
        name = pattern.sub(replacement, name)
    return name


def join_qkv(named: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Stack queries, keys and values that lie apart into timm's one `qkv` layer; keys without a bias get zeros."""
    joined: dict[str, Tensor] = {}
    parts: dict[str, dict[str, Tensor]] = {}
    for name, tensor in named.items():
        split = SPLIT.fullmatch(name)
        if split:
            parts.setdefault(f"{split['block']}qkv.{split['kind']}", {})[split["letter"]] = tensor
        else:
            joined[name] = tensor
    for name, part in parts.items():
        if name.endswith("bias") and "q" in part:
            part.setdefault("k", torch.zeros_like(part["q"]))
        joined[name] = torch.cat([part[letter] for letter in "qkv" if letter in part])
    return joined


def fit_positions(named: dict[str, Tensor], net: Any) -> None:
    """Bring the table of positions, in place, to the grid of a timm ViT: bicubic with antialiasing, as timm does.

    Where the network adds no position to its class token (registers), the file's entry for it is added to the token once and for all.
    """
    from timm.layers import resample_abs_pos_embed

    table = named.get("pos_embed")
    if table is None or net.pos_embed is None or table.ndim != 3:
        return
    prefix = 0 if net.no_embed_class else net.num_prefix_tokens
    table = table.float()
    if net.no_embed_class and not is_square(table.shape[1]) and "cls_token" in named:
        named["cls_token"] = named["cls_token"].float() + table[:, :1]
        table = table[:, 1:]
    if is_square(table.shape[1] - prefix):
        side = math.isqrt(table.shape[1] - prefix)
        table = resample_abs_pos_embed(table, list(net.patch_embed.grid_size), [side, side], prefix)
    named["pos_embed"] = table


def is_square(count: int) -> bool:
    """Whether so many positions fill a square."""
    return count > 0 and math.isqrt(count) ** 2 == count


def fitting(named: Mapping[str, Tensor]) -> str:
    """The timm model whose published weights have these names and shapes, or ""."""
    import timm

    kernel = named.get("patch_embed.proj.weight")
    if kernel is None or kernel.ndim != 4:
        return ""
    size = {192: "tiny", 384: "small", 768: "base", 1024: "large", 1280: "huge", 1536: "giant"}.get(kernel.shape[0], "")
    stem = f"vit_{size}_patch{kernel.shape[-1]}"
    registers = f"_reg{named['reg_token'].shape[1]}" if "reg_token" in named else ""
    if "blocks.0.ls1.gamma" in named:
        names = [f"{stem}{registers}_dinov2.lvd142m"]
    else:
        names = [f"{stem}_224.dino", f"{stem}_224.mae"]
        if any(name.startswith("decoder") for name in named):
            names.reverse()
    known = timm.list_pretrained()
    return next((name for name in names if name in known), "")


def hub_file(backbone: str) -> Path:
    """timm's own file of weights, from the hub's local cache, or downloaded because `weights=timm` asked for it."""
    import timm
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError

    name = backbone.removeprefix("timm:")
    # Without a tag timm would take its default, which for most models was trained with labels.
    config = timm.get_pretrained_cfg(name) if "." in name and name in timm.list_pretrained() else None
    if config is None or not config.hf_hub_id:
        tags = [f"timm:{n}" for n in timm.list_pretrained(f"{name.partition('.')[0]}.*")]
        raise ConfigError(
            f"timm publishes no weights under {backbone!r}.",
            expected="timm:MODEL.TAG" + (f", one of {', '.join(tags)}" if tags else ""),
            why="the tag says what the weights were trained on; many were trained with labels",
        )
    try:
        return Path(hf_hub_download(config.hf_hub_id, config.hf_hub_filename or "model.safetensors"))
    except (OSError, ValueError, HfHubHTTPError) as error:
        raise ConfigError(
            f"timm's weights of {name} are not in the local cache and could not be downloaded.",
            expected=f"a network connection, or {config.hf_hub_id} in the cache of huggingface_hub",
            why=f"{type(error).__name__}: {str(error).strip().splitlines()[0]}",
            do="--set weights=FILE.safetensors takes a file that you have.",
        ) from error


def sha256(path: Path) -> str:
    """Digest of a file, read in pieces."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def few(names: list[str]) -> str:
    """The first names, and how many more there are."""
    return ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")
