"""The scripts that make docs/results.md: a pool of benches, the search for strengths, the page."""

import json
import os
import signal
import subprocess
import sys
import time
from types import SimpleNamespace
from unittest.mock import Mock

import numpy as np
import pytest
import torch

from doodl_cli.bench.statistics import compare
from doodl_cli.bench.suite import packaged, read_suite
from doodl_cli.bench.tables import show_comparison
from doodl_cli.cli import main
from doodl_cli.models.locate import NOISE_AWARE
from tests.runs import ROOT, needs_weights

sys.path.insert(0, str(ROOT / "scripts"))

import bench_on_gpus
import job_pool
import measure_ablations
import tune_methods
import write_results
from measured import BenchName, Measured, fingerprint

PROGRAM = """
import atexit, os, pathlib, sys, time
def main(words):
    folder = pathlib.Path(words[-1].partition("=")[2])
    folder.mkdir(parents=True, exist_ok=True)
    with open("log", "a") as file:
        print(folder.name, os.environ["CUDA_VISIBLE_DEVICES"], os.getpid(), file=file)
    if "fail" in words:
        print("no such thing", file=sys.stderr)
        return 1
    if "die" in words:
        os.kill(os.getpid(), 9)
    if "stop" in words:
        atexit.register(time.sleep, 0.3)
        return 143
    time.sleep(60 if "long" in words else 0)
    return 0
"""


@pytest.fixture
def commands(tmp_path, monkeypatch):
    """Jobs run a small program in place of `doodl bench`; arguments, GPUs, processes are listed."""
    package = tmp_path / "doodl_cli"
    package.mkdir()
    (package / "__init__.py").write_text(f"__path__.append({str(ROOT / 'doodl_cli')!r})")
    (package / "cli.py").write_text(PROGRAM)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return lambda: [line.split() for line in (tmp_path / "log").read_text().splitlines()]


def run(jobs, n_together):
    with job_pool.Pool(n_together) as pool:
        pool.run(jobs)


def test_jobs_take_gpus_in_turn_the_longest_first_and_are_done_once(
    commands, tmp_path, monkeypatch
):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,5")
    jobs = [job_pool.Job(tmp_path / f"out/{k}", ["x"], cost=k) for k in range(3)]
    run(jobs, 1)
    names, gpus, processes = zip(*commands(), strict=True)
    assert names == ("2", "1", "0")
    assert set(gpus) == {"2"}
    assert len(set(processes)) == 1
    run(jobs, 2)
    assert len(commands()) == 3
    other = [job_pool.Job(job.folder, ["y"]) for job in jobs[:2]]
    run(other, 2)
    assert sorted(gpu for _, gpu, _ in commands()[3:]) == ["2", "5"]


@pytest.mark.parametrize(
    ("word", "said"), [("fail", "no such thing"), ("die", "exit -9"), ("stop", "exit 143")]
)
def test_a_job_that_fails_stops_no_other_and_says_its_last_line(commands, tmp_path, word, said):
    jobs = [job_pool.Job(tmp_path / "a", [word], 2), job_pool.Job(tmp_path / "b", ["x"])]
    with pytest.raises(SystemExit, match=f"a: {said}"):
        run(jobs, 1)
    assert [job.done for job in jobs] == [False, True]
    assert [name for name, *_ in commands()] == ["a", "b"]


def test_a_pool_that_is_terminated_ends_its_processes(commands, tmp_path):
    code = (
        f"import sys; sys.path.insert(0, {str(ROOT / 'scripts')!r}); import pathlib, job_pool\n"
        "jobs = [job_pool.Job(pathlib.Path(x).absolute(), ['long']) for x in 'abc']\n"
        "from concurrent.futures import ThreadPoolExecutor\n"
        "with ThreadPoolExecutor() as threads, job_pool.Pool(2) as pool:\n"
        "    list(threads.map(pool.run, [jobs]))"
    )
    pool = subprocess.Popen([sys.executable, "-c", code])
    while not (tmp_path / "log").exists() or len(commands()) < 2:
        assert pool.poll() is None
        time.sleep(0.1)
    pool.terminate()
    assert pool.wait(20) == 128 + signal.SIGTERM
    assert len(commands()) == 2
    for *_, process in commands():
        with pytest.raises(ProcessLookupError):
            os.kill(int(process), 0)


