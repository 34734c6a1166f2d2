"""The field's data sets in the folders in which they are officially published: saliency masks, and boxes.

    ecssd      images/*.jpg, ground_truth_mask/*.png                                                        1,000
    duts-te    DUTS-TE-Image/*.jpg, DUTS-TE-Mask/*.png                                                      5,019
    dut-omron  DUT-OMRON-image/*.jpg, pixelwiseGT-new-PNG/*.png                                             5,168
    voc07/12   VOCdevkit/VOC2007/: JPEGImages, Annotations/*.xml, ImageSets/Main/trainval.txt       5,011 / 11,540
    coco20k    train2014/*.jpg, annotations/instances_train2014.json, coco_20k_filenames.txt of LOST       19,817

`root` may be that folder or one above it, as the archives unpack. Truth is given as it is written in the files, without any
convention: those are in `measure/field_protocol.py`. Nothing here is ever read by a training.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple
from xml.etree import ElementTree

import numpy as np

from selftaught.core.errors import ConfigError, DataError, suggest
from selftaught.data.readers import BadFile, decode, decode_mask, read_header

MAX_XML_BYTES = 2**20
MAX_COCO_BYTES = 4 * 2**30
MAX_LIST_BYTES = 64 * 2**20
NAMED = 3


class FieldSpec(NamedTuple):
    """What a data set is called, what its truth is, how many pictures it has, and what must lie where."""

    title: str
    kind: Literal["masks", "boxes"]
    pictures: int
    above: tuple[str, ...]
    """Folders below `root` in which the set may lie, the first that fits is taken."""
    needed: tuple[str, ...]
    """What lies there; alternatives are parted by "|"."""


_VOC = ("JPEGImages", "Annotations", "ImageSets/Main/trainval.txt")
FIELD_SETS = {
    "ecssd": FieldSpec("ECSSD", "masks", 1000, ("", "ECSSD"), ("images", "ground_truth_mask")),
    "duts-te": FieldSpec(
        "DUTS-TE", "masks", 5019, ("", "DUTS-TE", "DUTS/DUTS-TE", "DUTS"), ("DUTS-TE-Image", "DUTS-TE-Mask")
    ),
    "dut-omron": FieldSpec(
        "DUT-OMRON", "masks", 5168, ("", "DUT-OMRON", "DUT_OMRON", "DUTS-OMRON"),
        ("DUT-OMRON-image/DUT-OMRON-image|DUT-OMRON-image", "pixelwiseGT-new-PNG|DUT-OMRON-gt-pixelwise.zip/pixelwiseGT-new-PNG"),
    ),
    "voc07": FieldSpec(
        "VOC 2007 trainval", "boxes", 5011, ("", "VOC2007", "VOCdevkit/VOC2007", "VOC2007/VOCdevkit/VOC2007"), _VOC
    ),
    "voc12": FieldSpec(
        "VOC 2012 trainval", "boxes", 11_540, ("", "VOC2012", "VOCdevkit/VOC2012", "VOC2012/VOCdevkit/VOC2012"), _VOC
    ),
    "coco20k": FieldSpec(
        "COCO20K", "boxes", 19_817, ("", "COCO", "coco"),
        ("train2014|images/train2014", "annotations/instances_train2014.json|instances_train2014.json",
         "coco_20k_filenames.txt|annotations/coco_20k_filenames.txt"),
    ),
}  # fmt: skip


class WrittenBox(NamedTuple):
    """One object as the file has it: four numbers, and whether it is hard (difficult or truncated) or a crowd."""

    numbers: tuple[float, float, float, float]
    """VOC: xmin, ymin, xmax, ymax, counted from 1, ends included. COCO: x, y, width, height."""
    hard: bool = False
    crowd: bool = False


@dataclass
class FieldSet:
    """An opened data set: `keys` name the pictures; `masks` or `boxes` has one entry for each."""

    name: str
    spec: FieldSpec
    keys: list[str]
    paths: list[Path]
    masks: list[Path] = field(default_factory=list)
    boxes: list[list[WrittenBox]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.keys)

    def image(self, i: int) -> np.ndarray:
        """Picture `i` as uint8 (H, W, 3); raises DataError naming the file when it cannot be read."""
        return self._read(self.paths[i], decode)

    def grey(self, i: int) -> np.ndarray:
        """The mask of picture `i` as its grey values, uint8 (H, W); 255 is object, edges may be between."""
        path = self.masks[i]
        values = self._read(path, decode_mask)
        return values * np.uint8(255) if self._read(path, read_header).mode == "1" else values

    def first(self, count: int) -> FieldSet:
        """The first `count` pictures."""
        return FieldSet(
            self.name, self.spec, self.keys[:count], self.paths[:count], self.masks[:count], self.boxes[:count],
            [*self.notes, f"only the first {count} of {len(self)} pictures: not a number of the tables"],
        )  # fmt: skip

    def _read(self, path: Path, how: Any) -> Any:
        try:
            return how(path)
        except BadFile as error:
            raise DataError(f"{path} of {self.spec.title} cannot be read.", why=error.reason) from error


def open_field_set(name: str, root: str | os.PathLike[str]) -> FieldSet:
    """Open one of `FIELD_SETS` below `root`; raises ConfigError for another name, DataError for another layout."""
    if name not in FIELD_SETS:
        raise ConfigError(f"There is no data set '{name}'.{suggest(name, FIELD_SETS)}", expected=", ".join(FIELD_SETS))
    spec = FIELD_SETS[name]
    places = _places(spec, Path(root).expanduser())
    if spec.kind == "masks":
        opened = _open_masks(name, spec, *places)
    else:
        opened = (_open_coco if name == "coco20k" else _open_voc)(name, spec, *places)
    if len(opened) != spec.pictures:
        opened.notes.append(f"{len(opened)} pictures; {spec.title} has {spec.pictures:,}: the scores are not those of the tables")
    return opened


def _places(spec: FieldSpec, root: Path) -> list[Path]:
    """Where the parts of a data set lie; raises DataError saying what is missing and what is there."""
    if not root.is_dir():
        raise DataError(f"There is no folder {root}.", expected=f"the folder of {spec.title}: {_layout(spec)}")
    best: list[Path | None] = []
    for above in spec.above:
        found = [
            next((root / above / one for one in part.split("|") if (root / above / one).exists()), None)
            for part in spec.needed
        ]
        if all(found):
            return [place for place in found if place is not None]
        if sum(p is not None for p in found) > sum(p is not None for p in best) or not best:
            best = found
    missing = [part.split("|")[0] for part, place in zip(spec.needed, best, strict=True) if place is None]
    there = sorted(entry.name for entry in root.iterdir())
    raise DataError(
        f"{root} is not laid out as {spec.title}: {', '.join(missing)} is missing.",
        expected=_layout(spec),
        why=f"found {', '.join(there[:10]) or 'nothing'}" + (f" and {len(there) - 10} more" if len(there) > 10 else ""),
        do="Give the folder into which the official archives were unpacked.",
    )


def _layout(spec: FieldSpec) -> str:
    parts = ", ".join(part.replace("|", " or ") for part in spec.needed)
    return f"{parts}; there, or in {', '.join(above for above in spec.above if above)}"


def _open_masks(name: str, spec: FieldSpec, images: Path, truths: Path) -> FieldSet:
    pictures = {p.stem: p for p in sorted(images.iterdir()) if p.suffix.lower() in (".jpg", ".jpeg", ".png")}
    masks = {p.stem: p for p in sorted(truths.iterdir()) if p.suffix.lower() in (".png", ".bmp")}
    keys = [key for key in pictures if key in masks]
    if not keys:
        raise DataError(
            f"No picture of {images} has a mask in {truths}.", expected=f"{spec.title}: NAME.jpg and NAME.png",
            why=f"{len(pictures)} pictures, e.g. {next(iter(pictures), 'none')}; {len(masks)} masks, e.g. {next(iter(masks), 'none')}",
        )  # fmt: skip
    alone = [key for key in pictures if key not in masks] + [key for key in masks if key not in pictures]
    notes = [f"{len(alone)} pictures or masks have no partner and are left out, e.g. {', '.join(alone[:NAMED])}"] if alone else []
    return FieldSet(name, spec, keys, [pictures[k] for k in keys], [masks[k] for k in keys], notes=notes)


def _open_voc(name: str, spec: FieldSpec, images: Path, annotations: Path, listed: Path) -> FieldSet:
    keys = [line.split()[0] for line in _lines(listed)]
    _refuse_missing(spec, [annotations / f"{key}.xml" for key in keys] + [images / f"{key}.jpg" for key in keys])
    boxes = [_voc_objects(annotations / f"{key}.xml") for key in keys]
    return FieldSet(name, spec, keys, [images / f"{key}.jpg" for key in keys], boxes=boxes)


def _voc_objects(path: Path) -> list[WrittenBox]:
    """The objects of one annotation, parts of persons left out; raises DataError for a file of another form."""
    text = path.read_bytes()[: MAX_XML_BYTES + 1]
    if len(text) > MAX_XML_BYTES or b"<!DOCTYPE" in text or b"<!ENTITY" in text:
        raise DataError(f"{path} is no annotation of VOC.", expected="a small XML file without declarations")
    try:
        found = []
        for one in ElementTree.fromstring(text).iterfind("object"):
            box = one.find("bndbox")
            if box is None:
                raise ValueError("an object without bndbox")
            # VOC 2012 writes some corners as decimal fractions.
            numbers = tuple(float(box.findtext(side, "missing")) for side in ("xmin", "ymin", "xmax", "ymax"))
            hard = any(one.findtext(word, "0").strip() == "1" for word in ("difficult", "truncated"))
            found.append(WrittenBox(numbers, hard))  # type: ignore[arg-type]
    except (ElementTree.ParseError, ValueError) as error:
        raise DataError(
            f"{path} is no annotation of VOC.", expected="annotation/object/bndbox with xmin, ymin, xmax, ymax", why=str(error)
        ) from error
    return found


def _open_coco(name: str, spec: FieldSpec, images: Path, annotations: Path, listed: Path) -> FieldSet:
    names = [line.split("/")[-1] for line in _lines(listed)]
    numbers = []
    for file in names:
        found = re.fullmatch(r".*?(\d+)\.jpe?g", file)
        if found is None:
            raise DataError(f"{listed} lists '{file}'.", expected="train2014/COCO_train2014_000000000009.jpg and so on")
        numbers.append(int(found[1]))
    wanted = {number: [] for number in numbers}  # type: dict[int, list[WrittenBox]]
    try:
        if annotations.stat().st_size > MAX_COCO_BYTES:
            raise ValueError(f"more than {MAX_COCO_BYTES / 2**30:.0f} GB")
        with open(annotations, encoding="utf-8") as file_:
            content = json.load(file_)
        for one in content["annotations"]:
            if one["image_id"] in wanted:
                x, y, w, h = (float(value) for value in one["bbox"])
                wanted[one["image_id"]].append(WrittenBox((x, y, w, h), crowd=bool(one.get("iscrowd", 0))))
        known = {one["id"] for one in content["images"]}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{annotations} is no file of COCO's instances.", expected="images with id, annotations with image_id, bbox, iscrowd",
            why=f"{type(error).__name__}: {error}",
        ) from error  # fmt: skip
    strangers = [str(number) for number in numbers if number not in known]
    if strangers:
        raise DataError(
            f"{annotations} does not have {len(strangers)} of the listed pictures, e.g. {', '.join(strangers[:NAMED])}.",
            expected="instances_train2014.json: the list is of train2014, not of train2017 or val2014",
        )
    paths = [images / file for file in names]
    _refuse_missing(spec, paths)
    return FieldSet(name, spec, [Path(file).stem for file in names], paths, boxes=[wanted[number] for number in numbers])


def _lines(path: Path) -> list[str]:
    """The lines of a list, without empty ones; raises DataError when there are none."""
    try:
        if path.stat().st_size > MAX_LIST_BYTES:
            raise ValueError("too large for a list")
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read as a list of pictures.", why=str(error)) from error
    found = [line for line in lines if line]
    if not found:
        raise DataError(f"{path} lists no pictures.", expected="one picture per line")
    return found


def _refuse_missing(spec: FieldSpec, paths: Sequence[Path]) -> None:
    missing = [path for path in paths if not path.is_file()]
    if missing:
        shown = ", ".join("/".join(path.parts[-2:]) for path in missing[:NAMED])
        raise DataError(
            f"{len(missing)} of {len(paths)} files of {spec.title} are missing, e.g. {shown}.",
            expected="all that its list names",
            do="Unpack the archives again; a score of a part of the set would not be a number of the tables.",
        )
