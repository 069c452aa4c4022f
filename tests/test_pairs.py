"""Human judgement: the page of blind pairs as a browser shows it, and the tally of its answers."""

import base64
import json
import time

import numpy as np
import pytest
from PIL import Image

from doodl_cli.bench.pairs import Pair, draw_pairs_page
from doodl_cli.bench.statistics import bootstrap_mean
from doodl_cli.bench.tally import read_answers, tally
from doodl_cli.cli import main
from tests.browser import CHROMIUM, browser

N = 6


@pytest.fixture
def pairs(tmp_path):
    rng = np.random.default_rng(0)
    made = []
    for k in range(N):
        pictures = {}
        for method in ("doodl", "one_step"):
            path = tmp_path / f"{method}-{k}.png"
            Image.fromarray(rng.integers(0, 255, (8, 8, 3), np.uint8)).save(path)
            pictures[method] = path
        made.append(Pair(f"complex/0-{k}", f"complex/{k}", f"</script> & “{k}”", pictures))
    return made


def read_study(page):
    text = page.partition('<script id="study" type="application/json">')[2].partition("</script>")
    return json.loads(text[0])


def test_the_page_shows_no_method_and_refers_to_nothing_outside(pairs):
    page, n_equal = draw_pairs_page(pairs, 0, N)
    assert n_equal == 0
    assert "doodl-" not in page.replace("doodl-pairs-", "")
    assert "one_step" not in page
    assert "http" not in page
    study = read_study(page)
    assert {pair["question"] for pair in study["pairs"]} == {pair.question for pair in pairs}


def test_sides_and_order_are_shuffled_by_the_seed(pairs):
    pages = [read_study(draw_pairs_page(pairs, seed, N)[0]) for seed in (0, 0, 1)]
    assert pages[0] == pages[1]
    assert pages[0]["id"] != pages[2]["id"]
    sides = [json.loads(base64.b64decode(page["sealed"])) for page in pages]
    left = {side["left"] for side in sides[0].values()}
    assert left == {"doodl", "one_step"}
    assert [p["question"] for p in pages[0]["pairs"]] != [pair.question for pair in pairs]
    assert len(read_study(draw_pairs_page(pairs, 0, 2)[0])["pairs"]) == 2


def test_pairs_of_equal_pictures_are_not_asked_about_others_are(pairs):
    for pair in pairs[: N - 2]:
        pair.pictures["one_step"].write_bytes(pair.pictures["doodl"].read_bytes())
    page, n_equal = draw_pairs_page(pairs, 0, N)
    assert (len(read_study(page)["pairs"]), n_equal) == (2, N - 2)
    assert len(read_study(draw_pairs_page(pairs, 0, 2)[0])["pairs"]) == 2


@pytest.fixture
def opened(pairs, tmp_path):
    pytest.importorskip("websocket")
    if CHROMIUM is None:
        pytest.skip("no Chromium on this machine")
    path = tmp_path / "pairs.html"
    path.write_text(draw_pairs_page(pairs, 0, N)[0], encoding="utf-8")
    with browser(tmp_path / "profile") as page:
        page.open(path)
        page.save_downloads_to(tmp_path / "saved")
        yield page, path


def counted(page):
    return page.ask("document.querySelector('#count').textContent")


def test_answers_by_key_and_click_are_kept_and_saved(opened, tmp_path):
    page, path = opened
    assert counted(page) == f"0 of {N} answered"
    assert page.ask("document.querySelector('#left img').naturalWidth") == 8
    page.press("ArrowLeft")
    page.press("ArrowDown")
    page.press("Backspace")
    page.click("#right")
    assert counted(page) == f"2 of {N} answered"

    page.open(path)  # the browser keeps the answers
    assert counted(page) == f"2 of {N} answered"
    page.click("#rater")
    page.type("Ada L.")
    for _ in range(N - 2):
        page.click("#tie")
    assert page.ask("[task.hidden, over.hidden]") == [True, False]
    page.press("ArrowLeft")  # nothing is left to answer
    page.click("#save")
    saved = tmp_path / "saved/answers-Ada-L-.json"
    until = time.monotonic() + 10
    while not saved.exists() and time.monotonic() < until:
        time.sleep(0.05)

    study = read_study(path.read_text(encoding="utf-8"))
    sides = json.loads(base64.b64decode(study["sealed"]))
    content = json.loads(saved.read_text())
    assert (content["study"], content["rater"]) == (study["id"], "Ada L.")
    given = [answer["choice"] for answer in content["answers"]]
    assert given == ["left", "right", *["tie"] * (N - 2)]
    for pair, answer in zip(study["pairs"], content["answers"], strict=True):
        assert answer["pair"] == pair["id"]
        assert answer["left"] == sides[pair["id"]]["left"]
        assert answer["unit"] == sides[pair["id"]]["unit"]
    preferred = list(read_answers(str(saved)).preferred.values())
    assert preferred[:2] == [content["answers"][0]["left"], content["answers"][1]["right"]]
    assert page.complaints == []
    asked = [url for url in page.requests if not url.startswith(("data:image/", "blob:"))]
    assert set(asked) == {path.as_uri()}


