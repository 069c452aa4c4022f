"""Random crops, against slices that PyTorch's own functions resize one by one."""

import pytest
import torch
import torch.nn.functional as F

from doodl_cli.guidance.crops import POWER, cut, resizing
from doodl_cli.optimize.noise import make_generators


def cut_one_by_one(images, n, size, generators, smallest):
    """Return the crops by their definition: the paper's side, a uniform place, resized."""
    height, width = images.shape[-2:]
    for image, generator in zip(images, generators, strict=True):
        for of_side, of_top, of_left in torch.rand(n, 3, generator=generator).tolist():
            side = round(of_side**POWER * (min(height, width) - smallest) + smallest)
            top, left = round(of_top * (height - side)), round(of_left * (width - side))
            crop = image[None, :, top : top + side, left : left + side]
            if side >= size:
                yield F.adaptive_avg_pool2d(crop, size)
            else:
                yield F.interpolate(crop, (size, size), mode="bilinear", align_corners=False)


@pytest.mark.parametrize(
    ("shape", "size", "smallest"),
    [((64, 64), 64, 48), ((40, 28), 17, 17), ((48, 64), 20, 20), ((24, 24), 60, 18)],
)
def test_crops_and_their_gradient_are_those_of_resized_slices(shape, size, smallest):
    images = torch.rand(3, 3, *shape, dtype=torch.float64, requires_grad=True)
    seeds = [4, 5, 6]
    crops = cut(images, 5, size, make_generators(seeds, "optimize"))
    slices = cut_one_by_one(images, 5, size, make_generators(seeds, "optimize"), smallest)
    expected = torch.cat(list(slices))
    assert crops.shape == (15, 3, size, size)
    torch.testing.assert_close(crops, expected, rtol=0, atol=1e-12)
    weights = torch.rand_like(crops)
    (slope,) = torch.autograd.grad((crops * weights).sum(), images)
    (expected_slope,) = torch.autograd.grad((expected * weights).sum(), images)
    torch.testing.assert_close(slope, expected_slope, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("side", "size"), [(9, 9), (9, 4), (9, 16), (1, 5)])
def test_resizing_keeps_a_constant_and_sees_nothing_outside(side, size):
    rows = resizing(torch.tensor(3.0), torch.tensor(float(side)), 20, size)
    assert rows.shape == (size, 20)
    torch.testing.assert_close(rows.sum(1), torch.ones(size))
    outside = torch.cat((rows[:, :3], rows[:, 3 + side :]), 1)
    assert (outside == 0).all()
