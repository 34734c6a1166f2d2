"""Make the files of the built-in sample `things` from their sources (see ATTRIBUTION.md beside the assets).

    python tools/make_things_assets.py --emoji EMOJI/assets --clothing CLOTHING --wesaturate WESATURATE/500px --out OUT

EMOJI is the unpacked npm package `@lobehub/fluent-emoji-3d`, CLOTHING a folder with train.tar and test.tar of the CC0
clothing photographs reduced to 128 px, WESATURATE the folder of the same name in the Debian package `libjxl-testdata`.
scikit-image brings the other photographs. Nothing is drawn at random (the split is by hash), so it can be made again.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import tarfile
import unicodedata
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

OBJECT_PX = 76
PHOTO_PX = 112
PER_CLASS = 40
TEST_SHARE = 0.25
ZIP_LIMIT = 1_900_000


def _span(first: int, last: int) -> list[str]:
    return [f"{c:x}" for c in range(first, last + 1)]


# Code points by eye: one class is one kind of silhouette or inner structure.
CLASSES: dict[str, list[str]] = {
    "smiley": _span(0x1F600, 0x1F62D)[::2]
    + _span(0x1F910, 0x1F915)
    + _span(0x1F920, 0x1F929)
    + _span(0x1F970, 0x1F976)
    + _span(0x1F978, 0x1F97A)
    + ["1fae0", "1fae1"],
    "animal_head": _span(0x1F42D, 0x1F432)
    + _span(0x1F434, 0x1F43C)
    + _span(0x1F638, 0x1F640)
    + "1f648 1f649 1f64a 1f981 1f984 1f98a 1f99d 1f43b-200d-2744-fe0f 1face 1f43d".split(),
    "animal": _span(0x1F400, 0x1F40A)
    + _span(0x1F40E, 0x1F411)
    + "1f412 1f992 1f993 1f994 1f98d 1f415 1f416 1f417 1f418 1f429 1f42a 1f42b 1f43f 1f98c 1f98e 1f98f".split()
    + "1f995 1f996 1f998 1f999 1f99b 1f9a1 1f9a3 1f9a5 1f9a6 1f9a8 1f9ab 1f9ac 1f9ae 1facf".split()
    + ["1f415-200d-1f9ba", "1f408-200d-2b1b"],
    "hand": _span(0x1F446, 0x1F450)
    + "1f590-fe0f 1f596 1f90c 1f90f 1f918 1f919 1f91a 1f91b 1f91c 1f91d 1f91e 1f91f 1f932 1f64c 1f64f".split()
    + "270a 270b 270c-fe0f 270d-fe0f 261d-fe0f 1faf0 1faf1 1faf3 1faf5 1faf6 1faf7 1f4aa".split(),
    "fruit": _span(0x1F345, 0x1F353)
    + "1f330 1f33d 1f336-fe0f 1f344 1f951 1f952 1f954 1f955 1f95c 1f95d 1f965 1f966 1f96c 1f96d 1f9c4".split()
    + "1f9c5 1fad0 1fad1 1fad2 1fad8 1fada 1fadb".split(),
    "food": _span(0x1F354, 0x1F373)
    + "1f32d 1f32e 1f32f 1f382 1f950 1f953 1f956 1f957 1f958 1f959 1f95e 1f95f 1f960 1f961 1f963 1f967 1f968".split()
    + "1f969 1f96a 1f96e 1f96f 1f9c0 1f9c1 1f9c6 1f9c7 1fad3 1fad4 1fad5".split(),
    "drink": _span(0x1F375, 0x1F37C)
    + "1f37e 1f942 1f943 1f95b 1f964 1f96b 1f9c2 1f9c3 1f9c9 1f9cb 2615 1fad6 1fad9 1f3fa 1f9f4".split(),
    "building": _span(0x1F3E0, 0x1F3E6)
    + _span(0x1F3E8, 0x1F3ED)
    + "1f3ef 1f3f0 1f3db-fe0f 1f3da-fe0f 1f3d7-fe0f 1f3d8-fe0f 1f3df-fe0f 1f54c 1f54d 26ea 1f6d5".split()
    + "1f492 1f6d6 26e9-fe0f 1f5fc 1f3aa 1f3d9-fe0f".split(),
    "plant": _span(0x1F331, 0x1F335)
    + _span(0x1F337, 0x1F33C)
    + _span(0x1F33E, 0x1F343)
    + "1f384 1f38b 1f38d 1f490 1f940 1f4ae 1fab4 1fab7 1fabb 1f3f5-fe0f 2618-fe0f".split(),
    "vehicle": _span(0x1F682, 0x1F686)
    + _span(0x1F688, 0x1F68E)
    + _span(0x1F690, 0x1F69E)
    + "1f3ce-fe0f 1f6fb 1f6fa 1f3cd-fe0f 1f6f5 1f687 1f6a1 1f6a0 1f69f".split(),
    "clock": _span(0x1F550, 0x1F567) + ["23f0", "1f570-fe0f", "23f1-fe0f", "231a"],
    "person": [
        "1f9d1" + tail
        for tail in ["", *(f"-200d-{c}" for c in "1f33e 1f373 1f393 1f3a4 1f3a8 1f3eb 1f4bb 1f692".split())]
    ]
    + "1f468-200d-1f3ed 1f469-200d-1f4bc 1f468-200d-1f527 1f469-200d-1f52c 1f468-200d-1f680 1f469-200d-1f9b0".split()
    + "1f468-200d-1f9b1 1f468-200d-1f9b2 1f469-200d-1f9b3 1f9d1-200d-2695-fe0f 1f468-200d-2696-fe0f".split()
    + "1f469-200d-2708-fe0f 1f46e 1f471 1f472 1f473 1f474 1f475 1f476 1f477 1f478 1f482 1f470 1f385 1f936".split()
    + "1f934 1f935 1f9d2 1f9d3 1f9d4 1f9d5 1f9b8 1f9d9 1f9db 1f9dd 1f575-fe0f 1f977 1fac5".split(),
}
# A clock differs from the next one in its hands only; that is what the object is.
MAY_LOOK_ALIKE = {"clock", "smiley"}
# Garments whose photograph is a compact thing, and photographs with lettering, marks or drawn figures.
SKIPPED_GARMENTS = {"shoes", "hat", "pants"}
REJECTED = frozenset(
    """
    dress/13a7bfe9-0016 dress/334bc6ef-0046 dress/4114a9c0-3074 dress/4a999110-0074 dress/4b72d5a8-0075
    dress/535730d9-0085 dress/ee7b4f87-3422 dress/f68947a8-0235 longsleeve/1ac2a1f2-0412
    longsleeve/20e5a129-3120 longsleeve/21d5734b-0425 longsleeve/2e688422-0452 longsleeve/3c9c2f96-0478
    longsleeve/427d9739-0484 longsleeve/46b316a6-0490 longsleeve/6743890e-0534 longsleeve/6e199a44-0541
    longsleeve/7523e98d-0557 longsleeve/7a11318e-0566 longsleeve/7a20924e-3138 longsleeve/7c2561c8-0570
    longsleeve/82bc7f17-0583 longsleeve/92a51811-3472 longsleeve/9cf456b3-0623 longsleeve/9fda860e-3143
    longsleeve/b5ca4da0-0670 longsleeve/c1fafe22-0694 longsleeve/cb84bc2d-0710 longsleeve/ec196957-0773
    outwear/00149032-0819 outwear/12905752-0831 outwear/1fe43e89-0844 outwear/22010881-0848
    outwear/43ab8ef1-0872 outwear/90d2529c-0925 outwear/b8103736-0943 outwear/df545cf1-0978
    outwear/e6b7c7d2-0983 shirt/54c2556e-1564 shirt/b4b507dd-1673 shirt/f6b3d8e8-3264 shirt/ff0535f7-1760
    shorts/06164b7d-1964 shorts/09c3cfd8-1968 shorts/2744c41a-2001 shorts/4332be6c-2022 shorts/4e1b78ba-2030
    shorts/5dcffea5-2043 shorts/66a24970-2051 shorts/a5fa97cf-3309 shorts/c0ac2e3e-2109 shorts/c79ce892-2116
    shorts/cb479876-2120 shorts/d619091d-2132 shorts/dd4a72e6-2137 shorts/e5d94424-2144 skirt/41e11790-2189
    skirt/667a7349-2203 skirt/97297d04-2230 t-shirt/0144d8a2-2276 t-shirt/0809f68f-2301 t-shirt/0b55a8e8-2310
    t-shirt/10053308-2326 t-shirt/15c6d0c1-2343 t-shirt/1e0a18a1-2371 t-shirt/25a66eb2-2402
    t-shirt/27218d39-2407 t-shirt/30de5ddd-2436 t-shirt/325ea382-2440 t-shirt/399f799b-2456
    t-shirt/4a39f645-2499 t-shirt/4c08ecd6-2504 t-shirt/4fd981b1-3359 t-shirt/53a09aae-2527
    t-shirt/5547a826-2536 t-shirt/58917d02-2546 t-shirt/59939b5c-3361 t-shirt/651173e6-2586
    t-shirt/6f80839e-2614 t-shirt/72d103da-2624 t-shirt/777191aa-2637 t-shirt/796012c8-2646
    t-shirt/823f659c-2678 t-shirt/8a11c5b5-2700 t-shirt/97b9bf6d-2742 t-shirt/a45a4d15-3381
    t-shirt/a59d1088-2781 t-shirt/b1e56afe-2823 t-shirt/c76e3103-2888 t-shirt/c80b34be-2890
    t-shirt/cf50acf0-2908 t-shirt/d9cf9703-2946 t-shirt/dabf37f7-2948 t-shirt/df92f052-2969
    t-shirt/e7dd97e3-2989 t-shirt/f355fe19-3022 t-shirt/f366dac4-3023 t-shirt/f53fc50a-3027
    shorts/66f92907-2052 t-shirt/8f232458-2719 t-shirt/1ffb85c6-2377
    """.split()
)


def code_name(stem: str) -> str:
    """Unicode name of an emoji file stem such as `1f600` or `1f43b-200d-2744-fe0f`."""
    points = [int(c, 16) for c in stem.split("-")]
    return " + ".join(unicodedata.name(chr(c), f"U+{c:X}") for c in points if c not in (0x200D, 0xFE0F)).lower()


def tight(picture: Image.Image) -> Image.Image:
    """Crop to the visible part and reduce to OBJECT_PX at the longest side; premultiplied, so edges keep colour."""
    alpha = np.asarray(picture.getchannel("A"))
    rows, cols = np.flatnonzero((alpha > 8).any(1)), np.flatnonzero((alpha > 8).any(0))
    picture = picture.crop((int(cols[0]), int(rows[0]), int(cols[-1]) + 1, int(rows[-1]) + 1))
    scale = OBJECT_PX / max(picture.size)
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    return picture.convert("RGBa").resize(size, Image.Resampling.LANCZOS).convert("RGBA")


def look(picture: Image.Image) -> np.ndarray:
    """Grey 24x24 thumbnail over mid grey, centred and of unit length, to find near duplicates by correlation."""
    ground = Image.new("RGBA", picture.size, (128, 128, 128, 255))
    ground.alpha_composite(picture)
    small = np.asarray(ground.convert("L").resize((24, 24)), np.float64).ravel()
    small -= small.mean()
    return small / (np.linalg.norm(small) + 1e-9)


def read_objects(folder: Path) -> list[tuple[dict[str, str], bytes]]:
    """All objects with their facts and their WebP bytes; a quarter of each class is for testing."""
    out: list[tuple[dict[str, str], bytes]] = []
    named: set[str] = set()
    for label, stems in CLASSES.items():
        if named & set(stems):
            raise SystemExit(f"in two classes: {sorted(named & set(stems))}")
        named |= set(stems)
        limit = 0.985 if label in MAY_LOOK_ALIKE else 0.93
        kept: list[tuple[str, Image.Image]] = []
        looks: list[np.ndarray] = []
        for stem in dict.fromkeys(stems):
            path = folder / f"{stem}.webp"
            if not path.exists() or len(kept) >= PER_CLASS:
                continue
            picture = tight(Image.open(path).convert("RGBA"))
            this = look(picture)
            if looks and max(float(this @ other) for other in looks) > limit:
                continue
            kept.append((stem, picture))
            looks.append(this)
        order = sorted(kept, key=lambda item: hashlib.sha256(item[0].encode()).hexdigest())
        tests = {stem for stem, _ in order[: round(len(order) * TEST_SHARE)]}
        for stem, picture in kept:
            buffer = io.BytesIO()
            picture.save(buffer, "WEBP", quality=86, alpha_quality=90, method=6)
            facts = {"id": stem, "label": label, "split": "test" if stem in tests else "train", "name": code_name(stem)}
            out.append((facts, buffer.getvalue()))
    return out


def _integral(values: np.ndarray) -> np.ndarray:
    return np.pad(values.cumsum(0).cumsum(1), ((1, 0), (1, 0), (0, 0)))


def texture_crop(picture: Image.Image) -> tuple[float, tuple[int, int, int, int]] | None:
    """The most texture-like square of a photograph (score, box) or None: 4x4 cells that look alike and are not flat."""
    from skimage.color import rgb2lab

    lab = rgb2lab(np.asarray(picture))
    first, second = _integral(lab), _integral(lab**2)
    best: tuple[float, tuple[int, int, int, int]] | None = None
    height, width = lab.shape[:2]
    for side in (80, 64, 52):
        if side > min(height, width):
            continue
        edges = np.linspace(0, side, 5).astype(int)
        cells = (np.diff(edges)[:, None] * np.diff(edges)[None])[..., None]
        for top in sorted({*range(0, height - side + 1, 8), height - side}):
            for left in sorted({*range(0, width - side + 1, 8), width - side}):
                a, b = (table[np.ix_(top + edges, left + edges)] for table in (first, second))
                mean, square = ((t[1:, 1:] - t[:-1, 1:] - t[1:, :-1] + t[:-1, :-1]) / cells for t in (a, b))
                spread = np.sqrt(np.clip(square - mean**2, 0, None).sum(-1))
                typical = float(np.median(spread))
                offset = np.linalg.norm(mean - mean.mean((0, 1)), axis=-1)
                if typical < 4 or offset.max() > 0.75 * typical + 1.5:
                    continue
                if spread.max() > 1.6 * typical or spread.min() < 0.55 * typical:
                    continue
                score = float(np.sqrt((offset**2).mean()) / typical + 0.5 * spread.max() / typical)
                score -= 0.006 * side + 0.01 * min(typical, 15.0)
                if best is None or score < best[0]:
                    best = (score, (left, top, left + side, top + side))
    return best


def clothing_crops(folder: Path, part: str) -> Iterator[tuple[str, str, Image.Image]]:
    """(photograph id, source, crop) of every usable garment photograph of one tar."""
    with tarfile.open(folder / f"{part}.tar") as tar:
        for member in tar:
            if not member.name.endswith(".jpg"):
                continue
            key = member.name[: -len(".jpg")]
            if key.split("/")[0] in SKIPPED_GARMENTS or key in REJECTED:
                continue
            handle = tar.extractfile(member)
            assert handle is not None
            picture = Image.open(io.BytesIO(handle.read())).convert("RGB")
            found = texture_crop(picture)
            if found is not None:
                yield key, "clothing", picture.crop(found[1])


# Photograph -> (split, squares (left, top, side) fit for a background).
SCENES: dict[str, tuple[str, list[tuple[int, int, int]]]] = {
    "skimage/brick": ("train", [(0, 0, 220), (280, 0, 220), (0, 280, 220), (280, 280, 220)]),
    "skimage/gravel": ("train", [(0, 0, 200), (300, 0, 200), (0, 300, 200), (300, 300, 200)]),
    "skimage/grass": ("test", [(0, 0, 200), (300, 0, 200), (0, 300, 200), (300, 300, 200)]),
    "skimage/chelsea": ("train", [(0, 170, 120), (330, 180, 120)]),
    "skimage/coffee": ("test", [(0, 0, 130), (470, 0, 130), (470, 270, 130)]),
    "skimage/hubble_deep_field": ("train", [(0, 0, 260), (350, 0, 260), (700, 300, 260), (0, 560, 260)]),
    "wesaturate/tmshre_riaphotographs_srgb8": ("test", [(0, 0, 180), (320, 0, 180), (0, 320, 180)]),
    "wesaturate/u76c0g_bliznaca_srgb8": ("train", [(0, 0, 180), (320, 0, 180), (0, 320, 180), (320, 320, 180)]),
}


def scene_crops(wesaturate: Path) -> Iterator[tuple[str, str, str, Image.Image]]:
    """(split, photograph id, source, crop) of the photographs named in SCENES."""
    import skimage.data

    for name, (split, squares) in SCENES.items():
        source, stem = name.split("/")
        if source == "skimage":
            picture = Image.fromarray(getattr(skimage.data, stem)()).convert("RGB")
        else:
            picture = Image.open(wesaturate / f"{stem}.png").convert("RGB")
        for number, (left, top, side) in enumerate(squares):
            yield split, f"{name}#{number}", source, picture.crop((left, top, left + side, top + side))


def read_backgrounds(clothing: Path, wesaturate: Path) -> list[tuple[dict[str, str], bytes]]:
    """All background crops with their facts and JPEG bytes, the splits of the clothing pack kept."""
    found: list[tuple[str, str, str, Image.Image]] = list(scene_crops(wesaturate))
    for part in ("train", "test"):
        found += [(part, key, source, crop) for key, source, crop in clothing_crops(clothing, part)]
    out: list[tuple[dict[str, str], bytes]] = []
    for split, key, source, crop in found:
        if max(crop.size) > PHOTO_PX:
            crop = crop.resize((PHOTO_PX, PHOTO_PX), Image.Resampling.LANCZOS)
        buffer = io.BytesIO()
        crop.save(buffer, "JPEG", quality=85, optimize=True)
        out.append(({"id": key, "photo": key.split("#")[0], "source": source, "split": split}, buffer.getvalue()))
    return out


def pack(out: Path, name: str, items: list[tuple[dict[str, str], bytes]], suffix: str) -> None:
    """Write items into NAME.zip (stored, zero times) with an index.json; refuses a file above ZIP_LIMIT."""
    index = [dict(facts, file=f"{i:04d}.{suffix}") for i, (facts, _) in enumerate(items)]
    path = out / f"{name}.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        members = [("index.json", json.dumps(index, separators=(",", ":"), sort_keys=True).encode())]
        members += [(facts["file"], data) for facts, (_, data) in zip(index, items, strict=True)]
        for member, data in members:
            archive.writestr(zipfile.ZipInfo(member, (1980, 1, 1, 0, 0, 0)), data)
    if path.stat().st_size > ZIP_LIMIT:
        raise SystemExit(f"{path} has {path.stat().st_size} bytes; the limit is {ZIP_LIMIT}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for option in ("emoji", "clothing", "wesaturate", "out"):
        parser.add_argument(f"--{option}", type=Path, required=True)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    objects = read_objects(args.emoji)
    backgrounds = read_backgrounds(args.clothing, args.wesaturate)
    pack(args.out, "objects", objects, "webp")
    pack(args.out, "backgrounds", backgrounds, "jpg")
    for kind, items in (("objects", objects), ("backgrounds", backgrounds)):
        counts = {s: sum(f["split"] == s for f, _ in items) for s in ("train", "test")}
        print(kind, counts, sum(len(data) for _, data in items), "bytes")
    for label in CLASSES:
        print(label, sum(f["label"] == label for f, _ in objects))


if __name__ == "__main__":
    main()
