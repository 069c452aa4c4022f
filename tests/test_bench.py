"""`doodl bench` as the user types it: equal cost; the same tables twice, killed, in shards."""

import csv
import json
import os
import re
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from PIL import Image

from doodl_cli.bench import collect
from doodl_cli.bench.budget import KNOBS, Price, count, spend
from doodl_cli.bench.checks import Seen
from doodl_cli.bench.collect import Results, Sample, read_checks, read_curves
from doodl_cli.bench.report import draw_sheet
from doodl_cli.bench.runs import Part
from doodl_cli.bench.statistics import Interval, bootstrap_mean
from doodl_cli.bench.suite import Row, packaged, read_suite
from doodl_cli.bench.tables import show_gain, summarise
from doodl_cli.cli import main
from doodl_cli.commands import task
from doodl_cli.commands.application import composer, resolve
from doodl_cli.commands.bench import begin, make_plan, make_runs, set_key
from doodl_cli.config import METHODS, read_config
from doodl_cli.errors import UserError
from doodl_cli.figures import GAP
from tests.runs import needs_weights, read_metadata, start

pytestmark = pytest.mark.usefixtures("one_thread")

WORDS = ["bench", "suite=file", "suite.path=p.jsonl", "guidance=colourfulness", "memory=full"]
WORDS += ["device=cpu", "sampler.n_steps=2", "budget=12"]
METHODS_HERE = ["none", "best_of_n", "one_step", "full_chain", "universal", "doodl"]
TABLES = ("table.md", "results.csv", "comparisons.csv")


