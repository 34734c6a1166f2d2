"""Open learned runs: `load(run).embed(pictures)`, `load(run).segment(pictures)`."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from selftaught.core import checkpoint, shard
from selftaught.core.config import from_json, read_json
from selftaught.core.errors import ConfigError, DataError, RunError
from selftaught.core.tune import fast_memory
from selftaught.measure.box_rules import FoundBoxes
from selftaught.measure.box_scores import detect_all, objects_all
from selftaught.measure.mask_scores import segment_all
from selftaught.method import Method
from selftaught.registry import load_class

if TYPE_CHECKING:
    from selftaught.playing import Playable, Told

BUILD_ERRORS = (ValueError, TypeError, RuntimeError, ArithmeticError, AssertionError, LookupError, MemoryError)
"""What building a network from a config that makes no sense may raise."""
OBJECT_PARTS = {"cut": "masks", "move": "masks_move"}
"""Folders of the mask networks in a folder of `selftaught learn`, by what they learned from."""


@dataclass(frozen=True)
class SavedRun:
    """The content of a run's config.json."""

    method: str
    data: str
    size: str
    seed: int
    config: dict[str, Any]
    needs: dict[str, str]
    device: str = "cpu"
    sharding: str = "ddp"
    schema: int = 1
    versions: dict[str, str] = field(default_factory=dict)


def read_run(run: str | os.PathLike[str]) -> SavedRun:
    """Read a run's config.json; raises RunError when it is not there or not as `train` writes it."""
    path = Path(run) / "config.json"
    # Not Path.exists, which raises for names that are too long.
    if not os.path.exists(path):
        raise RunError(f"{run} is no run folder.", expected="a folder with config.json")
    try:
        return from_json(SavedRun, read_json(path))
    except ConfigError as error:
        raise RunError(f"{path} is damaged.", expected=error.expected, why=error.what) from error


def load_method(run: str | os.PathLike[str], inside: tuple[Path, ...] = ()) -> Method:
    """Rebuild a run's method with its needs and its newest good weights, frozen and in evaluation mode.

    `inside` are the runs that need this one, so that a circle is seen.
    """
    run = Path(run)
    if run.resolve() in inside:
        raise RunError(f"{run} needs itself.", why="its config.json was changed")
    saved = read_run(run)
    cls = load_class(saved.method)
    folder = checkpoint.latest(run / "checkpoints")
    if folder is None:
        raise RunError(f"{run} has no checkpoint that can be read.", do=f"selftaught resume {run}")
    config, tensors = from_json(cls.Config, saved.config), checkpoint.load(folder)[0].get("model", {})
    try:
        needs = open_needs(run, saved.needs, inside)
        refuse_misfit(cls, config, needs, tensors, folder)
        method: Method = cls(config, needs)
    except BUILD_ERRORS as error:
        raise RunError(f"{run}/config.json describes no network that can be built.", why=str(error)) from error
    fill(method, tensors, folder)
    return fast_memory(method.eval().requires_grad_(False))


def open_needs(run: Path, needs: Mapping[str, str], inside: tuple[Path, ...] = ()) -> dict[str, Method]:
    """Load what a run needs; paths are relative to the run folder, or absolute."""
    return {name: load_method(Path(run) / path, (*inside, Path(run).resolve())) for name, path in needs.items()}


def move_needs(method: Method, device: str) -> None:
    """Bring what a method was given, and what that was given in turn, to a device: it lies outside of the module tree."""
    for need in method.given.values():
        if isinstance(need, Method):
            need.to(device)
            move_needs(need, device)


def refuse_misfit(
    cls: type[Method], config: Any, needs: Mapping[str, Any], tensors: Mapping[str, Tensor], folder: Path
) -> None:
    """Raise RunError when a config asks for another network than the weights are of, before memory is taken for it."""
    registered, limit = 0, 4 * len(tensors) + 64

    def count(*_: Any) -> None:
        nonlocal registered
        registered += 1
        if registered > limit:
            raise RunError(
                f"The weights in {folder} do not fit its config.", why=f"the config asks for more than {limit} tensors"
            )

    hook = torch.nn.modules.module.register_module_parameter_registration_hook(count)
    try:
        with torch.device("meta"):
            empty = cls(config, needs).state_dict()
    except BUILD_ERRORS:
        return  # it needs real numbers to be built, or cannot be built at all: then the real attempt says why
    finally:
        hook.remove()
    wrong = [f"{k}: {_shape(empty.get(k))}, saved {_shape(tensors.get(k))}" for k in {**empty, **tensors}
             if _shape(empty.get(k)) != _shape(tensors.get(k))]  # fmt: skip
    if wrong:
        more = f"; and {len(wrong) - 5} more" if len(wrong) > 5 else ""
        raise RunError(f"The weights in {folder} do not fit its config.", why="; ".join(wrong[:5]) + more)