@needs_weights
def test_a_bench_in_pieces_has_the_tables_of_one_in_one(tmp_path, monkeypatch, capsys):
    words = ["suite=smoke", "~suite.parts.references", "~suite.parts.aesthetic"]
    words += ["suite.n_prompts=1", "methods=[none,best_of_n]", "budget=6", "device=cpu"]
    words += ["seeds=[0,2]"]
    monkeypatch.setattr(sys, "argv", ["bench_on_gpus.py", *words, f"output_dir={tmp_path}/pieces"])
    bench_on_gpus.main()
    printed = capsys.readouterr().out
    assert "vocabulary/best_of_n/0: " in printed
    assert "vocabulary/best_of_n/2: " in printed
    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as the pool's
    try:
        assert main(["bench", *words, f"output_dir={tmp_path}/whole"]) == 0
    finally:
        torch.set_num_threads(n_threads)
    for name in ("results.csv", "table.md", "comparisons.csv"):
        assert (tmp_path / "pieces" / name).read_text() == (tmp_path / "whole" / name).read_text()


@pytest.fixture
def search(tmp_path, monkeypatch):
    """Search on scores that are functions of the settings; of plain pictures what is kept is 1."""
    settings, jobs = {}, []

    class Known(tune_methods.Search):
        def overrides(self, setting):
            words = super().overrides(setting)
            settings[tuple(words)] = setting
            return words

        def make_job(self, method, overrides):
            jobs.append(super().make_job(method, overrides))
            setting = settings.get(tuple(overrides))
            return SimpleNamespace(setting=setting, again=bool(self.again), done=True)

    def run(suite, method, score, kept=lambda *_: 1.0, lifted=lambda *_: 0.0, before=None):
        def read_scores(job, names):
            first, *others = names
            if job.setting is None:
                return dict.fromkeys(names, np.ones(1))
            chance = lifted(*job.setting) if not job.again else 0.0
            scores = dict.fromkeys(others, kept(*job.setting))
            scores[first] = score(*job.setting) + chance
            return {name: np.atleast_1d(value) for name, value in scores.items()}

        monkeypatch.setattr(tune_methods, "read_scores", read_scores)
        path = tmp_path / f"{len([*tmp_path.iterdir()])}.csv.gz"
        known = Known(suite, method, tmp_path, Measured(path), [])
        known.measure_plain(Mock())
        known.move(Mock(), before) if before else known.run(Mock())
        folders = [job.folder for job in jobs]
        assert len({*folders}) == len(folders)
        jobs.clear()
        return known

    return run


def test_a_search_goes_beyond_its_grid_until_the_best_lies_inside(search):
    found = search("complex", "one_step", lambda s: -abs(s - 11))
    assert found.best == (11,)
    assert found.open_ends() == []
    assert found.entry()["overrides"] == ["method.strength=3.2e+05"]
    found = search("complex", "one_step", lambda s: -abs(s - 3.4))
    assert found.entry()["overrides"] == ["method.strength=56"]  # 10 ** 1.75
    found = search(
        "complex", "doodl", lambda moved, clip, n, m, g: n - clip - abs(moved + 5) - m + g / 2
    )
    assert found.best == (-5, 0, 5, 0, 3)
    words = ["optimizer.clip=1e-05", "sampler.n_steps=20", "optimizer.n_candidates=1"]
    words.append("optimizer.lr=3.2e+02")
    assert found.entry()["overrides"] == words
    assert found.open_ends() == []
    found = search("complex", "doodl", lambda moved, clip, n, m, g: n + m - abs(g - 2))
    assert found.best == (-6, 0, 1, 5, 2)  # 6 steps of 64 candidates would take the whole budget
    found = search("complex", "doodl", lambda moved, clip, n, m, g: 3 * n - m - 4 * abs(g - 2))
    assert found.best == (-6, 0, 4, 0, 2)  # 20 steps do not allow this gamma
    assert "sampler.gamma=0.5" in found.entry()["overrides"]


