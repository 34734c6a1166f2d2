"""Use what was learned on any pictures: embeddings, masks and boxes, and exports for other programs."""

from __future__ import annotations

import importlib.util
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, overload

import numpy as np
import numpy.typing as npt
import torch

from selftaught.core.config import read_json
from selftaught.core.errors import EXIT_DATA, ConfigError, DataError, RunError
from selftaught.data.readers import BadFile, decode
from selftaught.data.sources import Source, open_data
from selftaught.measure.box_rules import RULES, BoxRule, FoundBoxes, boxes_of
from selftaught.report import exports
from selftaught.run_folder import refuse_within

FORMATS = ("coco", "masks", "npz", "onnx", "parquet", "yolo")
BATCH = 32
BATCH_PX = 32_000_000
"""A batch ends early when its pictures have this many pixels together, so that large photographs fit into memory."""
LINE_EVERY_S = 10.0


class Learned(Protocol):
    """What `selftaught.load(run)` returns."""

    @property
    def capabilities(self) -> tuple[str, ...]:
        """What can be asked of it: embed, segment, objects, detect, inpaint."""
        ...

    def embed(self, images: Sequence[Any]) -> npt.NDArray[np.float32]:
        """N pictures (H, W, 3) uint8 to (N, D)."""
        ...

    def segment(self, images: Sequence[Any]) -> list[npt.NDArray[np.float32]]:
        """N pictures (H, W, 3) uint8 to N soft masks (H, W) in [0, 1]."""
        ...

    def objects(self, images: Sequence[Any]) -> list[tuple[npt.NDArray[Any], npt.NDArray[Any]]]:
        """N pictures (H, W, 3) uint8 to N soft masks (K, H, W) of their objects with scores (K,)."""
        ...

    def detect(self, images: Sequence[Any]) -> list[FoundBoxes]:
        """N pictures (H, W, 3) uint8 to their boxes in pixels with scores."""
        ...

    def provider(self, capability: str) -> Any:
        """The method that offers a capability."""
        ...


class Network(torch.nn.Module):
    """One capability of a method as a network: (B, 3, S, S) in [0, 1] to what the capability gives."""

    def __init__(self, method: torch.nn.Module, capability: str) -> None:
        super().__init__()
        self.method = method
        self.capability = capability

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        # A method may do more than its network, e.g. solve for the edges; what can be exported then has a name of its own.
        call = getattr(self.method, f"{self.capability}_network", None) or getattr(self.method, self.capability)
        answer: torch.Tensor = call(images)
        return answer


class PackedObjects(Sequence[exports.ObjectMask]):
    """The objects of one picture as run lengths: thousands of full-size masks would not fit into memory."""

    def __init__(self, objects: Sequence[exports.ObjectMask]) -> None:
        self._packed = [(exports.rle_encode(found.mask), found.score) for found in objects]

    def __len__(self) -> int:
        return len(self._packed)

    @overload
    def __getitem__(self, index: int) -> exports.ObjectMask: ...
    @overload
    def __getitem__(self, index: slice) -> list[exports.ObjectMask]: ...
    def __getitem__(self, index: int | slice) -> exports.ObjectMask | list[exports.ObjectMask]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        rle, score = self._packed[index]
        return exports.ObjectMask(exports.rle_decode(rle).astype(bool), score)