def write_prompts(folder):
    rows = [
        {"prompt": "a cat on a red background", "seed": 4, "check": {"background": "red"}},
        {"prompt": "a red apple", "seed": 5, "check": {"class": "red apple"}},
    ]
    (folder / "p.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))


def read_tables(folder):
    return {name: (Path(folder) / name).read_bytes() for name in TABLES}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A bench of every method that any guidance goes with, two prompts and one seed."""
    folder = tmp_path_factory.mktemp("bench")
    write_prompts(folder)
    before = Path.cwd()
    os.chdir(folder)
    try:
        assert main([*WORDS, f"methods=[{','.join(METHODS_HERE)}]", "output_dir=out"]) == 0
    finally:
        os.chdir(before)
    return folder / "out"


def read_results(folder):
    with (folder / "results.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def read_price():
    return Price(lambda n_steps: n_steps, 2.0)


def test_curves_count_the_calls_of_a_search_and_then_of_the_iterations(tmp_path):
    """Three pictures of 2 calls, then the best one's again and two iterations of 4 more."""
    scores = [1.0, 3.0, 2.0, 3.0, 4.0, 3.5]
    lines = [
        {"sample": 0, "iteration": i, "guidance": {"g": g}, "evaluate": {}, "best": best}
        for i, (g, best) in enumerate(zip(scores, [1, 1, 0, 0, 1, 0], strict=True))
    ]
    path = tmp_path / "history.jsonl"
    path.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    sampler = {"sampler": {"calls_per_sample": 2}}
    (points,) = read_curves(path, sampler, calls=16, n_searched=3).values()
    assert [point.calls for point in points] == [2, 4, 6, 8, 12, 16]
    assert [point.scores["g"] for point in points] == [1, 3, 3, 3, 4, 4]
    (points,) = read_curves(path, sampler, calls=12, n_searched=0).values()
    assert [point.calls for point in points] == [2, 4, 6, 8, 10, 12]


def compose(*words):
    with composer(None) as make:
        return read_config(resolve(make("run", ["prompt=x", "guidance=colourfulness", *words])))


@needs_weights
def test_every_method_spends_the_budget_as_predicted_and_no_more(whole):
    """What is planned is what the counters say, for every method."""
    lines = read_results(whole)
    assert {line["method"] for line in lines} == set(METHODS_HERE)
    for line in lines:
        run = whole / f"runs/file/{line['method']}/0"
        config = read_config(yaml.safe_load((run / "config.yaml").read_text()))
        assert config.deterministic
        planned = compose(f"method={line['method']}", "sampler.n_steps=2", "memory=full")
        knob = KNOBS.get(line["method"])
        n = spend(planned, 12, read_price())
        if knob is not None:
            section, key = knob.split(".")
            assert getattr(getattr(config, section), key) == n
        predicted = read_price().of(planned, n or 1)
        assert float(line["calls"]) == pytest.approx(predicted)
        assert predicted <= 12
        cost = read_metadata(run)["cost"]
        assert float(line["calls"]) == count(cost["network_calls"] / 2, cost["vjps"] / 2, 2.0)


@pytest.mark.parametrize("memory", ["full", "reversible"])
@pytest.mark.parametrize("n_candidates", [1, 8])
@pytest.mark.parametrize("method", sorted(set(METHODS) - {"none", "noise_aware"}))
def test_one_more_of_what_spends_the_budget_would_not_be_in_it(method, n_candidates, memory):
    candidates = f"optimizer.n_candidates={n_candidates}"  # which matters to doodl alone
    config = compose(f"method={method}", f"memory={memory}", candidates)
    price = read_price()
    n = spend(config, 400, price)
    assert price.of(config, n) <= 400 < price.of(config, n + 1)
    with pytest.raises(ValueError, match=f"method={method} needs"):
        spend(config, 1, price)
    assert spend(compose("method=none"), 400, price) is None
    assert set_key(config, KNOBS[method], 7) != config


@needs_weights
def test_noise_aware_pays_for_its_plain_picture_and_for_no_gradient(tmp_path):
    words = ["bench", "suite=vocabulary", "suite.n_prompts=1", "methods=[noise_aware]", "budget=13"]
    assert main([*words, "device=cpu", f"output_dir={tmp_path}/out"]) == 0
    (line,) = read_results(tmp_path / "out")
    assert (float(line["calls"]), float(line["vjps"])) == (12, 0)  # 6 steps, twice


def test_a_budget_for_more_steps_than_there_can_be_is_spent_on_those_that_can():
    config = compose("method=one_step")

    def n_calls(n_steps):
        if n_steps > 30:
            raise UserError("sampler.n_steps: must be 30 at most")
        return n_steps

    assert spend(config, 60, Price(n_calls, 2.0)) == 20
    assert spend(config, 400, Price(n_calls, 2.0)) == 30


@needs_weights
def test_the_budget_is_spent_as_memory_auto_computes(folder):
    write_prompts(folder)
    words = [word for word in WORDS if not word.startswith("memory")]
    assert main([*words, "methods=[doodl]", "suite.n_prompts=1", "output_dir=out"]) == 0
    (line,) = read_results(folder / "out")
    assert float(line["calls"]) == 10  # 2 and 4 an iteration; 3 of them need 14


def test_universal_guidance_without_its_forward_part_takes_no_gradient():
    config = compose("method=universal", "method.strength=0", "method.n_recurrences=3",
                     "sampler=ddim")  # fmt: skip
    assert read_price().of(config, 5) == 5 + 3 * 5


@needs_weights
def test_the_tables_hold_scores_checks_and_comparisons(whole):
    first = read_results(whole)[0]
    assert {"colourfulness", "clip_text_b", "checks", "change", "calls"} <= first.keys()
    assert first["presence"] == ""
    assert 0 < float(read_results(whole)[1]["presence"]) < 1
    assert (first["method"], first["seed"], first["change"]) == ("none", "4", "0.0")
    with (whole / "comparisons.csv").open(newline="") as file:
        compared = list(csv.DictReader(file))
    gains = {line["than"]: float(line["gain"]) for line in compared
             if line["score"] == "colourfulness"}  # fmt: skip
    assert set(gains) == set(METHODS_HERE) - {"doodl"}
    assert gains["none"] > 0
    assert all(float(x["gain_low"]) <= float(x["gain"]) <= float(x["gain_high"]) for x in compared)
    table = (whole / "table.md").read_text()
    assert "## file: 2 prompts, 2 pictures a method" in table
    assert re.search(r"\| doodl \|.* n_iters=2 n_steps=2 lr=1.0 clip=0.01 \|", table)


@pytest.mark.parametrize(
    ("guided", "judges"),
    [(["clip_text"], ["b", "a"]), (["classifier"], ["b"]), (["aesthetic", "classifier"], ["b"])],
)
def test_a_classifier_that_guides_does_not_judge_what_is_in_the_picture(
    monkeypatch, guided, judges
):
    asked, seen = [], Seen(["dog", "cat"], {(0, "top"): torch.tensor([0.2, 0.8]).log()})
    monkeypatch.setattr(collect, "look", lambda *given: asked.append(given) or seen)
    model = SimpleNamespace(classifier_a="a", classifier_b="b")
    rows = [Row("a cat above a dog", 0, check={"top": "cat"})]
    found = read_checks(rows, [torch.zeros(3, 64, 64)], model, guided)
    assert found == [{"checks": 1.0, "presence": 0.8, "checks.top": 1.0}]
    assert [given[2] for given in asked] == [judges]


@needs_weights
def test_the_page_is_one_file_that_refers_to_nothing_outside(whole):
    page = (whole / "bench.html").read_text()
    assert page.count('<img src="data:image/') == page.count("<img") == 2
    assert not re.search(r"https?://|@import|url\(|fetch\(|<link|<script", page)


@needs_weights
def test_pairs_of_a_bench_are_asked_about(whole, capsys):
    assert main(["bench", "pairs", str(whole), "methods=doodl,none"]) == 0
    page = (whole / "pairs.html").read_text()
    assert "a cat on a red background" in page
    assert main(["bench", "pairs", str(whole)]) == 2
    assert "methods=missing: must be two of none, best_of_n" in capsys.readouterr().err


@needs_weights
def test_the_same_command_again_does_nothing_and_others_are_refused(whole, monkeypatch, capsys):
    monkeypatch.chdir(whole.parent)
    words = [*WORDS, f"methods=[{','.join(METHODS_HERE)}]", "output_dir=out"]
    before, began = read_tables(whole), (whole / "runs/file/doodl/0/metadata.json").stat().st_mtime
    assert main(words) == 0
    assert read_tables(whole) == before
    assert (whole / "runs/file/doodl/0/metadata.json").stat().st_mtime == began
    capsys.readouterr()
    assert main([*words, "budget=13"]) == 2
    assert "budget=13: output_dir=" in capsys.readouterr().err
    assert main([*words, "cfg_scale=2"]) == 2
    assert "holds a bench with other settings of its runs" in capsys.readouterr().err


@needs_weights
@pytest.mark.parametrize("change", [lambda x: x[::-1], lambda x: x[:1], lambda x: [*x, x[0]]])
def test_a_bench_of_other_prompts_is_not_gone_on_with(whole, monkeypatch, capsys, change):
    monkeypatch.chdir(whole.parent)
    lines = Path("p.jsonl").read_text().splitlines(keepends=True)
    try:
        Path("p.jsonl").write_text("".join(change(lines)))
        assert main(["bench", "resume=out"]) == 2
    finally:
        Path("p.jsonl").write_text("".join(lines))
    assert "p.jsonl: has other prompts than when the bench" in capsys.readouterr().err
    assert main(["bench", "resume=out"]) == 0


def test_shards_may_begin_in_the_same_instant(folder):
    write_prompts(folder)
    words = [*WORDS[1:], "methods=[none]"]
    for k in range(10):
        plans = [make_plan([*words, f"shard={i}/8", f"output_dir={k}"]) for i in range(8)]
        with ThreadPoolExecutor(8) as threads:
            assert set(threads.map(begin, plans)) == {Path(str(k)).absolute()}
        assert [path.name for path in Path(str(k)).iterdir()] == ["bench.yaml"]


@needs_weights
def test_a_bench_that_is_killed_and_one_of_shards_end_with_the_same_tables(whole, tmp_path, capsys):
    write_prompts(tmp_path)
    words = [*WORDS, f"methods=[{','.join(METHODS_HERE)}]"]
    process = start(*words, "output_dir=killed", cwd=tmp_path)
    state = tmp_path / "killed/runs/file/best_of_n/0/state.safetensors"
    until = time.monotonic() + 120
    while not state.exists() and process.poll() is None and time.monotonic() < until:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert not (tmp_path / "killed/table.md").exists()
    assert main(["bench", f"resume={tmp_path / 'killed'}"]) == 0
    assert read_tables(tmp_path / "killed") == read_tables(whole)

    shards = [*words, f"output_dir={tmp_path / 'shards'}", f"suite.path={tmp_path / 'p.jsonl'}"]
    assert main([*shards, "shard=1/2"]) == 0
    assert not (tmp_path / "shards/table.md").exists()
    assert main([*shards, "shard=0/2"]) == 0
    assert (tmp_path / "shards/results.csv").read_bytes() == (whole / "results.csv").read_bytes()
    runs = sorted((tmp_path / "shards/runs").rglob("*"))
    (tmp_path / "shards/table.md").unlink()
    assert main(["bench", f"resume={tmp_path / 'shards'}"]) == 0
    assert (tmp_path / "shards/table.md").exists()
    assert sorted((tmp_path / "shards/runs").rglob("*")) == runs
    capsys.readouterr()
    assert main(shards) == 2
    assert "was begun with shard=0/2; must be i/2" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ([], "suite: missing; must be one of aesthetic, complex, "),
        (["suite=complx"], "suite=complx: must be one of aesthetic"),
        (["suite=file", "guidance=colourfulness"], "suite.path: missing; must be a file of"),
        (["suite=file", "suite.path=no.txt", "guidance=colourfulness"], "suite.path=no.txt: must"),
        (["suite=file", "suite.path=p.jsonl"], "guidance: missing; suite=file has none"),
        (["suite=smoke", "methods=[dodl]"], "methods=dodl: must be of doodl, none"),
        (["suite=smoke", "methods=[doodl,doodl]"], "methods=['doodl', 'doodl']: one is given"),
        (["suite=smoke", "methods=doodl"], "methods=doodl: must be a list of"),
        (["suite=complex", "methods=[noise_aware]"], "needs a suite with guidance=classifier"),
        (["suite=smoke", "budget=0"], "budget=0: must be a number above 0"),
        (["suite=smoke", "budget=3"], "budget=3: method="),
        (["suite=smoke", "seeds=[-1]"], "seeds=[-1]: must be a list of whole numbers"),
        (["suite=smoke", "vjp_cost=0.5"], "vjp_cost=0.5: must be a number from 1"),
        (["suite=smoke", "sampler.n_step=3"], "did you mean sampler.n_steps?"),
        (["suite=smoke", "evaluate=colourfulness"], "must have clip_text_b, "),
        (["suite=smoke", "shard=2/2"], "shard=2/2: must be i/n"),
        (["suite=file", "suite.path=bad.jsonl", "guidance=clip_text"], "line 1: check.colour: "),
        (["suite=file", "suite.path=one.jsonl", "guidance=clip_text"], "line 1: check.sides=['a']"),
        (["resume=nowhere"], "nowhere: must be a bench's folder"),
        (["resume=nowhere", "budget=3"], "budget: resume="),
        (["suite=smoke", "output_dir=full"], "full: must be a new or an empty folder"),
        (["suite=smoke", "method=doodl"], "method=doodl: a bench has its own; must be methods="),
        (["suite=smoke", "seed=3"], "seed=3: a bench has its own; must be seeds=["),
        (["suite=smoke", "-m"], "-m: `doodl bench` has no such flag"),
        (["suite=drawbench"], "sayakpaul/drawbench is not in the Hugging Face cache"),
    ],
)
@needs_weights
def test_bad_input_exits_2_with_one_line_and_writes_nothing(
    words, line, folder, capsys, monkeypatch
):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    write_prompts(folder)
    (folder / "bad.jsonl").write_text('{"prompt": "x", "check": {"colour": "red"}}\n')
    (folder / "one.jsonl").write_text('{"prompt": "x", "check": {"sides": ["a"]}}\n')
    (folder / "full").mkdir()
    (folder / "full/file").touch()
    before = sorted(folder.rglob("*"))
    assert main(["bench", *words]) == 2
    err = capsys.readouterr().err
    assert line in err
    assert err.count("\n") == 1
    assert sorted(folder.rglob("*")) == before


