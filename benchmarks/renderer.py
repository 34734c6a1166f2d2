"""The renderer's speed, forward and backward, against a naive SoftRas, and how exact the gradient of its silhouettes is.

    python benchmarks/renderer.py [--rounds 5] [--pictures 2] [--cpu-time]

16 bumpy spheres of 1,280 faces with vertex colours at 64 px, gradients to points and colours. SoftRas (Liu et al., "Soft
Rasterizer", ICCV 2019) is written from its formulas with all pairs of face and pixel at once, in torch, picture by picture with
its defaults (sigma 1e-5, gamma 1e-4, eps 1e-3 in a screen of [-1, 1]). Its time is linear in the pictures, so that it renders
`--pictures` of the 16. Both must give nearly the same masks. The silhouette's gradient is that of the mask's sum
by the scale of a sphere, divided by 2 area / scale, over rotations and shifts within a pixel (32 at 32 px, 8 at 128 px).
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from measuring import alternating, ratio_row, seconds, use_cpu_time, write
from selftaught.core.allocator import keep_memory
from selftaught.nets.renderer import Camera, Topology, icosphere, perspective_camera, render
from selftaught.nets.renderer.raster import numba_is_there

BATCH, LEVEL, SIDE = 16, 3, 64
SIGMA, GAMMA, EPS = 1e-5, 1e-4, 1e-3
CALLS = 5
"""Calls of ours in a round, for one of the other side."""
SAME_MASK = 0.02
"""Largest mean difference of the two masks; SoftRas lets the background through at the edges between small faces."""


def scene() -> tuple[Tensor, Tensor, Topology, Camera]:
    """Points (B, V, 3) and colours (B, V, 3) that want gradients, the topology and the cameras."""
    points, faces = icosphere(LEVEL)
    made = torch.Generator().manual_seed(0)
    bumps = 0.85 + 0.15 * torch.rand(BATCH, len(points), 1, generator=made)
    colours = torch.rand(BATCH, len(points), 3, generator=made)
    camera = perspective_camera(6.28 * torch.rand(BATCH, generator=made), 0.3)
    return (points * bumps).requires_grad_(), colours.requires_grad_(), Topology(faces, len(points)), camera


def softras(xy: Tensor, depth: Tensor, colours: Tensor, faces: Tensor, side: int) -> tuple[Tensor, Tensor]:
    """Image (3, S, S) over black and mask (S, S) of one mesh: points (V, 2) on a screen of [-1, 1], depth (V,), colours (V, 3)."""
    line = (torch.arange(side) + 0.5) * 2 / side - 1
    pixel = torch.stack(torch.meshgrid(line, line, indexing="xy"), -1).reshape(1, -1, 2)
    corner = [xy[faces[:, k], None] - pixel for k in range(3)]  # (F, P, 2) each
    pairs = (corner[1], corner[2]), (corner[2], corner[0]), (corner[0], corner[1])
    cross = [a[..., 0] * b[..., 1] - a[..., 1] * b[..., 0] for a, b in pairs]
    area = cross[0] + cross[1] + cross[2]
    weight = torch.stack(cross, -1) / torch.where(area.abs() > 1e-12, area, 1e-12)[..., None]
    distance = None
    for a, b in pairs:
        side_vector = b - a
        along = (-(a * side_vector).sum(-1) / side_vector.square().sum(-1).clamp_min(1e-12)).clamp(0, 1)
        squared = (a + along[..., None] * side_vector).square().sum(-1)
        distance = squared if distance is None else torch.minimum(distance, squared)
    assert distance is not None
    inside = (weight >= 0).all(-1)
    soft = torch.sigmoid(torch.where(inside, distance, -distance) / SIGMA)
    mask = 1 - (1 - soft).clamp_min(1e-12).log().sum(0).exp()
    clipped = weight.clamp(0, 1)
    clipped = clipped / clipped.sum(-1, keepdim=True).clamp_min(1e-5)
    inverse = clipped / depth[faces][:, None]
    far, near = float(depth.max()) + 0.1, float(depth.min()) - 0.1
    order = (far - 1 / inverse.sum(-1)) / (far - near)
    top = order.detach().amax(0).clamp_min(EPS)
    share = soft * ((order - top) / GAMMA).exp()
    total = share.sum(0) + ((EPS - top) / GAMMA).exp()
    correct = inverse / inverse.sum(-1, keepdim=True)
    image = torch.einsum("fp,fpk,fkc->cp", share / total, correct, colours[faces])
    return image.reshape(3, side, side), mask.reshape(side, side)


def calls(pictures: int, costs: dict[str, list[float]]) -> dict[str, Callable[[], float]]:
    """Name -> a call that returns pictures per second, forward and backward; the two kinds of masks are compared first.

    costs: engine -> list to which the seconds of every call are added.
    """
    points, colours, topology, camera = scene()

    def ours(engine: str) -> Tensor:
        got = render(points, topology, camera, SIDE, colours=colours, engine=engine)
        (got.image.square().sum() + got.mask.sum()).backward()
        return got.mask.detach()

    def theirs() -> list[Tensor]:
        masks = []
        for index in range(pictures):
            screen = camera.screen(points, SIDE, SIDE)
            xy = screen.xy[index] * 2 / SIDE - 1
            image, mask = softras(xy, screen.depth[index], colours[index], topology.faces, SIDE)
            (image.square().sum() + mask.sum()).backward()
            masks.append(mask.detach())
        return masks

    ours_found, theirs_found = ours("torch")[:pictures], torch.stack(theirs())
    difference = float((ours_found - theirs_found).abs().mean())
    assert difference < SAME_MASK, f"the masks differ by {difference:.4f}"
    found: dict[str, Callable[[], float]] = {}

    def rate(engine: str) -> float:
        new = [seconds(lambda: ours(engine)) for _ in range(CALLS)]
        costs[engine] += new
        return BATCH * CALLS / sum(new)

    for engine in costs:
        ours(engine)  # numba compiles
        found[engine] = lambda engine=engine: rate(engine)
    found["naive SoftRas"] = lambda: pictures / seconds(theirs)
    return found


def gradient_share(level: int, side: int) -> list[float]:
    """Gradient of the mask's sum by scale over 2 area / scale for a sphere of 0.3 * side px, for each rotation."""
    points, faces = icosphere(level)
    made = torch.Generator().manual_seed(level)
    count = 1024 // side  # a smaller picture has fewer crossings to average over
    turned = torch.linalg.qr(torch.randn(count, 3, 3, generator=made, dtype=torch.float64))[0]
    turned = turned * torch.linalg.det(turned)[:, None, None]
    shift = (torch.rand(count, 2, generator=made, dtype=torch.float64) - 0.5) * 2 / side
    position = torch.cat([shift, torch.full((count, 1), -5.0, dtype=torch.float64)], 1)
    scale = torch.full((count, 1, 1), 0.6, dtype=torch.float64, requires_grad=True)
    camera = Camera(turned, position, torch.ones(count, dtype=torch.float64), perspective=False)
    mask = render(points.double() * scale, Topology(faces, len(points)), camera, side).mask
    (gradient,) = torch.autograd.grad(mask.sum(), scale)
    share: list[float] = (gradient.flatten() * 0.6 / (2 * mask.detach().sum((1, 2)))).tolist()
    return share


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--pictures", type=int, default=2, help="how many of the 16 the naive SoftRas renders")
    parser.add_argument("--cpu-time", action="store_true", help="time of the processor, for one thread on a machine that is busy")
    arguments = parser.parse_args()
    keep_memory()  # as a training does
    clock = use_cpu_time() if arguments.cpu_time else "wall clock"
    engines = ["torch", *(["numba"] if numba_is_there() else [])]
    costs: dict[str, list[float]] = {engine: [] for engine in engines}
    rates = alternating(calls(arguments.pictures, costs), arguments.rounds)
    rows = []
    for engine in engines:
        pair = {"ours": rates[engine], "naive SoftRas": rates["naive SoftRas"]}
        what = f"{BATCH} meshes of {20 * 4**LEVEL:,} faces, {SIDE} px"
        rows.append(ratio_row(f"renderer, {engine}", what, "speed over SoftRas, forward and backward", pair, "naive SoftRas"))
        cost = [1e3 * each for each in costs[engine]]
        rows.append({
            "method": f"renderer, {engine}", "data": what, "score": "forward and backward, best call", "unit": "ms",
            "values": [min(cost)], "calls": cost, "baselines": {"median": float(np.median(cost))}, "summary": False,
        })  # fmt: skip
    for side in (32, 64, 128):
        for level in (1, 2, 3, 4):
            share = gradient_share(level, side)
            rows.append({
                "method": "renderer", "data": f"{20 * 4**level:,} faces, {side} px", "unit": "ratio", "rotations": share,
                "score": "gradient of a silhouette's area over the true one", "values": [float(np.mean(share))],
                "baselines": {}, "summary": False,
            })  # fmt: skip
    versions = {"numpy": np.__version__}
    if numba_is_there():
        import numba

        versions["numba"] = numba.__version__
    write("renderer", rows, versions=versions, rounds=arguments.rounds, softras_pictures=arguments.pictures, clock=clock)


if __name__ == "__main__":
    main()
