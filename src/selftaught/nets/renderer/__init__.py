"""A differentiable renderer of triangle meshes for the CPU: batched, exact visibility, exact gradients of silhouettes.

    topology = Topology(faces, vertices=len(points))
    camera = perspective_camera(azimuth_rad, elevation_rad)
    picture = render(points[None], topology, camera, 64, colours=colours).image

Frames, as in glTF: right-handed, +Y up, +Z the object's front, +X its left. The camera looks down -Z of its own frame;
on the screen x grows to the right and y down, pixel centres lie at integer + 0.5 px, depth is positive and grows away from the
camera. Azimuth 0 sees the front; an elevation above 0 looks from above.

Interiors are sampled at pixel centres (a z-buffer, perspective-correct attributes); the contour is blended as in
`contours.py`, which is where the gradient of the silhouette comes from. What is not rendered: transparency, shadows,
contours where two surfaces pass through each other, and faces that reach behind the camera (they are left out whole).
"""

from selftaught.nets.renderer.cameras import Camera, orthographic_camera, perspective_camera, rotation_from_angles
from selftaught.nets.renderer.meshes import Topology, face_normals, icosphere, uv_sphere, vertex_normals
from selftaught.nets.renderer.render import Light, Rendering, render

__all__ = [
    "Camera", "Light", "Rendering", "Topology", "face_normals", "icosphere", "orthographic_camera", "perspective_camera",
    "render", "rotation_from_angles", "uv_sphere", "vertex_normals",
]  # fmt: skip