def test_universal_is_tuned_in_the_size_of_its_backward_steps_too(search):
    found = search("complex", "universal", lambda s, lr: -abs(s - 3) + lr)
    assert found.entry()["overrides"] == ["method.strength=32", "method.backward_lr=1e+03"]
    found = search("complex", "universal", lambda s, lr: -abs(s - 3) - abs(lr - 1))
    assert found.entry()["overrides"] == ["method.strength=32"]


def test_a_search_that_never_turns_says_which_end_is_open(search):
    found = search("complex", "one_step", lambda s: s)
    last = 8 + tune_methods.ROUNDS + tune_methods.FINE
    assert found.best == (last + tune_methods.FINAL_ROUNDS,)
    assert found.open_ends() == ["method.strength"]


def test_only_settings_that_keep_what_is_not_scored_are_chosen(search):
    args = ("one_step", lambda s: s, lambda s: 1.0 if s <= 5.2 else 0.5)
    assert search("aesthetic", *args).best == (5.125,)
    assert search("complex", *args).best == (5,)
    assert search("references", *args).best > (6,)
    entry = search("complex", *args).entry()
    assert entry["least"] == {"checks": 1.0}
    assert entry["screened"]["method.strength=1"] == {"clip_text_b": 0, "checks": 1.0}
    none = search("complex", "one_step", lambda s: s, lambda s: -s - 10)
    assert none.best == (min(none.found)[0],)  # what keeps most
    small = search("aesthetic", "doodl", lambda *s: -s[0], lambda *s: 1.0)
    assert min(small.found)[0] < -8
    assert max(small.found)[3] == 5


def test_what_a_standard_error_does_not_tell_apart_is_chosen_by_the_checks(search):
    noise = 0.1 * np.random.default_rng(0).standard_normal((9, 50))  # standard errors of 0.02

    def score(s):
        return noise[int(s) % 9] - 0.001 * (s - 4) ** 2  # of 4 the highest, 2 and 6 beside it

    found = search("complex", "one_step", score, lambda s: 1 + s / 100)
    assert found.highest != found.best
    assert found.found[found.best]["checks"].mean() > found.found[found.highest]["checks"].mean()
    lost = found.found[found.highest]["clip_text_b"] - found.found[found.best]["clip_text_b"]
    assert 0 < lost.mean() <= lost.std(ddof=1) / len(lost) ** 0.5
    assert found.found[max(found.found)]["checks"].mean() > found.found[found.best]["checks"].mean()
    alone = search("references", "one_step", score)
    assert alone.best == alone.highest


def test_what_chance_has_lifted_is_not_chosen_for_it(search):
    noise = 0.1 * np.random.default_rng(0).standard_normal((20, 50))  # standard errors of 0.02

    def score(s):
        return noise[int(s)] - 0.01 * abs(s - 6)

    def lifted(s):
        return 0.05 * (s == 4)

    luck = {"complex": False, "vocabulary": True}
    found = {suite: search(suite, "one_step", score, lifted=lifted) for suite in luck}
    assert {suite: one.highest == (4,) for suite, one in found.items()} == luck
    finals = found["complex"]
    assert (4,) in finals.found
    assert len(finals.found) < len(finals.screened)
    entry = finals.entry()
    chosen = " ".join(entry["overrides"])
    assert entry["sweep"]["method.strength=1e+02"] != entry["screened"]["method.strength=1e+02"]
    assert entry["sweep"].keys() < {*entry["sweep"], *entry["screened"]}
    assert chosen in entry["sweep"]
    assert "screened" not in found["vocabulary"].entry()
    job = tune_methods.Search.make_job(finals, "one_step", ["a=1"])
    assert [*tune_methods.AGAIN["complex"]] == job.words[-1:]


