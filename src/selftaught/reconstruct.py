"""Turn pictures into solid objects that other programs open: a textured GLB, a turntable, depth and pose of each picture, and one page
on which they can be turned.
"""

from __future__ import annotations

import importlib.util
import io
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from selftaught.apply import Walk, load_capable
from selftaught.core.atomic import write_bytes
from selftaught.core.config import read_json, write_json
from selftaught.core.errors import ConfigError, RunError
from selftaught.data.sources import open_data
from selftaught.loading import as_pictures, to_square
from selftaught.method import Shapes
from selftaught.nets.renderer import Camera, Light, Topology, render, rotation_from_angles, vertex_normals
from selftaught.report.exports import target_paths
from selftaught.run_folder import refuse_within
from selftaught.web.orbit import MOST, Shown, orbit_page

FRAMES = 24
ENDINGS = (".glb", ".gif", ".depth.png")
"""What is written of each picture."""
SWING_RAD = 0.8
"""How far an open surface is turned to either side; a closed one is turned all the way round."""
CONVENTION = (
    "right-handed, +Y up, +Z the object's front; the camera looks down -Z of its own frame; x_camera = rotation @ x_object + position; "
    "camera_to_world is the OpenGL matrix of the same; which side is called the front is the run's own choice"
)


@torch.no_grad()
def reconstruct(
    run: str | Path, data: Any, out: str | Path, *, px: int = 160, limit: int | None = None, quiet: bool = False
) -> Path:
    """Write `out`/KEY.glb, KEY.gif and KEY.depth.png for each picture of `data`, one poses.json and one index.html; return `out`.

    Files of an earlier reconstruction into `out` of pictures that are no longer among them are removed.
    index.html turns the objects (the first 100), lets them wear each other's textures, and needs no other file.

    KEY.gif: the object from `FRAMES` sides at `px` pixels. KEY.depth.png: 16 bits, 0 where there is no object, else depth from the
    nearest (1) to the farthest (65535) of `depth_range` in poses.json.
    Raises RunError for a run that cannot reconstruct, ConfigError without trimesh.
    """
    if importlib.util.find_spec("trimesh") is None:
        raise ConfigError(
            "GLB files are written with trimesh, which is not installed.", do='pip install "selftaught[meshes]"'
        )
    if not 16 <= px <= 2048 or (limit is not None and limit < 1):
        raise ConfigError(f"px is {px}, limit is {limit}.", expected="px from 16 to 2048, limit from 1 on")
    folder = Path(out).expanduser()
    refuse_within(folder, data)
    learned = load_capable(run, "reconstruct")
    method = learned.provider("reconstruct")
    walk = Walk(open_data(data), "reconstructing", batch=16, quiet=quiet)
    stems = target_paths(folder, walk.source.keys, "")  # keys may be too long for a file, or differ in case alone
    poses: dict[str, Any] = {}
    shown: list[Shown] = []
    for numbers, images in walk:
        images = images if limit is None else images[: limit - len(poses)]
        squares = torch.stack([to_square(picture, method.image_px) for picture in as_pictures(images)])
        shapes = method.reconstruct(squares)
        for k, number in enumerate(numbers[: len(images)]):
            key = walk.source.keys[number]
            one = one_of(shapes, k)
            poses[key] = {"file": stems[number].relative_to(folder).as_posix(), **write_one(stems[number], one, px)}
            if len(shown) < MOST:
                shown.append(Shown(key, squares[k], one))
        if limit is not None and len(poses) >= limit:
            break
    earlier = files_of(folder)
    write_json(folder / "poses.json", {"convention": CONVENTION, "pictures": poses})
    for file in earlier - files_of(folder):
        file.unlink(missing_ok=True)
    if shown:
        first = shown[0].shape
        # All are seen by one camera: that which holds the largest.
        distance, focal = max((framing(one.shape) for one in shown), key=lambda camera: camera[0] / camera[1])
        page = orbit_page(shown, distance, focal, not is_open(first.points[0], first.faces))
        write_bytes(folder / "index.html", page.encode(), durable=False)
    return folder


def files_of(folder: Path) -> set[Path]:
    """The files inside of `folder` that its poses.json names; none when there is no such file or it is not ours."""
    try:
        stems = [folder / str(pose["file"]) for pose in read_json(folder / "poses.json")["pictures"].values()]
    except (RunError, LookupError, TypeError, AttributeError):
        return set()
    inside = folder.resolve()
    return {
        stem.with_name(stem.name + ending) for stem in stems for ending in ENDINGS if stem.name and inside in stem.resolve().parents
    }


def one_of(shapes: Shapes, k: int) -> Shapes:
    """The k-th of a batch as a batch of one; faces and uv belong to all."""
    parts: Any = {name: part if part is None or name in ("faces", "uv") else part[k : k + 1] for name, part in shapes._asdict().items()}
    return Shapes(**parts)


def framing(shape: Shapes) -> tuple[float, float]:
    """Distance and focal length (half heights per unit of x / depth) of a camera that holds an object while it turns."""
    distance = float(shape.position[0].norm())
    reach = float(shape.points.norm(dim=2).max())
    half = min(math.tan(float(shape.fov_rad[0]) / 2), 1.0) * distance
    return distance, distance / max(half, 1.02 * min(reach, 1.5 * half))