@dataclass
class Walk:
    """The pictures of a source in batches, with progress on stderr; broken ones are skipped, counted and named."""

    source: Source
    label: str
    batch: int = BATCH
    quiet: bool = False
    bad: list[tuple[str, str]] = field(default_factory=list)
    names: dict[int, str] = field(default_factory=dict)
    """Name of each good picture by its number: its key with the suffix of its file, if it is one."""

    def __iter__(self) -> Iterator[tuple[list[int], list[npt.NDArray[np.uint8]]]]:
        """Yield numbers and pictures (H, W, 3); raises DataError (exit code 3) when none can be read."""
        yield from self.batches()
        self._close()

    def batches(self) -> Iterator[tuple[list[int], list[npt.NDArray[np.uint8]]]]:
        """The same without a word about broken ones, for a part of the data in which all may be broken."""
        numbers: list[int] = []
        images: list[npt.NDArray[np.uint8]] = []
        for i in self._counted():
            image = self._read(i)
            if image is None:
                continue
            numbers.append(i)
            images.append(image)
            if len(images) >= self.batch or sum(image.shape[0] * image.shape[1] for image in images) >= BATCH_PX:
                yield numbers, images
                numbers, images = [], []
        if images:
            yield numbers, images

    def _read(self, i: int) -> npt.NDArray[np.uint8] | None:
        key = self.source.keys[i]
        try:
            raw = self.source.raw(i)
            image = self.source.image(i) if raw is None else decode(raw)
        except BadFile as error:
            self.bad.append((key, str(error)))
            return None
        suffix = raw.suffix if isinstance(raw, Path) else ""
        self.names[i] = key if key.endswith(suffix) else key + suffix
        return image

    def _counted(self) -> Iterator[int]:
        total = len(self.source)
        if self.quiet:
            yield from range(total)
        elif sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import track

            yield from track(range(total), self.label, console=Console(stderr=True), transient=True)
        else:
            shown = time.monotonic()
            for i in range(total):
                yield i
                if time.monotonic() - shown >= LINE_EVERY_S:
                    shown = time.monotonic()
                    print(f"{self.label}: {i + 1} of {total}", file=sys.stderr)

    def _close(self) -> None:
        if not self.names:
            raise none_readable(len(self.source), self.bad)
        if self.bad and not self.quiet:
            print_skipped(len(self.bad), len(self.source), self.bad)


def none_readable(total: int, bad: Sequence[tuple[str, str]]) -> DataError:
    """The error for data of which no picture can be read."""
    why = "; ".join(f"{key}: {reason}" for key, reason in bad[:3])
    do = "`selftaught data check DATA` says more."
    return DataError(f"None of the {total} pictures can be read.", why=why, do=do, exit_code=EXIT_DATA)


def print_skipped(count: int, total: int, bad: Sequence[tuple[str, str]]) -> None:
    """Say on stderr how many pictures were left out, and name the first ten."""
    print(f"skipped {count} of {total} pictures that cannot be read:", file=sys.stderr)
    for key, reason in bad[:10]:
        print(f"  {key}: {reason}", file=sys.stderr)


def embed(run: str | Path, data: Any, out: str | Path, *, batch: int = BATCH, quiet: bool = False) -> Path:
    """Write one feature vector per picture to `out` (.npz or .parquet, keys path and embedding); return the path."""
    target = _embedding_path(out)
    learned = load_capable(run, "embed")
    walk = Walk(open_data(data), "embedding", batch, quiet)
    vectors = [learned.embed(images) for _, images in walk]
    return exports.write_embeddings(target, list(walk.names.values()), np.concatenate(vectors))


def segment(
    run: str | Path,
    data: Any,
    out: str | Path,
    *,
    threshold: float = 0.5,
    min_area: float = 0.001,
    boxes: BoxRule | None = None,
    batch: int = BATCH,
    quiet: bool = False,
) -> Path:
    """Write `out`/masks/KEY.png (8-bit soft masks at the picture's size) and `out`/objects.coco.json; return `out`.

    An object is a connected part where the mask is at least `threshold`, in [0, 1], and which covers at least
    `min_area`, a share of the picture; a method that tells objects apart gives each its own mask and score.
    With `boxes`, a rule of `measure.box_rules`, also `out`/boxes.coco.json; a detector gives its own boxes there: all of
    them under `all`, else the one with the highest score.
    """
    check_fractions(threshold=threshold, min_area=min_area)
    if boxes is not None and boxes not in RULES:
        raise ConfigError(f"There is no rule '{boxes}' for boxes.", expected=", ".join(RULES))
    folder = Path(out).expanduser()
    refuse_within(folder, data)
    learned = load_capable(run, "segment")
    walk = Walk(open_data(data), "segmenting", batch, quiet)
    found: list[exports.PictureBoxes] = []

    def boxed(images: Sequence[Any], masks: Sequence[Any], names: Sequence[str]) -> None:
        if boxes is not None:
            rows = picture_boxes(learned, images, masks, boxes, threshold, min_area)
            for name, image, row in zip(names, images, rows, strict=True):
                found.append(exports.PictureBoxes(name, image.shape[0], image.shape[1], row.boxes, row.scores))

    pictures = _segmented(learned, walk, folder / "masks", threshold, min_area, boxed=boxed)
    exports.write_coco(folder / "objects.coco.json", pictures)
    if boxes is not None:
        exports.write_coco_boxes(folder / "boxes.coco.json", found)
    return folder


