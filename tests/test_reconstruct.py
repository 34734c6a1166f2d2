"""`selftaught reconstruct`: files that other programs open, poses that fit, runs that cannot do it are refused."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
import trimesh
from PIL import Image

from selftaught import cli
from selftaught.core.errors import ConfigError, RunError
from selftaught.data.sources import open_data
from selftaught.loading import load_method
from selftaught.method import Shapes
from selftaught.nets.renderer import Camera, Topology, render, rotation_from_angles, uv_sphere
from selftaught.reconstruct import glb, reconstruct, turntable
from selftaught.train import train
from selftaught.web.orbit import Shown, orbit_page
from selftaught.worlds.meshes import writing


def ball() -> Shapes:
    """A sphere, red on its left half and blue on its right, seen from 0.4 rad."""
    points, faces, uv, uv_faces = uv_sphere(8, 16)
    # One vertex for each texture coordinate, as a file needs it.
    which = torch.zeros(len(uv), dtype=torch.long)
    which[uv_faces.reshape(-1)] = faces.reshape(-1)
    texture = torch.zeros(1, 3, 8, 16)
    texture[:, 0, :, 8:], texture[:, 2, :, :8] = 1, 1
    rotation = rotation_from_angles(*(torch.tensor([a]) for a in (0.4, 0.1, 0.0)))
    position, fov = torch.tensor([[0.0, 0.0, -5.0]]), torch.tensor([0.5])
    camera = Camera(rotation, position, 1 / (fov / 2).tan())
    found = render(points[which][None], Topology(uv_faces, len(uv)), camera, 32, texture=texture, uv=uv)
    return Shapes(points[which][None], uv_faces, uv, texture, rotation, position, fov, found.depth, found.image)


def test_a_glb_holds_shape_and_texture_the_right_way_up() -> None:
    shape = ball()
    scene = trimesh.load(io.BytesIO(glb(shape)), file_type="glb", force="scene")
    (mesh,) = scene.dump()
    np.testing.assert_allclose(mesh.vertices, shape.points[0], atol=1e-6)
    assert len(mesh.faces) == len(shape.faces) and mesh.volume > 3.5, "faces look outwards"
    np.testing.assert_allclose(mesh.visual.uv, np.stack([shape.uv[:, 0], 1 - shape.uv[:, 1]], 1), atol=1e-6)
    picture = np.asarray(mesh.visual.material.baseColorTexture.convert("RGB"))
    np.testing.assert_array_equal(picture, (shape.texture[0].permute(1, 2, 0) * 255).to(torch.uint8))
    # +X is the object's left: the half with u above 0.5 is red.
    colours = mesh.visual.to_color().vertex_colors
    left = mesh.vertices[:, 0] > 0.3
    assert (colours[left, 0] > colours[left, 2]).mean() > 0.9


def test_a_closed_shape_turns_all_around_and_an_open_one_swings() -> None:
    shape = ball()
    frames = turntable(shape, 40, 8).astype(int)
    assert frames.shape == (8, 40, 40, 3)
    front, back = frames[0], frames[4]
    red = [(frame[:, :, 0] - frame[:, :, 2] > 60) for frame in (front, back)]
    assert red[0][:, 20:].sum() > 3 * red[0][:, :20].sum() and red[1][:, :20].sum() > 3 * red[1][:, 20:].sum()
    half = shape._replace(faces=shape.faces[(shape.points[0][shape.faces].mean(1)[:, 2] > 0)])
    swung = turntable(half, 40, 8)
    np.testing.assert_array_equal(swung[0], swung[4])  # back in the middle half way


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    root = tmp_path_factory.mktemp("reconstruct")
    writing.make("heads", root / "heads", 20, 0, "tiny")
    return train("unsup3d", root / "heads", root / "run", size="tiny", steps=3, quiet=True), root / "heads"


def test_every_picture_gets_its_files_and_poses_fit_them(run: tuple[Path, Path], tmp_path: Path) -> None:
    folder, heads = run
    (tmp_path / "in" / "more").mkdir(parents=True)
    for i, name in enumerate(("a", "more/b")):
        Image.fromarray(open_data(heads, "test").image(i)).save(tmp_path / "in" / f"{name}.png")
    (tmp_path / "in" / "broken.png").write_bytes(b"no picture")
    out = reconstruct(folder, tmp_path / "in", tmp_path / "out", px=32, quiet=True)
    poses = json.loads((out / "poses.json").read_text())
    assert set(poses["pictures"]) == {"a", "more/b"} and "OpenGL" in poses["convention"]
    method = load_method(folder)
    picture = torch.from_numpy(open_data(heads, "test").image(0)).permute(2, 0, 1)[None].float() / 255
    shape = method.reconstruct(picture)  # type: ignore[operator]
    pose = poses["pictures"]["a"]
    np.testing.assert_allclose(pose["rotation"], shape.rotation[0], atol=1e-5)
    matrix = np.array(pose["camera_to_world"])
    np.testing.assert_allclose(matrix[:3, :3] @ shape.position[0].numpy() + matrix[:3, 3], 0, atol=1e-5)
    again = rotation_from_angles(*(torch.tensor([pose[k]]) for k in ("azimuth_rad", "elevation_rad")), torch.zeros(1))[
        0
    ]
    difference = again.numpy() @ np.array(pose["rotation"]).T
    assert abs(difference[2, 2] - 1) < 1e-5, "but for the roll they are the same"
    steps = np.asarray(Image.open(out / "a.depth.png"))
    depth = shape.depth[0].numpy()
    near, far = pose["depth_range"]
    np.testing.assert_allclose((near + (steps - 1.0) / 65534 * (far - near))[depth > 0], depth[depth > 0], atol=1e-5)
    assert (steps[depth == 0] == 0).all()
    assert Image.open(out / "more" / "b.gif").n_frames == 24
    assert isinstance(trimesh.load(out / "more" / "b.glb", force="mesh"), trimesh.Trimesh)


def test_names_that_no_file_can_have_and_names_that_differ_in_case(run: tuple[Path, Path], tmp_path: Path) -> None:
    folder, heads = run
    (tmp_path / "in").mkdir()
    names = ["n" * 250 + ".png", "a.png", "A.png"]
    for name in names:
        Image.fromarray(open_data(heads, "test").image(0)).save(tmp_path / "in" / name)
    out = reconstruct(folder, tmp_path / "in", tmp_path / "out", px=16, quiet=True)
    poses = json.loads((out / "poses.json").read_text())["pictures"]
    assert set(poses) == {"n" * 250, "a", "A"}
    files = {key: pose["file"] for key, pose in poses.items()}
    assert len({file.lower() for file in files.values()}) == 3
    for file in files.values():
        assert all((out / f"{file}{end}").is_file() for end in (".glb", ".gif", ".depth.png"))


def test_fewer_pictures_leave_no_files_of_the_others(run: tuple[Path, Path], tmp_path: Path) -> None:
    folder, heads = run
    out = reconstruct(folder, heads, tmp_path / "out", px=16, limit=3, quiet=True)
    (out / "mine.glb").write_bytes(b"not ours")
    (tmp_path / "beside.glb").write_bytes(b"nor this")
    poses = json.loads((out / "poses.json").read_text())
    poses["pictures"] |= {"wanders": {"file": "../beside"}, "odd": {}}
    for broken in ({"pictures": [1]}, {"pictures": {"a": None}}, poses):
        (out / "poses.json").write_text(json.dumps(broken))
        reconstruct(folder, heads, out, px=16, limit=3, quiet=True)
    reconstruct(folder, heads, out, px=16, limit=1, quiet=True)
    assert len(list(out.rglob("*.glb"))) == 2 and len(list(out.rglob("*.gif"))) == len(list(out.rglob("*.depth.png"))) == 1
    assert (out / "mine.glb").exists() and (tmp_path / "beside.glb").exists()


def test_files_are_not_written_into_the_data(run: tuple[Path, Path]) -> None:
    folder, heads = run
    with pytest.raises(ConfigError, match="inside of the data"):
        reconstruct(folder, heads, heads / "train" / "out", px=16, quiet=True)


def test_the_command_takes_a_limit(run: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, heads = run
    cli.main(["reconstruct", str(folder), str(heads), "--out", str(tmp_path / "out"), "--px", "16", "--limit", "2"])
    assert "wrote" in capsys.readouterr().out
    assert len(list((tmp_path / "out").rglob("*.glb"))) == 2


def test_what_cannot_be_done_is_refused(
    run: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, heads = run
    other = train("viewpoint", heads, tmp_path / "other", size="tiny", steps=1, quiet=True)
    with pytest.raises(RunError, match="reconstruct"):
        reconstruct(other, heads, tmp_path / "out")
    for wrong in ({"px": 2}, {"limit": 0}):
        with pytest.raises(ConfigError):
            reconstruct(folder, heads, tmp_path / "out", **wrong)  # type: ignore[arg-type]
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="trimesh"):
        reconstruct(folder, heads, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_page_holds_everything_and_asks_for_nothing(run: tuple[Path, Path], tmp_path: Path) -> None:
    folder, heads = run
    out = reconstruct(folder, heads, tmp_path / "out", px=16, limit=3, quiet=True)
    page = (out / "index.html").read_text()
    assert "http" not in page.replace("http-equiv", "") and "src=" not in page
    told = json.loads(page.partition('type="application/json">')[2].partition("</script>")[0])
    assert [one["key"] for one in told["objects"]] == list(json.loads((out / "poses.json").read_text())["pictures"])
    assert told["closed"] is False and "background" not in told["objects"][0]
    shape = load_method(folder).reconstruct(  # type: ignore[operator]
        torch.from_numpy(open_data(heads).image(0)).permute(2, 0, 1)[None].float() / 255
    )
    faces = np.frombuffer(base64.b64decode(told["faces"]), "<u4").reshape(-1, 3)
    np.testing.assert_array_equal(faces, shape.faces)
    uv = np.frombuffer(base64.b64decode(told["uv"]), "<f4").reshape(-1, 2)
    np.testing.assert_allclose(uv, shape.uv, atol=1e-6)
    points = np.frombuffer(base64.b64decode(told["objects"][0]["points"]), "<f4").reshape(-1, 3)
    np.testing.assert_allclose(points, shape.points[0], atol=1e-5)
    texture = Image.open(io.BytesIO(base64.b64decode(told["objects"][0]["texture"].partition(",")[2])))
    np.testing.assert_allclose(np.asarray(texture) / 255, shape.texture[0].permute(1, 2, 0), atol=0.003)


def test_the_camera_of_the_page_holds_the_largest_object(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Two:
        image_px = 8

        def reconstruct(self, images: torch.Tensor) -> Shapes:
            shape = ball()
            both = {k: torch.cat([v, v]) for k, v in shape._asdict().items() if v is not None and k not in ("faces", "uv")}
            return shape._replace(**both | {"points": torch.cat([shape.points, 1.6 * shape.points])})

        def provider(self, capability: str) -> Two:
            return self

    monkeypatch.setattr("selftaught.reconstruct.load_capable", lambda run, capability: Two())
    pictures = [np.zeros((8, 8, 3), np.uint8)] * 2
    page = (reconstruct("run", pictures, tmp_path / "out", px=16, quiet=True) / "index.html").read_text()
    told = json.loads(page.partition('type="application/json">')[2].partition("</script>")[0])
    assert told["focal"] * 1.6 / told["distance"] < 1


def test_a_name_cannot_end_the_script_of_the_page() -> None:
    shown = [Shown("</script><b>", torch.rand(3, 8, 8), ball()._replace(background=torch.rand(1, 3, 8, 8)))]
    page = orbit_page(shown, 5.0, 4.0, True)
    assert "</script><b>" not in page and page.count("</script>") == 2
    told = json.loads(page.partition('type="application/json">')[2].partition("</script>")[0])
    assert told["objects"][0]["key"] == "</script><b>" and told["objects"][0]["background"].startswith("data:image/png")