def test_strength_and_gamma_alone_are_tuned_again_from_what_they_were(search):
    def score(at, wanted=lambda *_: 0.0):
        return lambda *setting: -abs(setting[0] - at) + wanted(*setting)

    for suite, again in (("complex", True), ("references", False)):
        before = search(suite, "universal", score(3, lambda s, lr: lr)).entry()
        moved = search(suite, "universal", score(4.3, lambda s, lr: -lr), before=before)
        assert before["overrides"] == ["method.strength=32", "method.backward_lr=1e+03"]
        assert moved.entry()["overrides"] == ["method.strength=1.8e+02", "method.backward_lr=1e+03"]
        assert {setting[0] for setting in moved.found} == {2.5, 3, 3.5, 4, 4.5, 5}
        assert bool(moved.again) == again
        assert moved.entry()["screened"] == before["sweep"] | before.get("screened", {})
        assert moved.entry()["sweep"].keys() == {" ".join(moved.overrides(x)) for x in moved.found}
    before = search("complex", "best_of_n", score(2)).entry()
    assert before["overrides"] == ["sampler.n_steps=6", "sampler.gamma=0.5"]
    moved = search("complex", "best_of_n", score(3, lambda n, g: g / 8), before=before)
    assert moved.entry()["overrides"] == ["sampler.n_steps=8"]
    assert {g for n, g in moved.found if n == 3} == {1, 2, 3}  # of 0.25 no step back is possible
    before = search("complex", "doodl", score(-5)).entry()
    assert "sampler.gamma=0.5" in before["overrides"]
    moved = search(
        "complex", "doodl", lambda *s: -abs(s[0] + 5 - s[-1] / 2) - abs(s[-1] - 1), before=before
    )
    assert moved.best == (-4.5, *moved.place(before["overrides"])[1:-1], 1)


@needs_weights
def test_what_a_suite_does_not_use_does_not_make_it_another(monkeypatch):
    def tell(changed):
        monkeypatch.setattr(
            "measured.hash_file", lambda path: "00" if path.parent.name == changed else "01"
        )
        tune_methods.tell_apart.cache_clear()
        suites = tune_methods.SUITES
        return {
            (x, y): tune_methods.tell_apart(x, y) for x in suites for y in ("doodl", NOISE_AWARE)
        }

    same = tell("none of them")
    differ = {
        changed: {name for name, value in tell(changed).items() if value != same[name]}
        for changed in ("clip_a", "clip_c", NOISE_AWARE)
    }
    tune_methods.tell_apart.cache_clear()
    assert differ["clip_a"] == same.keys()
    assert {suite for suite, _ in differ["clip_c"]} == {"complex", "references"}
    assert {method for _, method in differ[NOISE_AWARE]} == {NOISE_AWARE}


def test_what_was_measured_is_not_measured_again(search, tmp_path, monkeypatch):
    first = search("complex", "one_step", lambda s: -abs(s - 3.4))
    written, entry = first.measured.path.read_bytes(), first.entry()
    pool = Mock()
    again = tune_methods.Search("complex", "one_step", tmp_path, Measured(first.measured.path), [])
    again.measure_plain(pool)
    again.run(pool)
    assert again.entry() == entry
    assert not any([*jobs] for (jobs,), _ in pool.run.call_args_list)
    again.measured.write()
    assert first.measured.path.read_bytes() == written
    monkeypatch.setattr(tune_methods, "tell_apart", lambda *_: "others")
    other = tune_methods.Search("complex", "one_step", tmp_path, first.measured, [])
    with pytest.raises(KeyError):
        other.measure(pool, "one_step", [entry["overrides"]])  # the pool does nothing
    assert len([*pool.run.call_args.args[0]]) == 1


