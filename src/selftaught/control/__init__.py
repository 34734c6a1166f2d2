"""The room `control`: video models that find their own actions."""

from __future__ import annotations

from selftaught.registry import Entry

METHODS = {
    "glass": Entry(
        "selftaught.control.glass:GLASS",
        "layers, motion and local actions of an agent, from clips alone; experimental: local actions are found, and drawn blurred",
    ),
    "lapo": Entry("selftaught.control.lapo:LAPO", "one of K latent actions per transition, and a model that plays them, from clips alone"),
}