def _shape(tensor: Tensor | None) -> str:
    return "none" if tensor is None else "x".join(map(str, tensor.shape)) or "one number"


def fill(method: Method, tensors: Mapping[str, Tensor], folder: Path) -> None:
    """Put saved weights into a method; raises RunError when they do not fit, or are not finite."""
    bad = [k for k, v in tensors.items() if v.is_floating_point() and not bool(torch.isfinite(v).all())]
    if bad:
        raise RunError(
            f"The weights in {folder} are not finite.", why=", ".join(bad[:5]), do="Use another checkpoint of the run."
        )
    try:
        method.load_state_dict(shard.cut_state(tensors, method))
    except RuntimeError as error:
        raise RunError(f"The weights in {folder} do not fit its config.", why=str(error)) from error


class Learned:
    """What a run has learned, behind two calls that take any pictures.

    Pictures may be a list of (H, W, 3) uint8 arrays of any sizes, one (N, H, W, 3) uint8 array, or a (N, 3, H, W) float tensor in [0, 1].
    """

    def __init__(self, run: str | os.PathLike[str]):
        self.run = part_of(Path(os.path.expanduser(run)))
        self.method = load_method(self.run)
        providers = [self.method, *self.method.given.values()]
        self._by_capability: dict[str, Any] = {}
        self._playable: Playable | None = None
        for provider in providers:
            for capability in provider.capabilities:
                self._by_capability.setdefault(capability, provider)

    @property
    def capabilities(self) -> tuple[str, ...]:
        """What can be asked of it: embed, segment, objects, detect, inpaint."""
        return tuple(self._by_capability)

    def provider(self, capability: str) -> Any:
        """The method that offers a capability; raises RunError when none does."""
        if capability not in self._by_capability:
            raise RunError(
                f"{self.run} cannot {capability}: it holds {self.method.name}.",
                expected=f"a run that can {capability}",
                why=f"it can {', '.join(self.capabilities) or 'nothing of the kind'}",
            )
        return self._by_capability[capability]

    @torch.no_grad()
    def embed(self, images: Any, batch_size: int = 64) -> np.ndarray[Any, Any]:
        """(N, D) float32 vectors; pictures are resized to the square that the network was trained on."""
        provider = self.provider("embed")
        pictures: Any = images if isinstance(images, Tensor) else as_pixels(images)
        # A part at a time: as float32 all pictures take four times the memory that they came in.
        batches = [
            provider.embed(torch.stack([to_square(x, provider.image_px) for x in as_pictures(part)])).numpy()
            for part in chunks(pictures, batch_size)
        ]
        return np.concatenate(batches) if batches else np.zeros((0, 0), np.float32)

    @torch.no_grad()
    def segment(self, images: Any, batch_size: int = 64) -> list[np.ndarray[Any, Any]]:
        """Soft object masks in [0, 1], one (H, W) float32 array per picture, at the picture's own size."""
        return segment_all(self.provider("segment"), as_pixels(images), batch_size)

    @torch.no_grad()
    def objects(self, images: Any, batch_size: int = 64) -> list[tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]]:
        """Per picture the soft masks (K, H, W) of its objects and their scores (K,), the best first."""
        return objects_all(self.provider("objects"), as_pixels(images), batch_size)

    @torch.no_grad()
    def detect(self, images: Any, batch_size: int = 64) -> list[FoundBoxes]:
        """Per picture its boxes (K, 4) in pixels of the picture and their scores (K,), the best first."""
        return detect_all(self.provider("detect"), as_pixels(images), batch_size)

    def playable(self) -> Playable:
        """What can be asked of a model that can be controlled, with all its options; raises RunError for other runs."""
        if self._playable is None:
            from selftaught.playing import Playable

            self._playable = Playable(self)
        return self._playable

    def parse(self, clip: Any, **options: Any) -> Told:
        """Which actions a clip is made of (`playing.Playable.parse`)."""
        return self.playable().parse(clip, **options)

    def rollout(self, start: Any, keys: Any = None, **options: Any) -> Told:
        """What comes of some actions, or several futures (`playing.Playable.rollout`)."""
        return self.playable().rollout(start, keys, **options)

    def plan(self, start: Any, goal: Any, **options: Any) -> Told:
        """Actions from a start to a goal (`playing.Playable.plan`)."""
        return self.playable().plan(start, goal, **options)

    def transfer(self, source: Any, target: Any, **options: Any) -> Told:
        """The actions of one clip done by what another picture shows (`playing.Playable.transfer`)."""
        return self.playable().transfer(source, target, **options)

    def whatif(self, clip: Any, keys: Any, **options: Any) -> Told:
        """What other actions would have led to (`playing.Playable.whatif`)."""
        return self.playable().whatif(clip, keys, **options)