def picture_boxes(
    learned: Learned, images: Sequence[Any], masks: Sequence[Any], rule: BoxRule, threshold: float, min_area: float
) -> list[FoundBoxes]:
    """Boxes of each of N pictures: the detector's own where there is one, else those of the soft masks by a rule."""
    if "detect" not in learned.capabilities:
        return [boxes_of(soft, rule, threshold, min_area) for soft in masks]
    found = learned.detect(images)
    return found if rule == "all" else [FoundBoxes(one.boxes[:1], one.scores[:1]) for one in found]


def objects_in(
    learned: Learned, images: Sequence[Any], masks: Sequence[Any], threshold: float, min_area: float
) -> list[list[exports.ObjectMask]]:
    """The objects of each of N pictures: those that the method tells apart, else the connected parts of its soft mask."""
    # A run may need another one that tells objects apart; its masks are not those of this run.
    if "objects" not in learned.capabilities or learned.provider("objects") is not learned.provider("segment"):
        return [exports.objects_of(soft, threshold=threshold, min_area_frac=min_area) for soft in masks]
    found = []
    for image, (soft, scores) in zip(images, learned.objects(images), strict=True):
        cut = soft >= threshold
        large = cut.sum((1, 2)) >= max(1.0, min_area * image.shape[0] * image.shape[1])
        found.append([exports.ObjectMask(m, float(s)) for m, s in zip(cut[large], scores[large], strict=True)])
    return found


def export(
    run: str | Path,
    formats: Sequence[str] = (),
    out: str | Path | None = None,
    *,
    data: Any = None,
    batch: int = BATCH,
    quiet: bool = False,
) -> list[Path]:
    """Write what was learned, and what it says of `data` (default: the run's own), for other programs.

    Without `formats` everything that the run is capable of is written; a format that was asked for and is not possible
    raises RunError. Files go to `out`, or RUN/export; their paths are returned.
    """
    wrong = [name for name in formats if name not in FORMATS]
    if wrong:
        raise ConfigError(f"There is no format '{wrong[0]}'.", expected="some of " + ", ".join(FORMATS))
    learned = load_capable(run)
    possible = _possible(learned)
    for name in formats:
        if name not in possible:
            raise RunError(f"This run cannot write '{name}'.", expected="one of " + ", ".join(possible))
    wanted = set(formats or possible)
    folder = Path(run).expanduser() / "export" if out is None else Path(out).expanduser()
    if wanted - {"onnx"}:
        data = _run_data(run) if data is None else data
        if out is not None:
            refuse_within(folder, data)
    written = _export_networks(learned, folder) if "onnx" in wanted else []
    if wanted - {"onnx"}:
        walk = Walk(open_data(data), "exporting", batch, quiet)
        written += _export_pictures(learned, walk, folder, wanted)
    return written


def networks(learned: Learned) -> dict[str, tuple[Network, torch.Tensor]]:
    """The networks by name, learned or published, each with an example input; a cut has no weights and is none."""
    found = {}
    for name, capability in (("features", "embed"), ("masks", "segment")):
        if capability in learned.capabilities:
            method = learned.provider(capability)
            if next(method.parameters(), None) is not None:
                found[name] = (Network(method, capability), torch.rand(1, 3, method.image_px, method.image_px))
    return found


