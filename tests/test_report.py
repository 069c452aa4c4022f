"""One page and one table of many runs, which need nothing but the run directories."""

import csv
import json
import re
from base64 import b64decode
from html.parser import HTMLParser
from io import BytesIO
from pathlib import Path

import pytest
from PIL import Image

from doodl_cli.cli import main
from doodl_cli.commands.report import choose_settings
from doodl_cli.report import collect, draw_page, find_runs
from doodl_cli.report.page import FEW
from tests.test_run_directory import N_ITERS, PROMPT, make_record, open_directory, write_run


class Page(HTMLParser):
    """The cells of the page's table and what its elements refer to."""

    def __init__(self, text):
        super().__init__()
        self.rows, self.links, self.tags = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.links += [value for name, value in attributes if name in ("src", "href")]
        if tag == "tr":
            self.rows.append([])
        if tag in ("th", "td"):
            self.rows[-1].append("")

    def handle_data(self, data):
        if self.rows and self.rows[-1]:
            self.rows[-1][-1] += data


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    """Return a folder of a run that is done, one that failed and one without metadata."""
    folder = tmp_path_factory.mktemp("sweep")
    write_run(folder / "2")
    with pytest.raises(RuntimeError), open_directory(folder / "10") as directory:
        directory.add(make_record(0))
        raise RuntimeError("out of <memory>")
    with pytest.raises(RuntimeError), open_directory(folder / "11"):
        raise RuntimeError("too early")
    (folder / "12").mkdir()
    (folder / "12/config.yaml").write_text("sampler: [")
    return folder


@pytest.fixture(scope="module")
def page(sweep):
    assert main(["report", str(sweep)]) == 0
    return (sweep / "report.html").read_text(encoding="utf-8")


def test_the_page_is_one_file_that_refers_to_nothing_outside(page):
    parsed = Page(page)
    assert parsed.links
    assert all(link.startswith("data:image/") for link in parsed.links)
    assert not re.search(r"https?://|@import|url\(|fetch\(", page)
    assert "link" not in parsed.tags


def test_a_row_shows_a_sample_with_its_pictures_curves_and_scores(page):
    rows = Page(page).rows
    head, first = rows[0], dict(zip(rows[0], rows[1], strict=True))
    assert head[:5] == ["run", "sample", "status", "prompt", "seed"]
    assert first["sample"] == "000"
    assert first["status"] == "done"
    assert first["prompt"] == PROMPT
    assert first["aesthetic\nbest"] == "2"
    assert first["clip_text_b (held out)\ngain"] == "0.1"
    assert first["sampler.name"] == "bdia"
    assert Page(page).tags.count("polyline") == 12  # 4 samples with loss and two scores
    assert page.count('alt="initial"') == page.count('alt="best"') == 4


def test_a_failed_run_is_shown_with_its_cause(page):
    statuses = [row[2] for row in Page(page).rows[1:]]
    assert statuses[:4] == ["done", "done", *["failedRuntimeError: out of <memory>"] * 2]
    assert statuses[4:6] == ["failedRuntimeError: too early"] * 2
    assert statuses[6] == "failedmetadata.json cannot be read"


def test_the_table_has_a_line_a_sample_with_every_setting_and_score(sweep, page):
    with (sweep / "results.csv").open(encoding="utf-8", newline="") as file:
        lines = list(csv.DictReader(file))
    assert [Path(line["run"]).name for line in lines] == [*("2", "2", "10", "10", "11", "11"), "12"]
    first = lines[0]
    assert first["prompt"] == PROMPT
    assert (first["seed"], first["best_iteration"]) == ("3", "1")
    assert float(first["aesthetic.final"]) == 1 + N_ITERS
    assert float(first["held_out.clip_text_b.best"]) == 0.1
    assert first["set.optimizer.lr"] == "1.0"
    assert lines[2]["cause"] == "RuntimeError: out of <memory>"
    assert lines[6]["aesthetic.best"] == ""


def test_a_history_cut_in_the_middle_of_a_line_is_shown_as_far_as_it_goes(tmp_path):
    run = write_run(tmp_path / "run")
    with (run / "history.jsonl").open("a") as file:
        file.write('{"sample": 0, "iter')
    assert len(collect(run)[0].curves["loss"]) == N_ITERS + 1


def test_pictures_are_exact_in_a_short_table_and_compressed_in_a_long_one(tmp_path):
    rows = collect(write_run(tmp_path / "run"))
    short, long = draw_page(rows, []), draw_page(rows * FEW, [])
    assert short.count("data:image/png;") == 2 * len(rows)
    assert long.count("data:image/webp;") == 2 * len(rows) * FEW
    picture = Image.open(BytesIO(b64decode(re.search(r"image/png;base64,([^\"]+)", short)[1])))
    original = Image.open(rows[0].folder / "initial.png")
    assert picture.size == original.size
    assert picture.tobytes() == original.tobytes()


def test_settings_that_differ_get_a_column(tmp_path):
    rows = [row for name in "ab" for row in collect(write_run(tmp_path / name))]
    assert "optimizer.clip" not in choose_settings(rows)
    rows[0].settings["optimizer.clip"] = 7
    assert choose_settings(rows)[0] == "optimizer.clip"


def test_several_folders_are_reported_in_the_current_one(sweep, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["report", str(sweep / "2"), str(sweep)]) == 0
    assert capsys.readouterr().out.splitlines() == ["report.html", "results.csv"]
    assert len((tmp_path / "results.csv").read_text().split("bdia")) == 7
    assert find_runs(sweep / "2") == [sweep / "2"]


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ([], "must be given run directories"),
        (["nowhere"], "nowhere: must be a run directory or a folder of them"),
        (["."], ".: holds no run directory"),
    ],
)
def test_what_is_no_run_exits_2_with_one_line(words, line, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["report", *words]) == 2
    err = capsys.readouterr().err
    assert line in err
    assert err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_metadata_says_why_a_run_failed(sweep):
    assert json.loads((sweep / "10/metadata.json").read_text())["error"] == (
        "RuntimeError: out of <memory>"
    )