def load(run: str | os.PathLike[str]) -> Learned:
    """Open what a run has learned (a training's folder, or that of `selftaught learn`)."""
    return Learned(run)


def part_of(run: Path) -> Path:
    """The training inside a folder of `selftaught learn`: its mask network when there is one, its features otherwise."""
    if (run / "config.json").exists() or not (run / "learn.json").exists():
        return run
    for part in dict.fromkeys((objects_part(run), "masks", "objects", "actions", "features")):
        if checkpoint.latest(run / part / "checkpoints"):
            return run / part
    raise RunError(f"{run} has learned nothing yet.", do="Run the same `selftaught learn` command again; it continues.")


def objects_part(run: Path) -> str:
    """The folder of the mask network that a run of `selftaught learn` keeps: what objects.json says, the cut's where nothing was chosen."""
    path = run / "objects.json"
    if not path.exists():
        return OBJECT_PARTS["cut"]
    chosen = read_json(path).get("chosen")
    if chosen not in tuple(OBJECT_PARTS):
        raise RunError(
            f"{path} is damaged.", expected="what `selftaught learn` writes", do="Delete it and repeat the command: it is written again."
        )
    return OBJECT_PARTS[chosen]


def as_pictures(images: Any) -> list[Tensor]:
    """Turn what a user gives into a list of (3, H, W) float tensors in [0, 1]; raises DataError for anything else."""
    if not isinstance(images, Tensor):
        return [torch.tensor(array.transpose(2, 0, 1), dtype=torch.float32) / 255 for array in as_pixels(images)]
    if images.ndim != 4 or images.shape[1] != 3 or not images.is_floating_point():
        raise DataError(f"Got a {tuple(images.shape)} {images.dtype} tensor.", expected="float (N, 3, H, W) in [0, 1]")
    if not bool(((images >= 0) & (images <= 1)).all()):  # written so that NaN is refused as well
        raise DataError("The tensor holds values outside of [0, 1] or not finite.", expected="float in [0, 1]")
    return list(images)


def as_pixels(images: Any) -> list[np.ndarray[Any, Any]]:
    """The same as (H, W, 3) uint8 arrays."""
    if isinstance(images, Tensor):
        return [(x.permute(1, 2, 0) * 255).round().to(torch.uint8).numpy() for x in as_pictures(images)]
    pictures = [np.asarray(image) for image in images]
    for i, array in enumerate(pictures):
        if array.ndim != 3 or array.shape[2] != 3 or array.dtype != np.uint8 or 0 in array.shape:
            raise DataError(f"Picture {i} is {array.shape} {array.dtype}.", expected="(H, W, 3) uint8")
    return pictures


def to_square(picture: Tensor, px: int) -> Tensor:
    """Resize (3, H, W) to (3, px, px), antialiased; the aspect ratio is given up so that nothing is cut off."""
    if picture.shape[1:] == (px, px):
        return picture
    resize = torch.nn.functional.interpolate
    return resize(picture[None], size=(px, px), mode="bilinear", antialias=True, align_corners=False)[0].clamp(0, 1)


def chunks(items: Sequence[Any], size: int) -> list[Sequence[Any]]:
    """Cut a sequence into parts of at most `size`."""
    return [items[i : i + size] for i in range(0, len(items), size)]
