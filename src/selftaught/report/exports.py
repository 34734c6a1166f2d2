"""Exports for other tools: COCO JSON, YOLO labels, PNG masks, embeddings, ONNX.

Every file is written beside its place and renamed into it. Names of pictures come from the data and are not trusted: no
export leaves the folder it was given.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image
from scipy import ndimage

from selftaught.core.atomic import replacing, write_bytes
from selftaught.core.errors import DataError, RunError
from selftaught.report.onnx_export import export_onnx as export_onnx
from selftaught.report.pictures import resize_mask

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class ObjectMask:
    """One object: its mask (H, W) bool at the picture's size and how sure the machine is, in [0, 1]."""

    mask: Array
    score: float


@dataclass(frozen=True)
class PictureObjects:
    """The objects found in one picture."""

    file_name: str
    """Name of the picture, relative, with its suffix if it has one."""
    height: int
    width: int
    objects: Sequence[ObjectMask] = ()


@dataclass(frozen=True)
class PictureBoxes:
    """The boxes found in one picture: `boxes` (K, 4) (x0, y0, x1, y1) in px, `scores` (K,) in [0, 1]."""

    file_name: str
    height: int
    width: int
    boxes: Array
    scores: Array


def objects_of(soft_mask: Array, *, threshold: float = 0.5, min_area_frac: float = 0.001) -> list[ObjectMask]:
    """Split a soft mask (H, W) in [0, 1] into connected objects (8 neighbours), the largest first.

    An object's score is the mean of the soft mask inside it. Objects below `min_area_frac` of the picture are left out.
    """
    soft = np.nan_to_num(np.asarray(soft_mask, dtype=np.float32)).clip(0.0, 1.0)
    labels, amount = ndimage.label(soft >= threshold, structure=np.ones((3, 3)))
    areas = np.bincount(labels.ravel(), minlength=amount + 1)[1:]
    order = np.argsort(-areas, kind="stable")
    kept = [index + 1 for index in order if areas[index] >= max(1.0, min_area_frac * soft.size)]
    return [ObjectMask(labels == index, float(soft[labels == index].mean())) for index in kept]


# --- Run lengths (COCO mask format: T.-Y. Lin et al., Microsoft COCO, 2014) ---


def rle_encode(mask: Array, *, compressed: bool = True) -> dict[str, Any]:
    """Return {"size": [H, W], "counts": str | list[int]} of a mask (H, W): lengths of runs down the columns.

    The first run is of background and may be 0. Equal to pycocotools' `encode` when compressed.
    """
    mask = np.asarray(mask).astype(bool)
    if mask.ndim != 2:
        raise DataError("This is not a mask.", expected="(H, W)", why=f"its shape is {mask.shape}")
    flat = mask.ravel(order="F")
    borders = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    counts = np.diff(np.concatenate([[0], borders, [flat.size]])).tolist()
    if flat.size and flat[0]:
        counts.insert(0, 0)
    return {"size": list(mask.shape), "counts": rle_compress(counts) if compressed else counts}


def rle_decode(rle: dict[str, Any]) -> npt.NDArray[np.uint8]:
    """Return the mask (H, W) of 0 and 1 of compressed or plain run lengths; raises DataError when they do not fit."""
    height, width = (int(side) for side in rle["size"])
    counts = rle["counts"]
    if isinstance(counts, bytes):
        counts = counts.decode("ascii")
    lengths = rle_expand(counts) if isinstance(counts, str) else [int(length) for length in counts]
    if sum(lengths) != height * width or min(lengths, default=0) < 0:
        raise DataError(
            "Run lengths do not fit the size.", expected=f"a sum of {height * width}", why=str(sum(lengths))
        )
    values = np.arange(len(lengths), dtype=np.uint8) % 2
    return np.repeat(values, lengths).reshape((height, width), order="F")


def rle_compress(counts: Sequence[int]) -> str:
    """Pack run lengths into COCO's text: from the fourth on the difference to the last but one, 5 bits a letter."""
    letters: list[str] = []
    for index, count in enumerate(counts):
        rest = count - counts[index - 2] if index > 2 else count
        while True:
            bits = rest & 0x1F
            rest >>= 5
            # The fifth bit of the last letter is the sign.
            more = rest != -1 if bits & 0x10 else rest != 0
            letters.append(chr(48 + (bits | 0x20 if more else bits)))
            if not more:
                break
    return "".join(letters)


def rle_expand(text: str) -> list[int]:
    """Undo `rle_compress`; raises DataError for text that is cut short."""
    counts: list[int] = []
    position = 0
    while position < len(text):
        value, shift, more, bits = 0, 0, True, 0
        while more:
            if position >= len(text):
                raise DataError("Compressed run lengths are cut short.")
            bits = ord(text[position]) - 48
            value |= (bits & 0x1F) << shift
            more = bool(bits & 0x20)
            position += 1
            shift += 5
        if bits & 0x10:
            value -= 1 << shift
        if len(counts) > 2:
            value += counts[-2]
        counts.append(value)
    return counts


