"""Every image operation equals torchvision's on float images; random views follow its distributions and the seed.

Stated tolerances on values in [0,1]: crops 1e-5, colours and blur 5e-6, grey, flip and solarize 2e-7.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
import torchvision.transforms.v2 as transforms
import torchvision.transforms.v2.functional as reference
from torch import Tensor

from selftaught.data import augment as views
from selftaught.data.augment import BRIGHTNESS, CONTRAST, HUE, SATURATION, ViewConfig

CROP_TOLERANCE = 1e-5
COLOUR_TOLERANCE = 5e-6
EXACT = 2e-7


def random_images(batch: int, height: int, width: int, seed: int = 0) -> Tensor:
    return torch.rand(batch, 3, height, width, generator=torch.Generator().manual_seed(seed))


def random_boxes(batch: int, height: int, width: int, seed: int = 0) -> Tensor:
    u = torch.rand(4, batch, generator=torch.Generator().manual_seed(seed))
    h, w = (u[0] * height).floor() + 1, (u[1] * width).floor() + 1
    return torch.stack([(u[2] * (height - h + 1)).floor(), (u[3] * (width - w + 1)).floor(), h, w], dim=1)


def each(images: Tensor, change: Callable[[Tensor, int], Tensor]) -> Tensor:
    return torch.stack([change(image, i) for i, image in enumerate(images)])


def largest_gap(ours: Tensor, theirs: Tensor) -> float:
    assert ours.shape == theirs.shape and ours.dtype == torch.float32
    return float((ours - theirs).abs().max())


def reference_crop(images: Tensor, boxes: Tensor, size: tuple[int, int], antialias: bool = True) -> Tensor:
    whole = boxes.int().tolist()
    return each(images, lambda image, i: reference.resized_crop(image, *whole[i], list(size), antialias=antialias))


@pytest.mark.parametrize("antialias", [True, False])
@pytest.mark.parametrize("height,width", [(32, 32), (40, 23), (7, 61), (1, 5), (96, 96), (200, 301)])
@pytest.mark.parametrize("out", [(1, 1), (16, 16), (33, 20), (64, 64)])
def test_crop_equals_torchvision(height: int, width: int, out: tuple[int, int], antialias: bool) -> None:
    images, boxes = random_images(24, height, width), random_boxes(24, height, width)
    ours = views.crop_resize(images, boxes, out, antialias=antialias)
    assert largest_gap(ours, reference_crop(images, boxes, out, antialias)) <= CROP_TOLERANCE


def test_crop_of_one_pixel_is_that_pixel() -> None:
    images = random_images(1, 9, 11).expand(3, -1, -1, -1)
    boxes = torch.tensor([[0, 0, 1, 1], [8, 10, 1, 1], [4, 7, 1, 1]])
    out = views.crop_resize(images, boxes, 5)
    pixels = torch.stack([images[0, :, 0, 0], images[0, :, 8, 10], images[0, :, 4, 7]])
    assert largest_gap(out, pixels[:, :, None, None].expand(-1, -1, 5, 5)) <= EXACT


def test_whole_image_crop_changes_nothing_and_flip_is_folded_in() -> None:
    images = random_images(6, 32, 32)
    boxes = torch.tensor([[0.0, 0, 32, 32]]).expand(6, 4)
    assert torch.equal(views.crop_resize(images, boxes, 32), images)
    flags = torch.tensor([True, False, True, False, False, True])
    boxes = random_boxes(6, 32, 32)
    flipped = views.crop_resize(images, boxes, (20, 12), flip=flags)
    assert largest_gap(flipped, views.hflip(views.crop_resize(images, boxes, (20, 12)), flags)) <= EXACT


def test_fractional_boxes_use_pixel_centres_and_keep_constant_images_constant() -> None:
    images = torch.full((4, 3, 10, 10), 0.3)
    boxes = torch.tensor([[0.5, 0.25, 3.7, 8.1], [8.9, 8.9, 1.1, 1.1], [3.5, 3.5, 1.0, 1.0], [0.0, 0.0, 10.0, 10.0]])
    assert largest_gap(views.crop_resize(images, boxes, 7), torch.full((4, 3, 7, 7), 0.3)) <= CROP_TOLERANCE


def test_uint8_input_equals_scaled_float_input() -> None:
    bytes_ = torch.randint(0, 256, (4, 3, 20, 20), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    boxes = random_boxes(4, 20, 20)
    floats = reference.to_dtype(bytes_, torch.float32, scale=True)
    assert largest_gap(views.crop_resize(bytes_, boxes, 12), reference_crop(floats, boxes, (12, 12))) <= CROP_TOLERANCE
    view = views.simclr_view(16)
    seeded = torch.Generator().manual_seed
    assert largest_gap(views.augment(bytes_, view, seeded(5)), views.augment(floats, view, seeded(5))) <= 1e-5


def hard_colours() -> Tensor:
    """Return images with grey, black, white, saturated and nearly grey pixels, where hue is delicate."""
    levels = torch.tensor([0.0, 1e-6, 1 / 255, 0.25, 0.5, 0.5 + 1e-6, 254 / 255, 1.0])
    cube = torch.cartesian_prod(levels, levels, levels).t().reshape(3, 16, 32)
    return torch.cat([cube.unsqueeze(0).repeat(4, 1, 1, 1), random_images(8, 16, 32, seed=3)])


@pytest.mark.parametrize("op", [BRIGHTNESS, CONTRAST, SATURATION, HUE])
def test_each_colour_operation_equals_torchvision(op: int) -> None:
    images = hard_colours()
    factors = torch.ones(4, 12)
    factors[HUE] = 0.0
    factors[op] = torch.linspace(-0.5, 0.5, 12) if op == HUE else torch.linspace(0.0, 2.5, 12)
    adjust = (
        reference.adjust_brightness,
        reference.adjust_contrast,
        reference.adjust_saturation,
        reference.adjust_hue,
    )[op]
    theirs = each(images, lambda image, i: adjust(image, float(factors[op, i])))
    assert largest_gap(jitter(images, torch.arange(4), factors), theirs) <= COLOUR_TOLERANCE


def jitter(images: Tensor, order: Tensor, factors: Tensor, flags: Tensor | None = None) -> Tensor:
    return views.color_jitter(images, order, factors[0], factors[1], factors[2], factors[3], flags)


def reference_jitter(image: Tensor, order: list[int], factors: list[float]) -> Tensor:
    for op in order:
        if op == BRIGHTNESS:
            image = reference.adjust_brightness(image, factors[op])
        elif op == CONTRAST:
            image = reference.adjust_contrast(image, factors[op])
        elif op == SATURATION:
            image = reference.adjust_saturation(image, factors[op])
        else:
            image = reference.adjust_hue(image, factors[op])
    return image


def test_jitter_in_all_24_orders_equals_torchvision_and_leaves_the_rest_alone() -> None:
    orders = torch.cartesian_prod(*[torch.arange(4)] * 4)
    orders = orders[(orders.sort(dim=1).values == torch.arange(4)).all(dim=1)].repeat(2, 1)
    images = random_images(48, 13, 17)
    u = torch.rand(4, 48, generator=torch.Generator().manual_seed(2))
    factors = torch.stack([0.2 + 1.6 * u[0], 0.2 + 1.6 * u[1], 0.2 + 1.6 * u[2], u[3] - 0.5])
    flags = torch.arange(48) % 5 != 0
    before = images.clone()
    ours = jitter(images, orders, factors, flags)
    theirs = each(images, lambda image, i: reference_jitter(image, orders[i].tolist(), factors[:, i].tolist()))
    assert largest_gap(ours[flags], theirs[flags]) <= COLOUR_TOLERANCE
    assert torch.equal(ours[~flags], images[~flags])
    assert torch.equal(images, before), "the input must not change"


@pytest.mark.parametrize("kernel,height,width", [(1, 8, 8), (3, 5, 9), (9, 31, 20), (23, 64, 64), (9, 5, 5)])
def test_blur_equals_torchvision(kernel: int, height: int, width: int) -> None:
    images = random_images(10, height, width)
    sigma = torch.linspace(0.1, 2.0, 10)
    flags = torch.arange(10) % 3 != 1
    ours = views.gaussian_blur(images, sigma, kernel, flags)
    theirs = each(images, lambda image, i: reference.gaussian_blur(image, [kernel, kernel], [float(sigma[i])] * 2))
    assert largest_gap(ours[flags], theirs[flags]) <= COLOUR_TOLERANCE
    assert torch.equal(ours[~flags], images[~flags])


def test_grayscale_solarize_and_flip_equal_torchvision() -> None:
    images = (random_images(6, 9, 12) * 255).round() / 255
    flags = torch.tensor([True, True, False, True, False, True])
    cases: list[tuple[Tensor, Callable[[Tensor], Tensor]]] = [
        (views.grayscale(images, flags), lambda image: reference.rgb_to_grayscale(image, 3)),
        (views.solarize(images, 128 / 255, flags), lambda image: reference.solarize(image, 128 / 255)),
        (views.hflip(images, flags), reference.horizontal_flip),
    ]
    for ours, change in cases:
        theirs = each(images, lambda image, i, change=change: change(image) if flags[i] else image)  # type: ignore[misc]
        assert largest_gap(ours, theirs) <= EXACT
    grey = views.grayscale(images, flags)[flags]
    assert torch.equal(grey[:, 0], grey[:, 1]) and torch.equal(grey[:, 0], grey[:, 2])


@pytest.mark.parametrize("view", [views.simclr_view(64), views.dino_global(40, second=True, blur=True)])
def test_a_whole_view_equals_torchvision_applied_in_order(view: ViewConfig) -> None:
    images = random_images(32, 50, 70)
    params = views.draw_view(32, 50, 70, view, torch.Generator().manual_seed(4))
    ours = views.apply_view(images, replace(view), params)

    def theirs(image: Tensor, i: int) -> Tensor:
        image = reference.resized_crop(image, *params.boxes[i].int().tolist(), [view.out_px] * 2, antialias=True)
        image = reference.horizontal_flip(image) if params.flip[i] else image
        if params.jitter[i]:
            image = reference_jitter(image, params.order[i].tolist(), params.factors[i].tolist())
        image = reference.rgb_to_grayscale(image, 3) if params.gray[i] else image
        if params.blur[i]:
            image = reference.gaussian_blur(image, [view.kernel_px] * 2, [float(params.sigma[i])] * 2)
        return reference.solarize(image, 128 / 255) if params.solarize[i] else image

    gap = (ours - each(images, theirs)).abs()
    # a value within rounding of the solarize threshold may fall on either side
    assert float((gap > 1e-5).float().mean()) <= (1e-4 if view.solarize_prob else 0.0)
    assert params.flip.any() and params.jitter.any() and params.gray.any() and params.blur.any()


def test_crop_parameters_follow_torchvision() -> None:
    height, width, count = 60, 90, 20_000
    boxes = views.random_resized_crop_params(
        count, height, width, (0.08, 1.0), (3 / 4, 4 / 3), torch.Generator().manual_seed(0)
    )
    top, left, h, w = boxes.unbind(1)
    assert torch.equal(boxes, boxes.round())
    assert bool(((top >= 0) & (left >= 0) & (h >= 1) & (w >= 1) & (top + h <= height) & (left + w <= width)).all())
    theirs = transforms.RandomResizedCrop(8)
    torch.manual_seed(0)
    drawn = [theirs.make_params([torch.empty(3, height, width)]) for _ in range(4000)]
    other = torch.tensor([[p["top"], p["left"], p["height"], p["width"]] for p in drawn]).float()
    # 5 standard errors of the smaller sample
    for ours_column, their_column in zip(
        (*boxes.unbind(1), h * w), (*other.unbind(1), other[:, 2] * other[:, 3]), strict=True
    ):
        error = float(their_column.std()) / 4000**0.5
        assert abs(float(ours_column.mean() - their_column.mean())) <= 5 * error
        assert abs(float(ours_column.std() / their_column.std()) - 1) <= 0.06


def test_crop_area_and_shape_stay_in_their_bounds() -> None:
    boxes = views.random_resized_crop_params(
        5000, 400, 400, (0.2, 0.6), (3 / 4, 4 / 3), torch.Generator().manual_seed(1)
    )
    area, shape = boxes[:, 2] * boxes[:, 3] / 400**2, boxes[:, 3] / boxes[:, 2]
    assert 0.198 <= float(area.min()) and float(area.max()) <= 0.602
    assert abs(float(area.mean()) - 0.4) <= 0.01
    assert 0.745 <= float(shape.min()) and float(shape.max()) <= 1.342
    assert abs(float(shape.log().mean())) <= 0.02


@pytest.mark.parametrize("height,width", [(10, 400), (400, 10), (30, 30)])
def test_crops_that_never_fit_fall_back_to_the_centre(height: int, width: int) -> None:
    theirs = transforms.RandomResizedCrop(8, scale=(1.0, 1.0), ratio=(0.9, 0.95) if height == width else (3 / 4, 4 / 3))
    expected = theirs.make_params([torch.empty(3, height, width)])
    boxes = views.random_resized_crop_params(7, height, width, (1.0, 1.0), tuple(theirs.ratio))
    assert boxes.tolist() == [[expected[k] for k in ("top", "left", "height", "width")]] * 7


def test_views_are_a_function_of_the_seed() -> None:
    images, view = random_images(16, 40, 40), views.simclr_view(64, blur=True)
    torch.manual_seed(3)
    first, second = views.augment(images, view), views.augment(images, view)
    torch.manual_seed(3)
    assert torch.equal(views.augment(images, view), first)
    assert not torch.equal(first, second)
    before = torch.random.get_rng_state()
    explicit = [views.augment(images, view, torch.Generator().manual_seed(3)) for _ in range(2)]
    assert torch.equal(explicit[0], explicit[1]) and torch.equal(explicit[0], first)
    assert torch.equal(before, torch.random.get_rng_state()), "an explicit generator leaves the global one alone"


def test_number_of_draws_does_not_depend_on_the_view() -> None:
    after = []
    for view in (views.plain_view(8), views.simclr_view(64, 1.0), views.dino_global(20, second=True, blur=True)):
        generator = torch.Generator().manual_seed(0)
        views.augment(random_images(5, 30, 30), view, generator)
        after.append(generator.get_state())
    assert torch.equal(after[0], after[1]) and torch.equal(after[0], after[2])


def test_probabilities_are_met() -> None:
    view = replace(views.simclr_view(64, 1.0), solarize_prob=0.3)
    params = views.draw_view(20_000, 64, 64, view, torch.Generator().manual_seed(0))
    for flags, wanted in (
        (params.flip, 0.5),
        (params.jitter, 0.8),
        (params.gray, 0.2),
        (params.blur, 0.5),
        (params.solarize, 0.3),
    ):
        assert abs(float(flags.float().mean()) - wanted) <= 0.015
    low, high = params.factors.amin(dim=0), params.factors.amax(dim=0)
    assert torch.allclose(low, torch.tensor([0.2, 0.2, 0.2, -0.2]), atol=5e-3)
    assert torch.allclose(high, torch.tensor([1.8, 1.8, 1.8, 0.2]), atol=5e-3)
    assert 0.1 <= float(params.sigma.min()) and float(params.sigma.max()) <= 2.0
    first_place = torch.bincount(params.order[:, 0], minlength=4) / 20_000
    assert float((first_place - 0.25).abs().max()) <= 0.02


def test_multi_crop_gives_one_batch_per_view_in_range() -> None:
    images = torch.randint(0, 256, (6, 3, 40, 56), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    configs = [views.dino_global(32), views.dino_global(32, second=True), *[views.dino_local(16)] * 3]
    crops = views.multi_crop(images, configs, torch.Generator().manual_seed(1))
    assert [tuple(crop.shape) for crop in crops] == [(6, 3, 32, 32)] * 2 + [(6, 3, 16, 16)] * 3
    for crop in crops:
        assert crop.dtype == torch.float32 and crop.is_contiguous()
        assert 0.0 <= float(crop.min()) and float(crop.max()) <= 1.0
    generator = torch.Generator().manual_seed(1)
    for crop, config in zip(crops, configs, strict=True):
        assert torch.equal(crop, views.augment(images, config, generator))


def test_presets_hold_the_published_values() -> None:
    full = views.simclr_view(224, strength=1.0)
    assert (full.scale, full.gray_prob, full.jitter_prob, full.blur_prob) == ((0.08, 1.0), 0.2, 0.8, 0.5)
    assert (full.brightness, full.contrast, full.saturation, full.hue) == (0.8, 0.8, 0.8, 0.2)
    assert full.kernel_px == 23
    assert [views.simclr_view(px).blur_prob for px in (32, 48, 49, 96)] == [0.0, 0.0, 0.5, 0.5]
    first, second = views.dino_global(224), views.dino_global(224, second=True)
    assert (first.blur_prob, first.solarize_prob, second.blur_prob, second.solarize_prob) == (1.0, 0.0, 0.1, 0.2)
    assert (first.brightness, first.contrast, first.saturation, first.hue) == (0.4, 0.4, 0.2, 0.1)
    assert views.dino_local(96).scale == (0.05, 0.4) and views.dino_local(96).blur_prob == 0.5
    plain = views.plain_view(32)
    images = random_images(4, 32, 32)
    params = views.draw_view(4, 32, 32, plain, torch.Generator().manual_seed(0))
    only_cropped = views.crop_resize(images, params.boxes, 32, flip=params.flip)
    assert largest_gap(views.apply_view(images, plain, params), only_cropped) <= EXACT


@pytest.mark.parametrize(
    "images,message",
    [
        (torch.zeros(3, 8, 8), "shape"),
        (torch.zeros(2, 4, 8, 8), "3 channels"),
        (torch.zeros(2, 8, 8, 3), "channels first"),
        (torch.zeros(2, 3, 0, 8), "pixels"),
        (torch.zeros(2, 3, 8, 8, dtype=torch.int64), "uint8 or float"),
        (torch.full((2, 3, 8, 8), 255.0), "divide"),
        (torch.full((2, 3, 8, 8), -0.5), "lie in"),
        (torch.full((2, 3, 8, 8), float("nan")), "lie in"),
        ([1, 2, 3], "tensor"),
    ],
)
def test_wrong_images_are_refused(images: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        views.augment(images, views.plain_view(8))
    with pytest.raises(ValueError, match=message):
        views.multi_crop(images, [views.plain_view(8)])


def test_wrong_parameters_are_refused() -> None:
    images, ones = random_images(2, 8, 8), torch.ones(2)
    order = torch.arange(4)
    calls: list[tuple[Callable[[], object], str]] = [
        (lambda: views.crop_resize(images, torch.tensor([[0, 0, 8, 8]]), 4), "boxes"),
        (lambda: views.crop_resize(images, torch.tensor([[0, 0, 8, 8], [1, 0, 8, 8]]), 4), "inside"),
        (lambda: views.crop_resize(images, torch.tensor([[0, 0, 8, 8], [0, 0, 0, 8]]), 4), "inside"),
        (lambda: views.crop_resize(images, torch.tensor([[0, 0, 8, 8]] * 2), 0), "out_px"),
        (lambda: views.gaussian_blur(images, ones, 4), "odd"),
        (lambda: views.gaussian_blur(images, ones, 17), "too wide"),
        (lambda: views.gaussian_blur(images, 0 * ones, 3), "positive"),
        (lambda: views.solarize(images, 1.5, ones.bool()), "threshold"),
        (lambda: views.hflip(images, torch.ones(3).bool()), "flags"),
        (lambda: views.color_jitter(images, torch.tensor([0, 1, 2, 2]), ones, ones, ones, 0 * ones), "permute"),
        (lambda: views.color_jitter(images, order, -ones, ones, ones, 0 * ones), "negative"),
        (lambda: views.color_jitter(images, order, ones, ones, ones, 0.6 * ones), "hue"),
        (lambda: views.random_resized_crop_params(2, 0, 5, (0.1, 1), (1, 1)), "pixels"),
    ]
    for call, message in calls:
        with pytest.raises(ValueError, match=message):
            call()


@pytest.mark.parametrize(
    "fields",
    [
        {"out_px": 0},
        {"scale": (0.0, 1.0)},
        {"scale": (0.5, 0.2)},
        {"ratio": (2.0, 1.0)},
        {"hue": 0.7},
        {"contrast": -0.1},
        {"gray_prob": 1.2},
        {"blur_sigma": (0.0, 1.0)},
        {"blur_kernel_px": 4, "blur_prob": 0.5},
        {"blur_kernel_px": 99, "blur_prob": 0.5},
    ],
)
def test_impossible_views_are_refused(fields: dict[str, float]) -> None:
    with pytest.raises(ValueError):
        ViewConfig(**{"out_px": 32, **fields})  # type: ignore[arg-type]


def test_an_empty_batch_gives_an_empty_batch() -> None:
    out = views.augment(torch.zeros(0, 3, 20, 20, dtype=torch.uint8), views.simclr_view(64))
    assert out.shape == (0, 3, 64, 64)