def test_noise_aware_takes_part_where_its_classifier_is_and_is_else_left_out_in_a_line(
    folder, capsys, monkeypatch
):
    files = folder / "config.json", folder / "model.safetensors"
    monkeypatch.setattr("doodl_cli.commands.bench.find_noise_aware", lambda *_: files)
    plan = make_plan(["suite=embedded"])
    assert all("noise_aware" not in part.methods for part in plan.parts)
    assert plan.left_out.startswith(f"{files[0]} is missing")
    assert main(["bench", "suite=vocabulary", "methods=[noise_aware]"]) == 2
    assert f"methods=['noise_aware']: {files[0]} is missing" in capsys.readouterr().err
    for file in files:
        file.touch()
    plan = make_plan(["suite=embedded"])
    assert [part.name for part in plan.parts if "noise_aware" in part.methods] == ["vocabulary"]
    assert plan.left_out is None
    plan = make_plan(["suite=vocabulary", "guidance.classifier.source=timm",
                      "guidance.classifier.name=resnet18"])  # fmt: skip
    assert "noise_aware" not in plan.parts[0].methods


def test_what_was_tuned_holds_for_its_guidance_model_and_optimizer_alone(monkeypatch):
    found = {"doodl": ["optimizer.lr=30", "optimizer.clip=0.001"],
             "one_step": ["method.strength=7"]}  # fmt: skip
    monkeypatch.setattr("doodl_cli.commands.bench.read_tuned", lambda _: found)

    def read(*words):
        plan = make_plan(["suite=complex", "methods=[doodl,one_step]", *words])
        optimizer = plan.configs["complex", "doodl"].optimizer
        strength = plan.configs["complex", "one_step"].method.strength
        return optimizer.lr, optimizer.clip, strength

    assert read() == (30, 0.001, 7)
    assert read("optimizer.lr=2") == (2, 0.001, 7)
    assert read("optimizer=adam") == (0.05, None, 7)
    assert read("guidance=colourfulness") == (1, 0.01, 1)
    found["doodl"] += ["sampler.n_steps=4", "sampler.gamma=0.5"]
    sampler = make_plan(["suite=complex", "sampler.n_steps=20"]).configs["complex", "doodl"].sampler
    assert (sampler.n_steps, sampler.gamma) == (20, None)  # 0.5 is too small for 20 steps
    assert read('suite.run=["model=emoji","optimizer.lr=5"]') == (5, 0.001, 7)  # the suite's own
    assert read("experiment=paper")[2] == 1


