"""What is read off pictures without a judge, on pictures whose answer is known."""

import pytest
import torch
from torch import nn

from doodl_cli.bench.checks import (
    BACKGROUNDS,
    check,
    cut_half,
    look,
    measure_presence,
    read_border,
    share_held,
)

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


def check_by(classifiers, wanted, images):
    return check(wanted, images, look(wanted, images, classifiers))


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
    assert check_by([ByColour()], [wanted], [image]) == [held]
    assert share_held(held) == pytest.approx(sum(held.values()) / len(held))


def test_sides_may_be_in_any_order_and_a_class_fills_the_picture():
    image = paint("white", left="dog", right="cat")
    assert check_by([ByColour()], [{"sides": ["cat", "dog"]}], [image]) == [{"sides": 1}]
    assert check_by([ByColour()], [{"sides": ["cat", "sun"]}], [image]) == [{"sides": 0}]
    assert check_by([ByColour()], [{"class": "sun"}], [paint("dark blue")]) == [{"class": 1}]


def test_each_picture_is_checked_for_its_own(monkeypatch):
    monkeypatch.setattr("doodl_cli.bench.metrics.AT_A_TIME", 2)
    images = [paint("pink", top="cat", bottom="dog"), paint("white", left="dog", right="cat"),
              paint("dark blue"), paint("red", top="sun", bottom="cat")]  # fmt: skip
    wanted = [{"top": "cat", "bottom": "sun"}, {"sides": ["dog", "cat"]}, {},
              {"background": "red", "bottom": "cat"}]  # fmt: skip
    held = [{"top": 1, "bottom": 0}, {"sides": 1}, {}, {"background": 1, "bottom": 1}]
    assert check_by([ByColour()], wanted, images) == held
    assert check_by([ByColour()], [{}], images[:1]) == [{}]


def test_of_classifiers_that_differ_the_surer_one_is_right():
    astray = ByColour(dict(zip(COLOURS, reversed(COLOURS.values()), strict=True)), sure=0.1)
    images = [paint(top="cat", bottom="sun")]
    wanted = [{"top": "cat", "bottom": "sun"}]
    assert check_by([astray], wanted, images) == [{"top": 0, "bottom": 0}]
    for classifiers in ([ByColour(), astray], [astray, ByColour()]):
        assert check_by(classifiers, wanted, images) == [{"top": 1, "bottom": 1}]


def test_presence_is_the_probability_of_what_is_wanted_where_it_should_be():
    classifier = ByColour(sure=2.0)
    image = paint("pink", top="cat", bottom="dog")
    wanted = [{"top": "cat", "bottom": "sun", "background": "red"}, {"background": "pink"}, {}]
    seen = look(wanted, [image] * 3, [classifier])
    colours = torch.tensor([COLOURS["cat"], COLOURS["dog"]])[:, :, None, None] / 255
    by_hand = classifier.log_probabilities(2 * colours - 1).exp()
    found = measure_presence(wanted, seen)
    assert found == [pytest.approx(float(by_hand[0, 0] + by_hand[1, 2]) / 2, abs=1e-6), None, None]


def test_presence_of_sides_is_that_of_the_likelier_order():
    image = paint(left="dog", right="cat")
    wanted = [{"sides": ["cat", "dog"]}, {"sides": ["dog", "cat"]}, {"sides": ["cat", "sun"]}]
    first, second, lacking = measure_presence(wanted, look(wanted, [image] * 3, [ByColour()]))
    assert first == pytest.approx(second)
    assert lacking < first < 1


def test_of_several_classifiers_the_mean_probability_is_seen():
    classifiers = [ByColour(sure=3.0), ByColour(sure=0.3)]
    wanted, images = [{"class": "sun"}], [paint("dark blue")]
    each = [measure_presence(wanted, look(wanted, images, [x]))[0] for x in classifiers]
    both = measure_presence(wanted, look(wanted, images, classifiers))[0]
    assert both == pytest.approx(sum(each) / 2)


def test_a_class_that_no_classifier_knows_is_never_present():
    wanted, images = [{"top": "zebra", "bottom": "dog"}], [paint(top="cat", bottom="dog")]
    seen = look(wanted, images, [ByColour(sure=50.0)])
    assert check(wanted, images, seen) == [{"top": 0, "bottom": 1}]
    assert measure_presence(wanted, seen) == [pytest.approx(0.5)]