def test_what_was_measured_before_a_stop_is_kept(search, tmp_path):
    found = search("complex", "one_step", lambda s: s)
    a = SimpleNamespace(setting=(1,), again=False, done=True)
    jobs = {"a": a, "b": SimpleNamespace(done=False)}
    found.make_job = lambda method, overrides: jobs[overrides[0]]
    pool = Mock()
    pool.run.side_effect = SystemExit
    with pytest.raises(SystemExit):
        found.measure(pool, "one_step", [["a"], ["b"]])
    kept = Measured(found.measured.path)
    assert kept.has(found.name("one_step", ["a"]), found.names)
    assert not kept.has(found.name("one_step", ["b"]), found.names)


def test_scores_are_read_as_they_were_measured(tmp_path):
    measured = Measured(tmp_path / "new/scores.csv.gz")
    one, other = BenchName("s", "m", "a=1 b=2", "x"), BenchName("s", "m", "", "x")
    measured.add({one: {"c": np.array([0.123456789, -2.0]), "d": np.array([1e-7])}})
    measured.add({other: {"c": np.array([3.0])}})
    for kept in (measured, Measured(measured.path)):
        assert [*kept.found[one]["c"]] == [0.12346, -2]
        assert [*kept.found[one]["d"]] == [1e-7]
        assert kept.has(other, ["c"])
        assert not kept.has(other, ["c", "d"])
    file = tmp_path / "new/a"
    file.write_text("a")
    before = fingerprint([tmp_path])
    assert before == fingerprint([tmp_path])
    file.write_text("b")
    assert fingerprint([tmp_path]) != before


def test_what_was_tuned_is_shown_without_settings_that_do_not_count():
    found = {
        "k=1": {"c": 5.0, "p": 1.0},
        "k=10": {"c": 7.0, "p": 0.9},
        "k=30": {"c": 9.0, "p": 0.1},
    }
    entry = {"overrides": ["k=10"], "score": "c", "least": {"p": 0.5}, "sweep": found}
    table = write_results.write_tuned({"aesthetic": {"one_step": entry}}).splitlines()
    assert table[2:] == ["| aesthetic | one_step | `k=10` | c 7 | 3 | k: 1 5, 10 7 |"]
    entry["screened"] = {"k=10": {"c": 8.0, "p": 1.0}, "k=3": {"c": 8.0, "p": 1.0}}
    table = write_results.write_tuned({"complex": {"one_step": entry}}).splitlines()
    assert table[2:] == ["| complex | one_step | `k=10` | c 7 | 4 | k: 1 5, 10 7 |"]


def test_what_doodl_was_tuned_to_is_listed_by_suite():
    words = ["optimizer.n_candidates=4", "sampler.gamma=0.5", "optimizer.lr=3.2e+02"]
    entry = {"overrides": ["optimizer.clip=1e-05", *words]}
    table = write_results.write_chosen({"complex": {"none": {}, "doodl": entry}}).splitlines()
    assert table[0].startswith("| suite | `optimizer.lr` | `optimizer.clip` | `optimizer.n_cand")
    assert table[2:] == ["| complex | 320 | 1e-05 | 4 | the default | 0.5 |"]


def test_variants_change_the_tuned_setting_and_compose(monkeypatch):
    from doodl_cli.commands.bench import make_plan

    monkeypatch.setattr("doodl_cli.commands.bench.read_tuned", lambda _: {})  # of the suites
    tuned = ["optimizer.clip=0.001", "optimizer.lr=30"]
    for suite in measure_ablations.SUITES:
        guidance, judge = measure_ablations.read_part(suite)
        variants = measure_ablations.list_variants(guidance, tuned)
        configs = set()
        for overrides in variants.values():
            plan = make_plan([f"suite={suite}", "methods=[doodl]", *tuned, *overrides])
            assert plan.parts[0].judge == judge
            values = plan.configs[suite, "doodl"].to_dict() | {"output_dir": None}  # has the time
            configs.add(json.dumps(values, sort_keys=True))
        assert len(configs) == len(variants)  # no two are the same
        larger = variants["steps 3 times as large"]
        assert larger == ["optimizer.lr=90", "optimizer.clip=0.001"]


