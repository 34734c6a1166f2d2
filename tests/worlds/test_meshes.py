"""Worlds of solid objects: what is said about a picture is so, the same numbers give the same pictures, bad meshes are refused by name."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest
import torch
import trimesh

from selftaught.core.errors import ConfigError, DataError
from selftaught.data.evalset import open_eval
from selftaught.data.sources import open_data
from selftaught.measure.viewpoint import azimuth_of
from selftaught.nets.renderer import rotation_from_angles
from selftaught.worlds.meshes import scenes, writing
from selftaught.worlds.meshes.files import MeshFiles, read_mesh
from selftaught.worlds.meshes.scenes import BACKGROUNDS, checked, draw, recipe_of, scene, solid_of

DRAWN = ("heads", "cars", "chairs")


@pytest.mark.parametrize("world", DRAWN)
def test_a_picture_is_a_function_of_its_numbers(world: str) -> None:
    recipe = recipe_of(world, "tiny")
    some = [scene(recipe, 3, i) for i in range(4)]
    first, again = draw(recipe, some), draw(recipe, some[::-1])
    np.testing.assert_array_equal(first.images, again.images[::-1])
    other = draw(recipe, [scene(recipe, 4, i) for i in range(4)])
    assert (first.images != other.images).any(axis=(1, 2, 3)).all()


@pytest.mark.parametrize("world", DRAWN)
def test_objects_lie_in_the_unit_sphere_with_one_topology_and_no_empty_numbers(world: str) -> None:
    recipe = recipe_of(world, "small")
    solids = [solid_of(recipe, scene(recipe, 0, i)) for i in range(6)]
    for one in solids:
        assert np.isfinite(one.points).all() and one.points.dtype == np.float32
        np.testing.assert_array_equal(one.faces, solids[0].faces)
        if world != "heads":
            assert np.linalg.norm(one.points, axis=1).max() == pytest.approx(1, abs=1e-5)
            np.testing.assert_allclose(one.points.min(0), -one.points.max(0), atol=1e-5)
            assert one.colours.min() >= 0 and one.colours.max() <= 1
    assert not np.allclose(solids[0].points, solids[1].points)


def test_faces_look_outwards() -> None:
    """The volume by the divergence theorem is above 0, as it is for closed surfaces wound outwards."""
    for world in DRAWN:
        recipe = recipe_of(world, "small")
        one = solid_of(recipe, scene(recipe, 0, 1))
        a, b, c = (one.points[one.faces[:, k]].astype(np.float64) for k in range(3))
        parts = (a * np.cross(b, c)).sum(1) / 6
        assert parts.sum() > 0.01, world


def test_heads_are_symmetric_and_so_is_their_paint() -> None:
    recipe = dataclasses.replace(recipe_of("heads", "small"), light_spread=(0.0, 0.0, 0.0))
    front = dataclasses.replace(scene(recipe, 0, 0), azimuth_rad=0.0, roll_rad=0.0, light=(0.0, 0.2, 1.0))
    picture = draw(recipe, [front]).images[0].astype(int)
    assert np.abs(picture - picture[:, ::-1]).mean() < 1.5
    turned = draw(recipe, [dataclasses.replace(front, azimuth_rad=a) for a in (0.5, -0.5)]).images.astype(int)
    assert np.abs(turned[0] - turned[1][:, ::-1]).mean() < 1.5 < np.abs(turned[0] - turned[1]).mean()


def test_the_front_turns_to_the_right_and_headlamps_are_in_front() -> None:
    recipe = recipe_of("cars", "small")
    base = scene(recipe, 0, 0)
    views = [dataclasses.replace(base, azimuth_rad=a, elevation_rad=0.1) for a in (0.0, math.pi / 2, math.pi)]
    drawn = draw(recipe, views)
    front, _, back = drawn.images.astype(float)

    def red(picture: np.ndarray) -> int:
        return int(
            (
                (picture[..., 0] > 1.9 * picture[..., 1])
                & (picture[..., 0] > 1.9 * picture[..., 2])
                & (picture[..., 0] > 80)
            ).sum()
        )

    grey = dataclasses.replace(recipe)
    assert red(back) > red(front) or red(front) > 100, (red(front), red(back))
    wheels = solid_of(grey, base)
    nose = wheels.points[wheels.points[:, 2].argmax()]
    seen = drawn.rotations[1] @ nose
    assert seen[0] > 0.5, "at 90 degrees the front is on the picture's right"
    wide = [(mask > 127).any(0).sum() for mask in drawn.masks]
    assert wide[1] > 1.5 * wide[0]


def test_truth_belongs_to_the_picture() -> None:
    recipe = recipe_of("cars", "small")
    some = [scene(recipe, 1, i) for i in range(8)]
    drawn = draw(recipe, some)
    angles = np.array([[one.azimuth_rad, one.elevation_rad, one.roll_rad] for one in some])
    wanted = rotation_from_angles(*torch.from_numpy(angles).unbind(1)).numpy()
    np.testing.assert_allclose(drawn.rotations, wanted, atol=1e-6)
    distance = recipe.reach / math.tan(recipe.fov_rad / 2)
    seen = drawn.depth > 0
    assert (seen == (drawn.masks > 127)).mean() > 0.97
    assert drawn.depth[seen].min() > distance - 1 and drawn.depth[seen].max() < distance + 1
    np.testing.assert_allclose(np.linalg.norm(drawn.normals[seen], axis=1), 1, atol=1e-4)
    assert (drawn.normals[seen][:, 2] > -0.2).all(), "normals are turned to the camera"
    outside = drawn.masks == 0
    assert (drawn.images[outside] == round(0.55 * 255)).all(), "nothing but the plain background"


@pytest.mark.parametrize("background", BACKGROUNDS)
def test_backgrounds_change_nothing_else(background: str) -> None:
    recipe = recipe_of("chairs", "tiny")
    some = [scene(recipe, 0, i) for i in range(6)]
    plain = draw(recipe, some)
    other_recipe = dataclasses.replace(recipe, background=background)
    other = draw(other_recipe, [scene(other_recipe, 0, i) for i in range(6)])
    np.testing.assert_array_equal(plain.masks, other.masks)
    np.testing.assert_array_equal(plain.rotations, other.rotations)
    whole = plain.masks == 255
    np.testing.assert_array_equal(plain.images[whole], other.images[whole])
    empty = other.images[0][plain.masks[0] == 0].astype(float)
    assert (empty.std(0).max() > 5) == (background in ("smooth", "cluttered"))


def test_a_folder_is_written_read_and_made_again(tmp_path: Path) -> None:
    assert writing.make("cars", tmp_path / "cars", 12, 5, "tiny", ["background=smooth"]) == 12
    made = writing.load(tmp_path / "cars")
    assert made.seed == 5 and made.recipe.background == "smooth" and made.keys[4] == "test/000004"
    train, test = (open_data(tmp_path / "cars", part) for part in ("train", "test"))
    assert (len(train), len(test)) == (10, 2)
    drawn = draw(made.recipe, made.scenes)
    for k, index in enumerate((4, 9)):
        np.testing.assert_array_equal(test.image(k), drawn.images[index])
        view = test.truth(k).view
        assert view is not None and view.depth is not None and view.normals is not None
        np.testing.assert_allclose(view.depth, drawn.depth[index], atol=1e-4)
        np.testing.assert_allclose(view.normals, drawn.normals[index], atol=0.005)
        np.testing.assert_array_equal(test.truth(k).mask, drawn.masks[index] > 127)
    known = train.truth(0)
    assert known.view is not None and known.view.depth is None and known.mask is None, (
        "shapes are told of test pictures alone"
    )
    opened = open_eval(tmp_path / "cars", "test", 16)
    views = opened.views()
    assert views is not None
    np.testing.assert_allclose(
        azimuth_of([view.rotation for view in views]), [made.scenes[i].azimuth_rad for i in (4, 9)], atol=1e-5
    )
    with pytest.raises(DataError, match="not empty"):
        writing.make("cars", tmp_path / "cars", 3)


def test_a_damaged_truth_is_noticed_and_named(tmp_path: Path) -> None:
    writing.make("chairs", tmp_path / "c", 10, 0, "tiny")
    good = dict(np.load(tmp_path / "c" / "truth.npz"))
    for change in (
        {"rotation": good["rotation"][:3]},
        {"depth": good["depth"][:1]},
        {"rotation": good["rotation"] * np.nan},
        {"test_key": None},
    ):
        arrays = {k: v for k, v in {**good, **change}.items() if v is not None}
        np.savez(tmp_path / "c" / "truth.npz", **arrays)
        opened = open_eval(tmp_path / "c", "test", 16)
        assert opened.views() is None and "truth" in opened.bad_truths[0][1]
    (tmp_path / "c" / "truth.npz").write_bytes(b"PK\x03\x04 nothing")
    with pytest.raises(DataError, match="truth.npz"):
        open_data(tmp_path / "c", "test").truth(0)


@pytest.mark.parametrize(
    "wrong", ["px=4", "background=sand", "reach=0", "fov_rad=0", "azimuth_rad=9", "elevation_rad=(0.5,0.1)", "folder=there",
              "category=meshes", "reach=0.3 fov_rad=2.0"]
)  # fmt: skip
def test_recipes_that_make_no_picture_are_refused(tmp_path: Path, wrong: str) -> None:
    with pytest.raises(ConfigError):
        writing.make("cars", tmp_path / "x", 2, 0, "tiny", wrong.split())
    assert not (tmp_path / "x").exists()


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """A folder of meshes: good ones in three formats, and one of each kind that cannot be used."""
    folder = tmp_path / "meshes"
    folder.mkdir()
    trimesh.creation.box((1, 2, 3)).export(folder / "a_box.obj")
    ball = trimesh.creation.icosphere(subdivisions=2)
    ball.visual.vertex_colors = np.tile(np.array([[200, 40, 40, 255]], np.uint8), (len(ball.vertices), 1))
    ball.export(folder / "b_ball.ply")
    trimesh.creation.cone(1, 2).export(folder / "c_cone.glb")
    (folder / "d_nan.obj").write_text("v 0 0 0\nv 1 0 0\nv nan 1 0\nf 1 2 3\n")
    (folder / "e_flat.obj").write_text("v 0 0 0\nv 1 0 0\nv 2 0 0\nf 1 2 3\n")
    (folder / "f_point.obj").write_text("v 1 1 1\nv 1 1 1\nv 1 1 1\nf 1 2 3\n")
    (folder / "g_torn.glb").write_bytes((folder / "c_cone.glb").read_bytes()[:90])
    (folder / "h_empty.obj").write_text("v 0 0 0\n")
    (folder / "i_lost.obj").write_text(
        "mtllib gone.mtl\nv 0 0 0\nv 1 0 0\nv 0 1 0\nv 0 0 1\nvt 0 0\nusemtl gone\nf 1/1 2/1 3/1\nf 1/1 3/1 4/1\n"
    )
    return folder


def test_a_folder_of_meshes_becomes_pictures_and_what_cannot_be_used_is_named(files: Path, tmp_path: Path) -> None:
    found = MeshFiles(files)
    assert [path.name[0] for path in found.paths] == ["a", "b", "c", "i"]
    assert {note[0] for note in found.notes} == set("defgh")
    assert any("NaN" in note for note in found.notes) and any("area 0" in note for note in found.notes)
    box = found.solid(0)
    np.testing.assert_allclose(np.ptp(box.points, 0) / np.ptp(box.points, 0).max(), [1 / 3, 2 / 3, 1], atol=1e-6)
    np.testing.assert_allclose(found.solid(1).colours[0], np.array([200, 40, 40]) / 255, atol=0.01)
    wrote = writing.make("meshes", tmp_path / "out", 100, 0, "tiny", [f"folder={files}", "views=2"])
    assert wrote == 8
    truth = dict(np.load(tmp_path / "out" / "truth.npz"))
    assert truth["object"].tolist()[:4] == ["a_box.obj", "a_box.obj", "b_ball.ply", "b_ball.ply"]
    assert len(open_data(tmp_path / "out" / "train")) == 8, "four objects: none is for test"


def test_faces_without_area_are_dropped_and_what_holds_nothing_is_refused(tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()
    with pytest.raises(DataError, match="holds no mesh"):
        MeshFiles(tmp_path / "m")
    with pytest.raises(DataError, match="no folder"):
        MeshFiles(tmp_path / "gone")
    path = tmp_path / "m" / "x.obj"
    path.write_text("v 0 0 0\nv 1 0 0\nv 0 1 0\nv 0 0 1\nf 1 2 3\nf 1 1 2\nf 1 3 4\n")
    assert len(read_mesh(path).faces) == 2


@pytest.mark.parametrize("more", ["v 1e12 0 0\n", "v nan 0 0\n", "v 1e7 0 0\nf 1 5 5\n", "v 5e6 0 0\nv 1e7 0 0\nf 1 5 6\n"])
def test_vertices_that_no_face_needs_do_not_count(tmp_path: Path, more: str) -> None:
    text = "v 0 0 0\nv 1 0 0\nv 0 1 0\nv 0 0 1\nf 1 3 2\nf 1 2 4\nf 1 4 3\nf 2 3 4\n"
    (tmp_path / "a.obj").write_text(text)
    (tmp_path / "b.off").write_text(as_off(text + more))
    plain, other = read_mesh(tmp_path / "a.obj"), read_mesh(tmp_path / "b.off")
    np.testing.assert_array_equal(other.points[other.faces], plain.points[plain.faces])
    assert other.points.shape == (4, 3)


def as_off(text: str) -> str:
    """An OBJ of points and triangles as OFF, whose reader keeps what no face names."""
    points = [line[2:] for line in text.splitlines() if line.startswith("v ")]
    faces = [" ".join(str(int(n) - 1) for n in line[2:].split()) for line in text.splitlines() if line.startswith("f ")]
    return "\n".join(["OFF", f"{len(points)} {len(faces)} 0", *points, *(f"3 {face}" for face in faces)]) + "\n"



def test_materials_without_a_picture_give_their_colour(tmp_path: Path) -> None:
    corners = "v 0 0 0\nv 1 0 0\nv 0 1 0\nv 0 0 1\n"
    (tmp_path / "two.mtl").write_text("newmtl red\nKd 1 0 0.2\nnewmtl silent\n")
    (tmp_path / "two.obj").write_text(f"mtllib two.mtl\n{corners}usemtl red\nf 1 2 3\nf 1 3 4\nusemtl silent\nf 2 3 4\n")
    found = read_mesh(tmp_path / "two.obj")
    used = sorted(found.colours[face].mean(0).tolist() for face in found.faces)
    np.testing.assert_allclose(used, [[0.7] * 3, [1, 0, 0.2], [1, 0, 0.2]], atol=0.01)
    with_places = f"mtllib two.mtl\n{corners}vt 0 0\nusemtl red\nf 1/1 2/1 3/1\nf 1/1 3/1 4/1\n"
    (tmp_path / "uv.obj").write_text(with_places)
    np.testing.assert_allclose(read_mesh(tmp_path / "uv.obj").colours[0], [1, 0, 0.2], atol=0.01)


CATALOGUE = Path("/usr/share/sweethome3d/furniture/BlendSwap-CC-0.sh3f")


@pytest.mark.slow
@pytest.mark.skipif(not CATALOGUE.exists(), reason="the Debian package sweethome3d-furniture is not installed")
def test_the_furniture_of_sweet_home_3d_is_read(tmp_path: Path) -> None:
    import zipfile

    with zipfile.ZipFile(CATALOGUE) as packed:
        packed.extractall(tmp_path)
    found = MeshFiles(tmp_path)
    assert len(found) == 175 and not found.notes
    some = [found.solid(number) for number in range(0, 175, 25)]
    assert all(one.colours.std(0).max() > 0.01 or abs(float(one.colours[0, 0]) - 0.7) > 0.01 for one in some), "they have colours"


def test_an_object_that_is_cut_off_still_has_its_truth() -> None:
    recipe = checked(dataclasses.replace(recipe_of("cars", "tiny"), reach=0.5))
    drawn = draw(recipe, [scenes.scene(recipe, 0, i) for i in range(3)])
    edge = np.concatenate([drawn.masks[:, [0, -1]].reshape(3, -1), drawn.masks[:, :, [0, -1]].reshape(3, -1)], 1)
    assert (edge > 127).any(1).all() and np.isfinite(drawn.depth).all()
