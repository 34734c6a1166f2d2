"""Small data sets in the folders in which the field's are officially published."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

Box = tuple[int, int, int, int]
SALIENCY_FOLDERS = {
    "ecssd": ("images", "ground_truth_mask"),
    "duts-te": ("DUTS-TE-Image", "DUTS-TE-Mask"),
    "dut-omron": ("DUT-OMRON-image", "pixelwiseGT-new-PNG"),
}


def picture(size: tuple[int, int], boxes: Sequence[Box]) -> np.ndarray:
    """(H, W, 3) uint8: dark, with bright rectangles (x0, y0, x1, y1)."""
    pixels = np.full((*size, 3), 20, np.uint8)
    for x0, y0, x1, y1 in boxes:
        pixels[y0:y1, x0:x1] = 240
    return pixels


def save(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, quality=95)


def write_saliency(folder: Path, name: str, greys: dict[str, np.ndarray], bright: dict[str, np.ndarray] | None = None) -> Path:
    """Pictures that are bright where their mask is at least 128 (or where `bright` says), and the masks themselves."""
    images, masks = SALIENCY_FOLDERS[name]
    for key, grey in greys.items():
        shown = (bright or greys)[key]
        save(folder / images / f"{key}.jpg", np.repeat(shown[..., None], 3, 2))
        save(folder / masks / f"{key}.png", grey)
    return folder


def write_voc(folder: Path, year: int, objects: dict[str, list[tuple[Box, bool, bool]]], size: tuple[int, int] = (40, 60)) -> Path:
    """`folder`/VOCdevkit/VOCyear; each object is ((xmin, ymin, xmax, ymax) from 1 with ends, difficult, truncated)."""
    root = folder / "VOCdevkit" / f"VOC{year}"
    for key, found in objects.items():
        boxes = [(x0 - 1, y0 - 1, x1, y1) for (x0, y0, x1, y1), _, _ in found]
        save(root / "JPEGImages" / f"{key}.jpg", picture(size, boxes))
        rows = "".join(
            f"<object><name>thing</name><pose>Left</pose><truncated>{int(t)}</truncated><difficult>{int(d)}</difficult>"
            f"<bndbox><xmin>{x0}</xmin><ymin>{y0}</ymin><xmax>{x1}</xmax><ymax>{y1}</ymax></bndbox>"
            "<part><name>head</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>3</xmax><ymax>3</ymax></bndbox></part></object>"
            for (x0, y0, x1, y1), d, t in found
        )
        (root / "Annotations").mkdir(exist_ok=True)
        (root / "Annotations" / f"{key}.xml").write_text(
            f"<annotation><folder>VOC{year}</folder><filename>{key}.jpg</filename><size><width>{size[1]}</width>"
            f"<height>{size[0]}</height><depth>3</depth></size>{rows}</annotation>"
        )
    listed = root / "ImageSets" / "Main" / "trainval.txt"
    listed.parent.mkdir(parents=True)
    listed.write_text("".join(f"{key}\n" for key in objects))
    save(root / "JPEGImages" / "999999.jpg", picture(size, []))  # of another split: not listed
    return folder


def write_coco(folder: Path, objects: dict[int, list[tuple[tuple[float, ...], int]]], size: tuple[int, int] = (40, 60)) -> Path:
    """train2014, annotations, and LOST's list; each object is ((x, y, w, h), iscrowd). One more picture is not listed."""
    images, annotations = [], []
    for number, found in {**objects, 77: [((0.0, 0.0, 60.0, 40.0), 0)]}.items():
        name = f"COCO_train2014_{number:012d}.jpg"
        whole = [(round(x), round(y), round(x + w), round(y + h)) for (x, y, w, h), crowd in found if not crowd]
        save(folder / "train2014" / name, picture(size, whole))
        images.append({"id": number, "file_name": name, "height": size[0], "width": size[1]})
        for box, crowd in found:
            row = {"id": len(annotations) + 1, "image_id": number, "category_id": 18, "bbox": list(box), "iscrowd": crowd}
            annotations.append({**row, "area": box[2] * box[3], "segmentation": []})
    (folder / "annotations").mkdir()
    content = {"images": images, "annotations": annotations, "categories": [{"id": 18, "name": "dog"}]}
    (folder / "annotations" / "instances_train2014.json").write_text(json.dumps(content))
    lines = [f"train2014/COCO_train2014_{number:012d}.jpg\n" for number in objects]
    (folder / "coco_20k_filenames.txt").write_text("".join(lines))
    return folder
