"""What is read off pictures without a judge, on pictures whose answer is known."""

import pytest
import torch
from torch import nn

from doodl_cli.bench.checks import BACKGROUNDS, check, cut_half, read_border, share_held

COLOURS = {"cat": (255, 0, 0), "dog": (0, 255, 0), "sun": (0, 0, 255)}


class ByColour:
    """A classifier of three classes, each a colour: what most of the picture is, and how surely."""

    def __init__(self, colours=COLOURS, sure=1.0):
        self.labels, self.colours, self.sure = list(colours), colours, sure
        self.network = nn.Linear(1, 1)

    def log_probabilities(self, images):
        means = ((images + 1) / 2).mean((2, 3))
        table = torch.tensor(list(self.colours.values())).float() / 255
        return (-self.sure * (means[:, None] - table).norm(dim=2)).log_softmax(1)


def paint(background="white", size=64, **places):
    image = torch.tensor(BACKGROUNDS[background])[:, None, None].expand(3, size, size).clone()
    at = {"top": (0, 16), "bottom": (32, 16), "left": (16, 0), "right": (16, 32)}
    for place, name in places.items():
        y, x = at[place]
        image[:, y : y + 32, x : x + 32] = torch.tensor(COLOURS[name])[:, None, None]
    return image.to(torch.uint8)


@pytest.mark.parametrize("size", [64, 512])
@pytest.mark.parametrize("word", BACKGROUNDS)
def test_a_background_is_read_off_the_border_whatever_is_in_the_middle(word, size):
    image = paint(word, size)
    image[:, size // 4 : -size // 4, size // 4 : -size // 4] = 77
    image[:, :2, : size // 4] = 0  # less than half of the border
    assert read_border(image) == word


def test_the_halves_of_a_picture_are_squares_of_half_its_side():
    image = torch.arange(64).expand(3, 64, 64)
    assert cut_half(image, "left")[0, 0].tolist() == list(range(32))
    assert cut_half(image, "top").shape == (3, 32, 32)
    assert cut_half(image, "bottom")[0, 0].tolist() == list(range(16, 48))


@pytest.mark.parametrize(
    ("wanted", "held"),
    [
        ({"top": "cat", "bottom": "dog"}, {"top": 1, "bottom": 1}),
        ({"top": "dog", "bottom": "dog"}, {"top": 0, "bottom": 1}),
        ({"background": "pink"}, {"background": 1}),
        ({"background": "red", "top": "cat"}, {"background": 0, "top": 1}),
    ],
)
def test_what_is_where_is_checked_one_by_one(wanted, held):
    image = paint("pink", top="cat", bottom="dog")
    assert check([wanted], [image], [ByColour()]) == [held]
    assert share_held(held) == pytest.approx(sum(held.values()) / len(held))


def test_sides_may_be_in_any_order_and_a_class_fills_the_picture():
    image = paint("white", left="dog", right="cat")
    assert check([{"sides": ["cat", "dog"]}], [image], [ByColour()]) == [{"sides": 1}]
    assert check([{"sides": ["cat", "sun"]}], [image], [ByColour()]) == [{"sides": 0}]
    assert check([{"class": "sun"}], [paint("dark blue")], [ByColour()]) == [{"class": 1}]


def test_each_picture_is_checked_for_its_own(monkeypatch):
    monkeypatch.setattr("doodl_cli.bench.metrics.AT_A_TIME", 2)
    images = [paint("pink", top="cat", bottom="dog"), paint("white", left="dog", right="cat"),
              paint("dark blue"), paint("red", top="sun", bottom="cat")]  # fmt: skip
    wanted = [{"top": "cat", "bottom": "sun"}, {"sides": ["dog", "cat"]}, {},
              {"background": "red", "bottom": "cat"}]  # fmt: skip
    held = [{"top": 1, "bottom": 0}, {"sides": 1}, {}, {"background": 1, "bottom": 1}]
    assert check(wanted, images, [ByColour()]) == held
    assert check([{}], images[:1], [ByColour()]) == [{}]


def test_of_classifiers_that_differ_the_surer_one_is_right():
    astray = ByColour(dict(zip(COLOURS, reversed(COLOURS.values()), strict=True)), sure=0.1)
    images = [paint(top="cat", bottom="sun")]
    wanted = [{"top": "cat", "bottom": "sun"}]
    assert check(wanted, images, [astray]) == [{"top": 0, "bottom": 0}]
    for classifiers in ([ByColour(), astray], [astray, ByColour()]):
        assert check(wanted, images, classifiers) == [{"top": 1, "bottom": 1}]