def test_what_is_not_tuned_has_the_defaults(monkeypatch):
    from doodl_cli.commands.bench import make_plan

    monkeypatch.setattr("doodl_cli.commands.bench.read_tuned", lambda _: {})
    config = make_plan(["suite=complex", "methods=[doodl]"]).configs["complex", "doodl"]
    default = [config.optimizer.lr, config.optimizer.clip, config.sampler.n_steps]
    assert default == list(measure_ablations.read_numbers([]).values())


def test_candidates_take_no_more_of_a_budget_than_a_search_may(tmp_path, monkeypatch):
    tuned = ["sampler.n_steps=12", "sampler.gamma=0.5"]
    monkeypatch.setattr(measure_ablations, "read_tuned", lambda _: tuned)
    jobs = measure_ablations.make_jobs("complex", tmp_path, [])
    searched = measure_ablations.CANDIDATES
    found = {searched[name] for name, budget in jobs if name in searched and budget == 400}
    assert found == {4, 8, 16}
    assert {budget for name, budget in jobs if searched.get(name) == 8} == {400, 1600}
    assert {budget for name, budget in jobs if name.startswith("EDICT")} == {400, 1600}
    for (name, _), job in jobs.items():
        n = [word for word in job.words if word.startswith("optimizer.n_candidates=")][-1]
        assert n.endswith(f"={searched.get(name, 1)}")
        assert (tuned[1] in job.words) == (name not in measure_ablations.SAMPLERS)
    assert "sampler.gamma=null" in jobs["gamma null", 400].words


def test_a_gamma_that_cannot_be_undone_is_no_variant():
    few, many = (measure_ablations.list_variants("clip_text", [f"sampler.n_steps={n}"])
                 for n in (3, 20))  # fmt: skip
    assert few.keys() - many.keys() == {"gamma 0.5"}


def test_a_page_is_filled_between_its_marks_alone():
    text = "a\n<!-- x -->\nold\n<!-- end -->\nb\n<!-- y -->\n<!-- end -->\n"
    filled = write_results.fill(text, {"x": r"\1 new", "y": "two"})
    assert filled == "a\n<!-- x -->\n\\1 new\n<!-- end -->\nb\n<!-- y -->\ntwo\n<!-- end -->\n"
    with pytest.raises(SystemExit, match="must have the mark <!-- z --> once"):
        write_results.fill(text, {"z": ""})


def test_tables_of_a_bench_are_read_as_they_were_written():
    table = [["method", "a|b", "checks.top"], ["none", "1", "0.5"]]
    text = f"# x\n\nwords\n\n## part: 2 prompts\n\n{write_results.markdown(table)}\n\n"
    ((name, (heading, (read,))),) = write_results.read_parts(text).items()
    assert (name, heading, read) == ("part", "part: 2 prompts", table)
    plain, details = write_results.split_details(read)
    assert plain == [["method", "a|b"], ["none", "1"]]
    assert details == [["method", "top"], ["none", "0.5"]]