def box_of(mask: Array) -> tuple[int, int, int, int]:
    """Return the box (x, y, width, height) in px around a mask (H, W); all zeros for an empty one."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if len(rows) == 0:
        return (0, 0, 0, 0)
    left, top = int(columns[0]), int(rows[0])
    return (left, top, int(columns[-1]) - left + 1, int(rows[-1]) - top + 1)


# --- Files ---


def write_coco(
    path: Path, pictures: Sequence[PictureObjects], *, category: str = "object", compressed: bool = True
) -> Path:
    """Write objects as COCO JSON with run lengths, boxes [x, y, w, h] in px and scores; return `path`.

    Empty masks are left out. Raises DataError when a mask has another size than its picture.
    """
    annotations: list[dict[str, Any]] = []
    for image_id, picture in enumerate(pictures, start=1):
        for found in picture.objects:
            mask = _own_size(found.mask, picture)
            if not mask.any():
                continue
            ids = {"id": len(annotations) + 1, "image_id": image_id, "category_id": 1, "iscrowd": 0}
            annotations.append({**ids, **coco_object(mask, found.score, compressed=compressed)})
    return _write_coco(path, pictures, annotations, category)


def write_coco_boxes(path: Path, pictures: Sequence[PictureBoxes], *, category: str = "object") -> Path:
    """Write boxes as COCO JSON: bbox [x, y, w, h] in px (to a thousandth), area, score, no segmentation; return `path`."""
    annotations: list[dict[str, Any]] = []
    for image_id, picture in enumerate(pictures, start=1):
        for (x0, y0, x1, y1), score in zip(picture.boxes.tolist(), picture.scores.tolist(), strict=True):
            box = [round(float(value), 3) for value in (x0, y0, x1 - x0, y1 - y0)]
            annotations.append({
                "id": len(annotations) + 1, "image_id": image_id, "category_id": 1, "iscrowd": 0, "segmentation": [],
                "area": round(box[2] * box[3], 3), "bbox": box, "score": round(float(score), 6),
            })  # fmt: skip
    return _write_coco(path, pictures, annotations, category)


def _write_coco(
    path: Path, pictures: Sequence[PictureObjects | PictureBoxes], annotations: list[dict[str, Any]], category: str
) -> Path:
    content = {
        "info": {"description": "Objects found by selftaught without labels"},
        "licenses": [],
        "images": [
            {"id": image_id, "file_name": picture.file_name, "height": picture.height, "width": picture.width}
            for image_id, picture in enumerate(pictures, start=1)
        ],
        "annotations": annotations,
        "categories": [{"id": 1, "name": category, "supercategory": ""}],
    }
    write_bytes(Path(path), json.dumps(content, allow_nan=False, separators=(",", ":")).encode("ascii"))
    return Path(path)


def coco_object(mask: Array, score: float, *, compressed: bool = True) -> dict[str, Any]:
    """One object as COCO has it: run lengths, area in px, box [x, y, w, h] in px, and its score."""
    return {
        "segmentation": rle_encode(mask, compressed=compressed),
        "area": int(mask.sum()),
        "bbox": list(box_of(mask)),
        "score": round(float(score), 6),
    }


def write_yolo(folder: Path, pictures: Sequence[PictureObjects], *, category: str = "object") -> Path:
    """Write `folder`/labels/NAME.txt (class, centre x, centre y, width, height in [0, 1]) and classes.txt.

    A picture without objects gets an empty file, which YOLO tools read as background.
    """
    folder = Path(folder)
    targets = target_paths(folder / "labels", [picture.file_name for picture in pictures], ".txt", drop_suffix=True)
    for picture, target in zip(pictures, targets, strict=True):
        lines = []
        for found in picture.objects:
            left, top, width, height = box_of(_own_size(found.mask, picture))
            if width == 0:
                continue
            centre = ((left + width / 2) / picture.width, (top + height / 2) / picture.height)
            figures = (*centre, width / picture.width, height / picture.height)
            lines.append("0 " + " ".join(f"{figure:.6f}" for figure in figures))
        write_bytes(target, "".join(line + "\n" for line in lines).encode("ascii"), durable=False)
    write_bytes(folder / "classes.txt", f"{category}\n".encode())
    return folder


def write_mask(path: Path, soft_mask: Array, size: tuple[int, int] | None = None) -> Path:
    """Write a soft mask (h, w) in [0, 1] as 8-bit grey PNG, stretched to `size` (H, W) when given; return `path`."""
    write_bytes(Path(path), mask_png(soft_mask, size), durable=False)
    return Path(path)


def mask_png(soft_mask: Array, size: tuple[int, int] | None = None) -> bytes:
    """The bytes of that PNG."""
    array = np.asarray(soft_mask)
    soft = resize_mask(array, size if size is not None else (int(array.shape[0]), int(array.shape[1])))
    buffer = io.BytesIO()
    Image.fromarray((soft * 255.0).round().astype(np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def write_embeddings(path: Path, keys: Sequence[str], embedding: Array) -> Path:
    """Write features (N, D) as float32 with their names to .npz or .parquet (`path`, `embedding`); return `path`.

    Raises DataError for another suffix or unequal numbers, RunError naming the extra when pyarrow is missing.
    """
    path = Path(path)
    features = np.ascontiguousarray(embedding, dtype=np.float32)
    if features.ndim != 2 or len(features) != len(keys):
        raise DataError(f"{len(keys)} names and features of shape {features.shape}.", expected="(N, D) for N names")
    if path.suffix.lower() == ".npz":
        with replacing(path) as temp, open(temp, "wb") as file:
            np.savez(file, path=np.asarray(list(keys), dtype=np.str_), embedding=features)
    elif path.suffix.lower() == ".parquet":
        _write_parquet(path, keys, features)
    else:
        raise DataError(f"Cannot write embeddings to {path.name!r}.", expected="a name that ends in .parquet or .npz")
    return path


def read_embeddings(path: Path) -> tuple[list[str], npt.NDArray[np.float32]]:
    """Read what `write_embeddings` wrote, or a folder of such Parquet files: names and features (N, D) float32."""
    path = Path(path)
    if path.suffix.lower() == ".npz":
        with np.load(path, allow_pickle=False) as file:
            return [str(key) for key in file["path"]], np.asarray(file["embedding"], dtype=np.float32)
    parquet = _pyarrow("parquet")
    table = parquet.read_table(path)
    column = table.column("embedding").combine_chunks()
    features = column.flatten().to_numpy(zero_copy_only=False)
    return table.column("path").to_pylist(), features.reshape(len(table), column.type.list_size).astype(np.float32)


def _write_parquet(path: Path, keys: Sequence[str], features: npt.NDArray[np.float32]) -> None:
    parquet, arrow = _pyarrow("parquet"), _pyarrow("lib")
    # A name on disk may hold bytes that are not UTF-8; Parquet cannot, so they become escapes.
    names = arrow.array([key.encode("utf-8", "backslashreplace").decode() for key in keys], type=arrow.string())
    vectors = arrow.FixedSizeListArray.from_arrays(arrow.array(features.ravel()), features.shape[1])
    with replacing(path) as temp:
        parquet.write_table(arrow.table({"path": names, "embedding": vectors}), temp)


def _pyarrow(part: str) -> Any:
    import importlib

    try:
        return importlib.import_module(f"pyarrow.{part}")
    except ImportError as error:
        raise RunError(
            "Parquet files need pyarrow, which is not installed.",
            do="pip install 'selftaught[export]', or choose a name that ends in .npz",
        ) from error


def target_paths(folder: Path, names: Sequence[str], suffix: str, *, drop_suffix: bool = False) -> list[Path]:
    """Return one path inside `folder` for each name, all different, also where upper and lower case are one.

    Folders in a name are kept; "..", roots and letters that file systems refuse are replaced. With `drop_suffix` the
    name's own suffix is replaced by `suffix`, otherwise `suffix` is appended.
    """
    taken: set[str] = set()
    targets: list[Path] = []
    for name in names:
        posix = PurePosixPath(name.replace("\\", "/"))
        parts = [_safe(part) for part in posix.parts if part not in ("/", ".")] or ["_"]
        stem = parts[-1]
        if drop_suffix and PurePosixPath(stem).suffix:
            stem = PurePosixPath(stem).stem
        relative = "/".join([*parts[:-1], stem])
        unique, number = relative, 1
        while unique.casefold() in taken:
            number += 1
            unique = f"{relative}-{number}"
        taken.add(unique.casefold())
        targets.append(Path(folder) / (unique + suffix))
    return targets


def _safe(part: str) -> str:
    clean = "".join(char if char.isprintable() and char not in '<>:"|?*' else "_" for char in part)
    clean = "_" * len(clean) if not clean.strip(".") else clean
    if len(os.fsencode(clean)) > 200:
        clean = clean[:40] + "-" + hashlib.sha256(os.fsencode(clean)).hexdigest()[:16]
    return clean


def _own_size(mask: Array, picture: PictureObjects) -> npt.NDArray[np.bool_]:
    array = np.asarray(mask).astype(bool)
    if array.shape != (picture.height, picture.width):
        raise DataError(
            f"A mask of {picture.file_name!r} has the wrong size.",
            expected=f"{(picture.height, picture.width)}",
            why=f"it is {array.shape}",
        )
    return array
