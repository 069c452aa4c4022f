"""The report as a browser shows it, from the disk and without network."""

import pytest

from doodl_cli.cli import main
from tests.browser import CHROMIUM, browser
from tests.test_report import sweep  # noqa: F401

pytest.importorskip("websocket")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")

COLUMN = (
    "[...document.querySelectorAll('tbody tr')].filter(row => !row.hidden)"
    ".map(row => row.cells[{}].innerText)"
)
AESTHETIC_BEST = "[...document.querySelectorAll('th')].findIndex(x => x.innerText.match({}))"


@pytest.fixture(scope="module")
def page(sweep, tmp_path_factory):  # noqa: F811
    assert main(["report", str(sweep)]) == 0
    with browser(tmp_path_factory.mktemp("profile")) as page:
        page.open(sweep / "report.html")
        yield page


@pytest.fixture
def index(page):
    """The column of the best aesthetic score."""
    return page.ask(AESTHETIC_BEST.format("/^aesthetic\\s+best/"))


def column(page, index):
    return page.ask(COLUMN.format(index))


def test_pictures_are_there_as_large_as_the_rows_are_high(page):
    sizes = page.ask(
        "[...document.images].map(x => [x.naturalWidth, x.naturalHeight, x.offsetWidth])"
    )
    assert sizes == [[64, 64, 128]] * 8
    heights = page.ask("[...document.querySelectorAll('tbody tr')].map(x => x.offsetHeight)")
    assert max(heights) < 200


def test_curves_are_drawn_inside_their_frames(page):
    curves = page.ask(
        "[...document.querySelectorAll('svg')].map(svg => {"
        " const line = svg.querySelector('polyline').getBoundingClientRect(),"
        " frame = svg.getBoundingClientRect();"
        " return [line.width, line.left >= frame.left && line.right <= frame.right"
        " && line.top >= frame.top && line.bottom <= frame.bottom] })"
    )
    assert len(curves) == 12
    assert all(inside for _, inside in curves)
    assert [width for width, _ in curves[:6]] == [pytest.approx(144, abs=1)] * 6


def test_a_click_on_a_column_sorts_by_its_numbers_and_another_turns_it_round(page, index):
    page.click(f"th:nth-child({index + 1})")
    up = column(page, index)
    numbers = [float(text) for text in up if text]
    assert numbers == sorted(numbers)
    assert len(numbers) == 4
    assert up[4:] == [""] * 3
    page.click(f"th:nth-child({index + 1})")
    assert column(page, index) == [*(f"{x:.4g}" for x in numbers[::-1]), *[""] * 3]


def test_what_is_typed_filters_the_rows(page):
    page.click("#filter")
    page.type("FAILED memory")
    assert [text.split()[0] for text in column(page, 2)] == ["failed"] * 2
    assert (
        page.ask("document.querySelector('#shown').innerText") == "2 shown of 7 samples of 4 runs"
    )
    page.ask("filter.select()")
    page.type("no such words")
    assert column(page, 2) == []
    page.ask("filter.select()")
    page.type(" ")
    assert len(column(page, 2)) == 7


def test_nothing_is_complained_about_and_nothing_asked_of_the_network(page, sweep):  # noqa: F811
    assert page.complaints == []
    asked = [url for url in page.requests if not url.startswith("data:image/")]
    assert asked == [(sweep / "report.html").as_uri()]