def save(path, rater, choices, study="s", n_seeds=1):
    answers = [
        {"pair": str(k), "unit": str(k // n_seeds), "left": "one_step", "right": "doodl",
         "choice": choice}
        for k, choice in enumerate(choices)
        if choice
    ]  # fmt: skip
    path.write_text(json.dumps({"study": study, "rater": rater, "answers": answers}))
    return str(path)


def test_a_tally_counts_the_mean_over_pairs_and_a_tie_half(tmp_path):
    files = [
        save(tmp_path / "a.json", "a", ["right", "right", "left", "tie"]),
        save(tmp_path / "b.json", "b", ["right", "left", "", "tie"]),
    ]
    found = tally([read_answers(file) for file in files], "doodl")
    assert found.methods == ("doodl", "one_step")
    assert found.wins.mean == (1 + 0.5 + 0 + 0.5) / 4
    assert (found.n_pairs, found.n_ties, found.raters) == (4, 2, ["a", "b"])
    assert found.same == pytest.approx(2 / 3)


def test_pairs_of_one_prompt_are_one_value_of_a_tally(tmp_path):
    """Three seeds of two prompts, the second answered for one seed alone, are two values."""
    file = save(tmp_path / "a.json", "a", ["right", "right", "left", "left", "", ""], n_seeds=3)
    found = tally([read_answers(file)], "doodl")
    assert (found.n_pairs, found.n_units) == (4, 2)
    assert found.wins == bootstrap_mean([2 / 3, 0])


def test_the_command_prints_win_rates_and_agreement(tmp_path, capsys):
    files = [save(tmp_path / f"{name}.json", name, ["right"] * 5 + ["left"]) for name in "ab"]
    assert main(["bench", "tally", *files]) == 0
    out = capsys.readouterr().out.splitlines()
    assert out[0].startswith("doodl over one_step: 83.3% [")
    assert out[1] == "6 pairs of 6 prompts, 12 answers, 0 ties"
    assert out[3] == "two raters agree on 100.0%; Krippendorff's alpha 1.00"


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["bench", "tally"], "tally: must be given files of answers"),
        (["bench", "tally", "no.json"], "no.json: cannot be read (No such file or directory)"),
        (["bench", "tally", "list.json"], "list.json: is damaged or something else"),
        (["bench", "tally", "choice.json"], "choice.json: is damaged or something else"),
        (["bench", "tally", "none.json"], "none.json: holds no answer"),
        (["bench", "tally", "a.json", "a.json"], "tally: two files of one rater, 'a'"),
        (["bench", "tally", "a.json", "other.json"], "tally: answers of several pages"),
        (["bench", "pairs"], "pairs: must be given the folder of one bench"),
        (["bench", "pairs", "nowhere"], "nowhere: must be the folder of a bench"),
        (["bench", "pairs", "x", "metods=a"], "metods=a: unknown key; must be one of methods"),
    ],
)
def test_bad_input_exits_2_with_one_line(words, line, folder, capsys):
    save(folder / "a.json", "a", ["left"])
    save(folder / "other.json", "b", ["left"], study="t")
    save(folder / "none.json", "c", [])
    save(folder / "choice.json", "d", ["middle"])
    (folder / "list.json").write_text("[1]")
    before = sorted(folder.iterdir())
    assert main(words) == 2
    err = capsys.readouterr().err
    assert line in err
    assert err.count("\n") == 1
    assert sorted(folder.iterdir()) == before