def write_one(stem: Path, shape: Shapes, px: int) -> dict[str, Any]:
    """Write the files of one object and return its pose; `shape` is a batch of one."""
    write_bytes(stem.with_name(f"{stem.name}.glb"), glb(shape), durable=False)
    write_bytes(stem.with_name(f"{stem.name}.gif"), gif(turntable(shape, px)), durable=False)
    depth = shape.depth[0].numpy()
    seen = depth > 0
    near, far = (float(depth[seen].min()), float(depth[seen].max())) if seen.any() else (0.0, 0.0)
    steps = np.where(seen, 1 + 65534 * (depth - near) / max(far - near, 1e-9), 0)
    buffer = io.BytesIO()
    Image.fromarray(np.rint(steps).astype(np.uint16)).save(buffer, "PNG")
    write_bytes(stem.with_name(f"{stem.name}.depth.png"), buffer.getvalue(), durable=False)
    rotation, position = shape.rotation[0].double().numpy(), shape.position[0].double().numpy()
    matrix = np.eye(4)
    matrix[:3, :3], matrix[:3, 3] = rotation.T, -rotation.T @ position
    return {
        "rotation": rotation.tolist(), "position": position.tolist(), "fov_rad": float(shape.fov_rad[0]),
        "azimuth_rad": math.atan2(-rotation[2, 0], rotation[2, 2]), "elevation_rad": math.asin(float(np.clip(rotation[2, 1], -1, 1))),
        "camera_to_world": matrix.tolist(), "depth_range": [near, far],
    }  # fmt: skip


def glb(shape: Shapes) -> bytes:
    """One object as binary glTF: positions, normals, texture coordinates and the texture as PNG, matt."""
    import trimesh
    from trimesh.visual import TextureVisuals
    from trimesh.visual.material import PBRMaterial

    texture = (shape.texture[0].permute(1, 2, 0) * 255).round().clamp(0, 255).to(torch.uint8).numpy()
    uv = shape.uv.double().numpy().copy()
    uv[:, 1] = 1 - uv[:, 1]  # trimesh counts from below and turns it round when it writes
    normals = vertex_normals(shape.points, Topology(shape.faces, shape.points.shape[1]))[0]
    material = PBRMaterial(
        baseColorTexture=Image.fromarray(texture), metallicFactor=0.0, roughnessFactor=1.0, doubleSided=True
    )
    mesh = trimesh.Trimesh(
        shape.points[0].double().numpy(), shape.faces.numpy(), vertex_normals=normals.double().numpy(),
        visual=TextureVisuals(uv=uv, material=material), process=False,
    )  # fmt: skip
    written: Any = mesh.export(file_type="glb", include_normals=True)
    return bytes(written)


def turntable(shape: Shapes, px: int, frames: int = FRAMES) -> np.ndarray[Any, Any]:
    """(T, px, px, 3) uint8: the object on white from all sides, or swinging when its surface is open; light from above the camera."""
    phase = torch.arange(frames) * 2 * math.pi / frames
    return turned(shape, SWING_RAD * phase.sin() if is_open(shape.points[0], shape.faces) else phase, px)


def turned(shape: Shapes, azimuth: Tensor, px: int) -> np.ndarray[Any, Any]:
    """(T, px, px, 3) uint8: the object on white from azimuths (T,); light from above the camera. `shape` is a batch of one."""
    frames = len(azimuth)
    topology, still = Topology(shape.faces, shape.points.shape[1]), torch.zeros(frames)
    points = shape.points.expand(frames, -1, -1)
    distance, focal = framing(shape)
    camera = Camera(
        rotation_from_angles(azimuth, still + 0.15, still),
        shape.position.new_tensor([[0.0, 0.0, -distance]]).expand(frames, 3),
        torch.full((frames,), focal),
    )
    light = Light(torch.tensor([[0.2, 0.4, 1.0]]), torch.tensor([0.45]), torch.tensor([0.55]))
    parts = []
    for rows in torch.arange(frames).split(8):
        view = Camera(camera.rotation[rows], camera.position[rows], camera.focal[rows])
        texture = shape.texture.expand(len(rows), -1, -1, -1)
        parts.append(
            render(
                points[rows], topology, view, px, texture=texture, uv=shape.uv, light=light, background=torch.ones(1)
            ).image
        )
    found: np.ndarray[Any, Any] = (
        (torch.cat(parts).permute(0, 2, 3, 1) * 255).round().clamp(0, 255).to(torch.uint8).numpy()
    )
    return found


def is_open(points: Tensor, faces: Tensor) -> bool:
    """Whether a surface of points (V, 3) has a border; vertices at the same place, as at the seams of textures, count as one."""
    place = (points / points.abs().max().clamp_min(1e-12) * 1e5).round()
    single, which = torch.unique(place, dim=0, return_inverse=True)
    welded = which[faces]
    whole = (welded != welded.roll(1, 1)).all(1)
    return bool((Topology(welded[whole], len(single)).edge_faces[:, 1] < 0).any())


def gif(frames: np.ndarray[Any, Any], fps: int = 12) -> bytes:
    """Frames (T, H, W, 3) uint8 as a GIF that goes on for ever."""
    buffer = io.BytesIO()
    first, *rest = [Image.fromarray(frame) for frame in frames]
    first.save(buffer, "GIF", save_all=True, append_images=rest, duration=1000 // fps, loop=0)
    return buffer.getvalue()
