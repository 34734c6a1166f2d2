"""Pieces of patch masks and their boxes against a flood fill and slow loops."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from selftaught.core.errors import ConfigError
from selftaught.nets.components import component_of_seed, connected_components, largest_component, patch_boxes_px


def flood(mask: Tensor, start: tuple[int, int]) -> Tensor:
    """The piece of one mask (h, w) that holds `start`, by walking."""
    found, todo = torch.zeros_like(mask), [start]
    while todo:
        i, j = todo.pop()
        if 0 <= i < mask.shape[0] and 0 <= j < mask.shape[1] and mask[i, j] and not found[i, j]:
            found[i, j] = True
            todo += [(i - 1, j), (i + 1, j), (i, j - 1), (i, j + 1)]
    return found


def masks(seed: int, batch: int = 6, h: int = 7, w: int = 9) -> Tensor:
    return torch.rand(batch, h, w, generator=torch.Generator().manual_seed(seed)) > 0.45


def test_diagonal_neighbours_are_apart_and_pictures_never_join() -> None:
    both = torch.eye(2, dtype=torch.bool).repeat(2, 1, 1)
    assert sorted(connected_components(both)[both].tolist()) == [1, 2, 3, 4]


@pytest.mark.parametrize("seed", range(4))
def test_component_of_a_seed_equals_a_flood_fill(seed: int) -> None:
    batch = masks(seed)
    seeds = torch.stack([mask.flatten().nonzero()[seed * 3, 0] for mask in batch])
    kept = component_of_seed(batch, seeds)
    for mask, start, got in zip(batch, seeds.tolist(), kept, strict=True):
        assert torch.equal(got, flood(mask, divmod(start, mask.shape[1])))


def test_a_seed_outside_of_its_mask_is_refused() -> None:
    batch = masks(0)
    outside = torch.stack([(~mask).flatten().nonzero()[0, 0] for mask in batch])
    with pytest.raises(ConfigError, match="picture 0"):
        component_of_seed(batch, outside)


@pytest.mark.parametrize("seed", range(4))
def test_largest_component(seed: int) -> None:
    batch = masks(seed)
    batch[2] = False
    for mask, got in zip(batch, largest_component(batch), strict=True):
        pieces = [flood(mask, (i, j)) for i, j in mask.nonzero().tolist()]
        best = max((int(piece.sum()) for piece in pieces), default=0)
        first = next((piece for piece in pieces if int(piece.sum()) == best), torch.zeros_like(mask))
        assert torch.equal(got, first)


def test_boxes_follow_the_published_rule_and_end_at_the_unpadded_picture() -> None:
    mask = torch.zeros(3, 4, 5, dtype=torch.bool)
    mask[0, 1:3, 2:4] = True
    mask[1, 3, 4] = True
    got = patch_boxes_px(mask, 16, width_px=75, height_px=62)
    assert got.tolist() == [[32, 16, 64, 48], [64, 48, 75, 62], [0, 0, 0, 0]]


def test_refuses_other_shapes() -> None:
    with pytest.raises(ConfigError):
        connected_components(torch.zeros(3, 3, dtype=torch.bool))
    with pytest.raises(ConfigError):
        patch_boxes_px(torch.zeros(1, 3, 3), 16, 48, 48)
    with pytest.raises(ConfigError):
        patch_boxes_px(torch.zeros(1, 3, 3, dtype=torch.bool), 0, 48, 48)
