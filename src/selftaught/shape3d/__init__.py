"""The room of shape: from one picture per object, without views, poses or masks, to viewpoint and solid shape."""

from __future__ import annotations

from selftaught.registry import Entry

METHODS = {
    "viewpoint": Entry(
        "selftaught.shape3d.viewpoint:Viewpoint", "lays all pictures on a circle of viewpoints, and a network learns it"
    ),
    "unsup3d": Entry(
        "selftaught.shape3d.unsup3d:Unsup3D", "depth, albedo, light and viewpoint of one picture, from mirror symmetry"
    ),
    "shape_gan": Entry(
        "selftaught.shape3d.shape_gan:ShapeGAN", "solid objects with texture and background from numbers, against a discriminator"
    ),
    "shape_autoencoder": Entry(
        "selftaught.shape3d.shape_autoencoder:ShapeAutoencoder", "one picture to shape, texture, background and viewpoint"
    ),
}