def test_what_was_tuned_holds_for_other_prompts_but_not_for_those_it_was_tuned_on(
    monkeypatch, tmp_path
):
    monkeypatch.setattr("doodl_cli.commands.bench.read_tuned", lambda part: {
        "one_step": ["method.strength=7"]} if part == "complex" else {})  # fmt: skip
    mine = tmp_path / "mine.jsonl"
    mine.write_text('{"prompt": "a cat"}\n')

    def read(path, *words):
        words = ["suite=complex", f"suite.parts.complex.path={path}", *words]
        return make_plan(words).configs["complex", "one_step"].method.strength

    assert read(mine) == 7
    assert read("tuning/complex.jsonl") == 1
    assert read(mine, "model=emoji") == 7
    aesthetic = 'suite.parts.complex.run=["guidance=aesthetic"]'
    assert read(mine, aesthetic) == 1
    assert read(mine, aesthetic, "guidance=clip_text") == 7


def test_a_bench_of_ones_own_prompts_for_a_part_goes_on_anywhere(monkeypatch, tmp_path):
    (tmp_path / "mine.jsonl").write_text('{"prompt": "a cat"}\n')
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    words = ["suite=embedded", "suite.parts.complex.path=mine.jsonl", "output_dir=bench"]
    plan = make_plan(words)
    path = begin(plan)
    monkeypatch.chdir("elsewhere")
    again = make_plan([f"resume={path}"])
    assert [row.prompt for row in again.parts[0].rows] == ["a cat"]
    assert again.settings == plan.settings
    paths = {name: part.path for name, part in again.bench.suite.parts.items()}
    assert paths["complex"] == str(tmp_path / "mine.jsonl")
    assert paths["aesthetic"] == "aesthetic.jsonl"  # where the package is, on any machine