def test_benches_of_other_pictures_count_together(tmp_path):
    values = {"a": ({"none": (1, 2), "doodl": (3, 4)}, {"none": (3, 4), "doodl": (3, 6)})}
    values["b"] = ({"none": (0, 0), "doodl": (1, 1)}, {"none": (0, 0), "doodl": (1, 1)})
    for seed in range(2):
        lines = ["part,method,seed,of_bench,prompt,target,judge,checks.top"]
        for prompt, benches in values.items():
            for method, scores in benches[seed].items():
                checked = "1" if prompt == "a" else ""
                lines += [
                    f"p,{method},{k},{seed},{prompt},,{x},{checked}" for k, x in enumerate(scores)
                ]
                lines += [f"other,{method},0,{seed},{prompt},,9,"]
        (tmp_path / str(seed)).mkdir()
        (tmp_path / str(seed) / "results.csv").write_text("\n".join(lines))
    titles = ["judge (held out)", "checks.top"]
    benches = [tmp_path / "0", tmp_path / "1"]
    means, gains = write_results.compare_methods(write_results.read_together(benches, "p"), titles)
    assert means[0] == ["method", *titles]
    starts = {method: cells[0].split()[0] for method, *cells in means[1:]}
    assert starts == {"none": "1.25", "doodl": "2.5"}  # of prompts (2.5 + 0) / 2, (4 + 1) / 2
    assert gains[0] == ["doodl less", *titles]
    assert gains[1][1] == show_comparison(compare({"a": 4, "b": 1}, {"a": 2.5, "b": 0}))
    assert gains[1][2] == "+0 [+0, +0], wins 50%"
    blocks = write_results.write_together(benches, "p", gains).split("\n\n")
    assert blocks[0] == "2 prompts, 8 pictures a method."
    assert [block.splitlines()[0] for block in blocks[1:]] == [
        "| method | judge (held out) |", "| doodl less | judge (held out) |",
        "| method | top |", "| doodl less | top |",
    ]  # fmt: skip
    with pytest.raises(SystemExit, match="p: benches have the same prompts and seeds"):
        write_results.read_together([benches[0], benches[0]], "p")


def test_further_complex_prompts_are_none_of_those_that_are_measured_or_tuned_on(tmp_path):
    path = tmp_path / "further.jsonl"
    script = ROOT / "scripts/embedded/make_suites.py"
    subprocess.run([sys.executable, script, "--further", path], check=True)
    rows = read_suite(path, None)
    known = [read_suite(packaged() / f"{x}complex.jsonl", None) for x in ("", "tuning/")]
    assert len({row.prompt for row in rows}) == len(rows) > 600
    assert {row.kind for row in rows} == {row.kind for row in known[0]}
    for suite in known:
        assert not {row.prompt for row in rows} & {row.prompt for row in suite}
        assert not {row.seed for row in rows} & {row.seed for row in suite}


def test_agreement_is_the_correlation_over_the_seeds_of_a_prompt(tmp_path):
    scores = {  # of a prompt's three seeds: as different as prompts are, order alone counts
        ("plain", "a"): ((1, 10), (2, 20), (3, 30)),
        ("plain", "b"): ((101, 1), (102, 11), (103, 21)),
        ("fooled", "a"): ((1, 3), (2, 2), (3, 1)),
    }
    lines = ["part,method,prompt,target,optimised,judge,checks"]
    lines += [
        f"suite,{method},{prompt},,{one},{other},"
        for (method, prompt), pairs in scores.items()
        for one, other in pairs
    ]
    lines += ["single,plain,a,,1,2,0.5", "single,plain,b,,2,1,0.5"]
    (tmp_path / "results.csv").write_text("\n".join(lines))
    names = ("optimised", "judge")
    table = write_results.write_agreement(tmp_path, {"suite": names, "single": names})
    head, _, *rows = table.splitlines()
    assert head == "| method | suite |"  # the other has one seed a prompt
    assert rows == ["| plain | 1.00 |", "| fooled | -1.00 |"]


def test_presence_that_agrees_is_in_brackets(tmp_path):
    lines = ["part,method,prompt,target,optimised,judge,presence"]
    lines += ["p,m,a,,1,3,0", "p,m,a,,2,2,0.5", "p,m,a,,3,1,1"]
    lines += ["p,m,b,,1,3,", "p,m,b,,2,2,", "p,m,b,,3,1,"]  # names nothing
    (tmp_path / "results.csv").write_text("\n".join(lines))
    table = write_results.write_agreement(tmp_path, {"p": ("optimised", "judge")})
    assert table.splitlines()[-1] == "| m | -1.00 (1.00) |"