def _export_networks(learned: Learned, folder: Path) -> list[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for name, (network, example) in networks(learned).items():
        path = folder / f"{name}.onnx"
        exports.export_onnx(network, example, path)
        written.append(path)
    return written


def _export_pictures(learned: Learned, walk: Walk, folder: Path, wanted: set[str]) -> list[Path]:
    """Everything that is written per picture, in one pass over the data."""
    written: list[Path] = []
    vectors: list[npt.NDArray[np.float32]] | None = [] if wanted & {"npz", "parquet"} else None
    if wanted & {"coco", "masks", "yolo"}:
        masks = folder / "masks" if "masks" in wanted else None
        pictures = _segmented(learned, walk, masks, 0.5, 0.001, vectors)
        if masks is not None:
            written.append(masks)
        if "coco" in wanted:
            written.append(exports.write_coco(folder / "objects.coco.json", pictures))
        if "yolo" in wanted:
            written.append(exports.write_yolo(folder / "yolo", pictures))
    elif vectors is not None:
        vectors.extend(learned.embed(images) for _, images in walk)
    if vectors:
        names, features = list(walk.names.values()), np.concatenate(vectors)
        for name in sorted(wanted & {"npz", "parquet"}):
            written.append(exports.write_embeddings(folder / f"embeddings.{name}", names, features))
    return written


def _segmented(
    learned: Learned,
    walk: Walk,
    masks: Path | None,
    threshold: float,
    min_area: float,
    vectors: list[npt.NDArray[np.float32]] | None = None,
    boxed: Callable[[Sequence[Any], Sequence[Any], Sequence[str]], None] | None = None,
) -> list[exports.PictureObjects]:
    """Objects of every picture; soft masks go to the folder `masks`, embeddings to `vectors`, and pictures, masks and
    names of each batch to `boxed`, where given."""
    targets = exports.target_paths(masks, walk.source.keys, ".png") if masks is not None else None
    pictures = []
    for numbers, images in walk:
        if vectors is not None:
            vectors.append(learned.embed(images))
        soft_masks = learned.segment(images)
        if boxed is not None:
            boxed(images, soft_masks, [walk.names[i] for i in numbers])
        objects = objects_in(learned, images, soft_masks, threshold, min_area)
        for i, image, soft, found in zip(numbers, images, soft_masks, objects, strict=True):
            height, width = image.shape[:2]
            if targets is not None:
                exports.write_mask(targets[i], soft, (height, width))
            pictures.append(exports.PictureObjects(walk.names[i], height, width, PackedObjects(found)))
    return pictures


def check_fractions(**values: float) -> None:
    """Raise ConfigError for a value outside of [0, 1]."""
    for name, value in values.items():
        if not 0 <= value <= 1:
            raise ConfigError(f"{name} is {value}.", expected="a number from 0 to 1")


def load_capable(run: str | Path, capability: str = "") -> Learned:
    """Open a run; raises RunError when it has not learned the capability."""
    from selftaught.loading import load

    learned: Learned = load(run)
    if capability and capability not in learned.capabilities:
        has = ", ".join(learned.capabilities) or "nothing of the kind"
        raise RunError(
            f"The run '{run}' has not learned to {capability}.",
            why=f"it can {has}",
            do="learn with `selftaught learn`, or train a method that can.",
        )
    return learned


def _possible(learned: Learned) -> list[str]:
    """The formats that a run can write on this machine."""
    possible = []
    if "segment" in learned.capabilities:
        possible += ["coco", "masks", "yolo"]
    if "embed" in learned.capabilities:
        possible += ["npz"] + (["parquet"] if _installed("pyarrow") else [])
    if networks(learned) and all(_installed(name) for name in ("onnx", "onnxruntime", "onnxscript")):
        possible.append("onnx")
    return possible


def _installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


def _embedding_path(out: str | Path) -> Path:
    """The file to write, looked at before the work and not after it."""
    path = Path(out).expanduser()
    if path.suffix.lower() not in (".npz", ".parquet"):
        raise ConfigError(f"'{out}' has no known suffix.", expected="FILE.npz or FILE.parquet")
    if path.suffix.lower() == ".parquet" and not _installed("pyarrow"):
        raise ConfigError(
            "Parquet files need pyarrow, which is not installed.",
            do='pip install "selftaught[export]", or choose a name that ends in .npz',
        )
    return path


def _run_data(run: str | Path) -> str:
    """The data that a run learned from, as its config says; a run of `learn` has a learn.json instead."""
    folder = Path(run).expanduser()
    config = folder / "config.json"
    data = read_json(config if config.exists() else folder / "learn.json").get("data")
    if not isinstance(data, str) or data.startswith("<"):
        raise RunError(
            f"The run '{run}' did not learn from files.", do="Give the pictures: selftaught export RUN DATA"
        )
    return data