@needs_weights
@pytest.mark.parametrize(
    ("words", "n_candidates"),
    [
        ([], 64), (["budget=400"], 64), (["budget=200"], 1), (["sampler=edict"], 1),
        (["sampler.n_steps=12"], 1), (["sampler.n_steps=12", "optimizer.n_candidates=4"], 4),
    ],
)  # fmt: skip
def test_tuned_candidates_are_for_the_budget_and_the_steps(monkeypatch, words, n_candidates):
    found = {"doodl": ["sampler.n_steps=3", "sampler.gamma=0.5", "optimizer.n_candidates=64"]}
    monkeypatch.setattr("doodl_cli.commands.bench.read_tuned", lambda _: found)
    plan = make_plan(["suite=complex", "methods=[doodl]", "device=cpu", *words])
    assert plan.configs["complex", "doodl"].optimizer.n_candidates == n_candidates
    (run,) = make_runs(plan, task.load(plan.configs["complex", "doodl"], torch.device("cpu")))
    assert run.config.optimizer.n_iters >= 1


def test_the_change_of_a_prompt_is_averaged_over_its_seeds_before_its_interval(tmp_path):
    """Eight seeds of two prompts are two values, not eight."""
    changes = {"cat": [0.1, 0.3, 0.2, 0.2], "dog": [0.5, 0.3, 0.4, 0.4]}
    samples = [
        Sample("file", "none", 0, k, Row(prompt, k), tmp_path, {"score": 1.0}, change, 1, 1, 0, 0,
               None)
        for prompt, several in changes.items()
        for k, change in enumerate(several)
    ]  # fmt: skip
    part = Part("file", [], ["none"], "score", "score", None)
    change = summarise(Results(None, [part], samples, {}, {}), part, "none").change
    assert change == bootstrap_mean([0.2, 0.4])


