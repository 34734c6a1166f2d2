"""Methods that learn features from unlabelled pictures."""

from __future__ import annotations

from selftaught.registry import Entry

METHODS: dict[str, Entry] = {
    "simclr": Entry(
        "selftaught.representation.simclr:SimCLR",
        "contrastive: two views of one picture attract, views of different pictures repel",
    ),
    "dino": Entry(
        "selftaught.representation.dino:DINO",
        "self-distillation: a student predicts what a slowly moving teacher says about another crop",
    ),
    "mae": Entry(
        "selftaught.representation.mae:MAE",
        "reconstruction: most patches are hidden and painted back; can also inpaint",
    ),
    "pretrained": Entry(
        "selftaught.representation.pretrained:Pretrained",
        "nothing is learned: published weights (DINO, DINOv2, MAE) as frozen features",
    ),
}