def test_a_sheet_begins_with_the_reference_if_there_is_one(tmp_path):
    Image.new("RGB", (256, 256), "white").save(tmp_path / "best.png")
    Image.new("RGB", (256, 256), "black").save(tmp_path / "mine.png")
    bench = SimpleNamespace(seeds=[0])
    widths = []
    for image in (None, str(tmp_path / "mine.png")):
        row = Row("a cat", 0, image=image)
        sample = Sample("file", "none", 0, 0, row, tmp_path, {"score": 1.0}, 0, 1, 1, 0, 0, None)
        part = Part("file", [row], ["none"], "score", "score", None)
        sheet = Image.open(BytesIO(draw_sheet(Results(bench, [part], [sample], {}, {}), part)))
        widths.append(sheet.width)
    assert widths[1] - widths[0] == 256 + GAP
    assert sheet.convert("L").getpixel((GAP + 128, GAP + 128)) < 20
    assert sheet.convert("L").getpixel((2 * GAP + 256 + 128, GAP + 128)) > 235


def test_a_long_prompt_is_whole_on_a_sheet_of_one_picture(tmp_path):
    Image.new("RGB", (256, 256), "white").save(tmp_path / "best.png")
    bench = SimpleNamespace(seeds=[0])
    heights = []
    for prompt in ("a cat", "a fountain pen below a green watermelon on a light yellow background"):
        row = Row(prompt, 0)
        sample = Sample("file", "none", 0, 0, row, tmp_path, {"score": 1.0}, 0, 1, 1, 0, 0, None)
        part = Part("file", [row], ["none"], "score", "score", None)
        sheet = Image.open(BytesIO(draw_sheet(Results(bench, [part], [sample], {}, {}), part)))
        heights.append(sheet.height)
        margin = sheet.convert("L").crop((sheet.width - GAP // 2, 0, sheet.width, sheet.height))
        assert margin.getextrema()[0] > 235
    assert heights[1] > heights[0]


def test_a_gain_that_is_round_off_is_none():
    assert show_gain(Interval(3.2e-18, -1.0, 0.25)) == "+0 [-1, +0.25]"
    assert show_gain(Interval(-1e-18, -1e-17, 2.0)) == "+0 [+0, +2]"
    assert show_gain(Interval(0.5, 0.125, 0.75)) == "+0.5* [+0.125, +0.75]"
    assert show_gain(Interval(-1.5, -2.0, -1.0)) == "-1.5* [-2, -1]"


@needs_weights
def test_the_suites_have_as_many_prompts_as_they_say_and_classes_that_there_are():
    from doodl_cli.models.locate import find_folder

    settings = json.loads((find_folder("emoji", None) / "classifier_b/config.json").read_text())
    labels = set(settings["id2label"].values())
    sizes = {"complex": 600, "vocabulary": 96, "references": 50, "aesthetic": 300}
    for name, n in sizes.items():
        rows = read_suite(packaged() / f"{name}.jsonl", None)
        tuning = read_suite(packaged() / f"tuning/{name}.jsonl", None)
        assert len(rows) == n
        wanted, of_tuning = ({(row.prompt, row.target) for row in x} for x in (rows, tuning))
        assert not wanted & of_tuning
        assert not {row.seed for row in rows} & {row.seed for row in tuning}
        for row in [*rows, *tuning]:
            for kind, value in row.check.items():
                if kind != "background":
                    assert set(value if isinstance(value, list) else [value]) <= labels
    for name, n in {"complex": 100, "vocabulary": 12}.items():
        assert len({row.unit for row in read_suite(packaged() / f"{name}.jsonl", None)}) == n
    assert [row.target for row in read_suite(packaged() / "vocabulary.jsonl", 2)] == [
        "penguin",
        "snail",
    ]


def test_tables_of_partiprompts_and_drawbench_are_read(tmp_path):
    parti = tmp_path / "PartiPrompts.tsv"
    parti.write_text('Prompt\tCategory\tNote\na "cat\tAnimals\t\na dog, sitting\tAnimals\tx\n')
    assert [row.prompt for row in read_suite(parti, None)] == ['a "cat', "a dog, sitting"]
    draw = tmp_path / "drawbench.csv"
    draw.write_text('Prompts,Category\n"one, two",Colors\n')
    (row,) = read_suite(draw, None)
    assert (row.prompt, row.seed) == ("one, two", 0)
