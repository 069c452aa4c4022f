"""Records in, files out: what is in a run directory, and that it is whole at any time."""

import json
import math
import signal
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
import torch
import yaml
from matplotlib.figure import Figure
from PIL import Image
from safetensors.torch import load_file

from doodl_cli import run_directory
from doodl_cli.commands.application import composer, resolve
from doodl_cli.commands.arguments import quote
from doodl_cli.commands.destination import check_free, claim
from doodl_cli.config import read_config
from doodl_cli.errors import Terminated, UserError
from doodl_cli.figures import draw_curves, plot_mean
from doodl_cli.history import read_curves
from doodl_cli.optimize import Record
from doodl_cli.run_directory import RunDirectory
from doodl_cli.signals import signals_deferred
from tests.runs import read_history, read_metadata

PROMPT = 'a "cat", (ü) 🍎\nand ${x}'
N_ITERS = 3


def make_config(seeds="[3,5]"):
    words = [f"prompt={PROMPT}", "negative_prompt=dull", f"seed={seeds}"]
    words += ["guidance=aesthetic", "output_dir=somewhere"]
    with composer(None) as compose:
        return read_config(resolve(compose("run", [quote(word) for word in words])))


def make_record(iteration, best=(True, True), loss=(-1.0, -2.0), active=(True, True)):
    generator = torch.Generator().manual_seed(iteration)
    images = torch.randint(0, 256, (2, 3, 64, 64), generator=generator, dtype=torch.uint8)
    u = torch.randn(2, 4, 16, 16, generator=generator, dtype=torch.float64)
    return Record(
        iteration=iteration,
        loss=list(loss),
        guidance={"aesthetic": [1.0 + iteration, 2.0 + iteration]},
        evaluate={"clip_text_b": [0.1 * iteration, 0.2]},
        grad_norm=[0.5, math.nan],
        latent_norm=[32.0, 32.0],
        seconds=0.25,
        best=list(best),
        active=list(active),
        images=images,
        pair=(u, u + 1),
        round_trip_error=[math.nan, 1e-12 * iteration],
        terms={"aesthetic": [-1.0, -2.0]},
        shares={"aesthetic": [1.0, math.nan]},
    )


def open_directory(path, config=None):
    path.mkdir(exist_ok=True)
    cost = {"network_calls": 7, "vjps": 3, "seconds": 0.0, "peak_bytes": 1}
    facts = {"device": "cpu", "sampler": {"growth": math.inf}}
    hydra = {"overrides.yaml": "- a\n"}
    return RunDirectory(path, config or make_config(), facts, lambda: cost, hydra)


def write_run(path):
    with open_directory(path) as directory:
        for i in range(N_ITERS + 1):
            directory.add(make_record(i, best=(i < 2, i == 0)))
    return path


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("run"))


def test_the_run_directory_holds_what_the_table_in_the_design_says(run):
    files = sorted(str(path.relative_to(run)) for path in run.rglob("*") if path.is_file())
    names = ("best.png", "final.png", "initial.png", "latents.safetensors", "trajectory.webp")
    samples = [f"samples/00{i}/{name}" for i in (0, 1) for name in names]
    single = [".hydra/overrides.yaml", "config.yaml", "grid.png", "history.jsonl", "loss.png"]
    assert files == [*single, "metadata.json", *samples]


def test_a_line_of_the_history_holds_one_iteration_of_one_sample(run):
    lines = read_history(run)
    assert [(line["sample"], line["iteration"]) for line in lines[:3]] == [(0, 0), (1, 0), (0, 1)]
    assert lines[3] == {
        "sample": 1,
        "iteration": 1,
        "loss": -2.0,
        "guidance": {"aesthetic": 3.0},
        "evaluate": {"clip_text_b": 0.2},
        "terms": {"aesthetic": {"loss": -2.0, "share": None}},
        "grad_norm": None,
        "latent_norm": 32.0,
        "best": False,
        "seconds": 0.25,
    }


def test_the_metadata_holds_each_samples_first_best_and_last_scores(run):
    metadata = read_metadata(run)
    assert metadata["status"] == "done"
    assert metadata["seeds"] == [3, 5]
    assert metadata["cost"]["network_calls"] == 7
    assert metadata["sampler"]["growth"] is None  # infinity is not JSON
    assert metadata["round_trip_error"] == N_ITERS * 1e-12
    assert metadata["samples"][0] == {
        "prompt": PROMPT,
        "seed": 3,
        "best_iteration": 1,
        "initial": {"aesthetic": 1.0},
        "best": {"aesthetic": 2.0},
        "final": {"aesthetic": 4.0},
        "evaluate": {
            "initial": {"clip_text_b": 0.0},
            "best": {"clip_text_b": 0.1},
            "final": {"clip_text_b": pytest.approx(0.3)},
        },
        "stopped": None,
    }


def test_latents_are_the_pairs_of_the_three_iterates_in_float64(run):
    latents = load_file(run / "samples/001/latents.safetensors")
    for name, iteration in (("initial", 0), ("best", 0), ("final", N_ITERS)):
        u, v = make_record(iteration).pair
        pair = latents[f"x_T_{name}"]
        assert pair.dtype == torch.float64
        assert torch.equal(pair, torch.stack([u[1], v[1]]))


def test_pictures_keep_their_size_and_say_how_they_were_made(run):
    picture = Image.open(run / "samples/000/best.png")
    assert picture.size == (64, 64)
    assert picture.text["prompt"] == PROMPT
    assert picture.text["negative_prompt"] == "dull"
    assert picture.text["seed"] == "3"
    assert picture.text["model"] == "emoji"
    assert json.loads(picture.text["settings"])["sampler"]["name"] == "bdia"
    pixels = torch.from_numpy(np.array(picture)).permute(2, 0, 1)
    assert torch.equal(pixels, make_record(1).images[0])


def test_a_picture_is_written_again_only_where_it_has_changed(tmp_path, monkeypatch):
    written = []
    monkeypatch.setattr(run_directory, "FLUSH_SECONDS", -1.0)
    with open_directory(tmp_path / "run") as directory:
        write = directory.write
        monkeypatch.setattr(directory, "write", lambda *w: (written.append(w[0]), write(*w)))
        for i in range(3):
            directory.add(make_record(i, best=(i < 2, i == 0)))
    counts = {
        name: written.count(f"samples/000/{name}.png") for name in ("initial", "best", "final")
    }
    assert counts == {"initial": 1, "best": 2, "final": 3}


def test_the_trajectory_shows_every_iteration_enlarged(run):
    trajectory = Image.open(run / "samples/000/trajectory.webp")
    assert trajectory.n_frames == N_ITERS + 1
    assert trajectory.size == (256, 256)


def test_the_saved_configuration_reads_back_as_it_was(run):
    values = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))
    assert read_config(values) == make_config()


def test_the_same_records_make_the_same_files(run, tmp_path):
    other = write_run(tmp_path)
    for path in run.rglob("*"):
        if path.is_file() and path.name != "metadata.json":
            assert path.read_bytes() == (other / path.relative_to(run)).read_bytes()


@pytest.mark.parametrize(
    ("error", "status"),
    [(KeyboardInterrupt, "interrupted"), (Terminated, "interrupted"), (RuntimeError, "failed")],
)
def test_a_run_that_ends_early_keeps_what_it_found(error, status, tmp_path):
    with pytest.raises(error), open_directory(tmp_path) as directory:
        directory.add(make_record(0))
        directory.add(make_record(1))
        assert read_metadata(tmp_path)["status"] == "running"
        assert (tmp_path / "samples/000/initial.png").exists()
        raise error
    assert read_metadata(tmp_path)["status"] == status
    assert read_metadata(tmp_path)["samples"][1]["best_iteration"] == 1
    assert len(read_history(tmp_path)) == 4
    for name in ("loss.png", "grid.png", "samples/001/best.png", "samples/001/latents.safetensors"):
        assert (tmp_path / name).exists()


def test_a_run_that_ends_before_its_first_record_says_so(tmp_path):
    with pytest.raises(RuntimeError), open_directory(tmp_path):
        raise RuntimeError
    assert read_metadata(tmp_path)["status"] == "failed"


def test_a_sample_whose_loss_turned_nan_stops_and_keeps_its_best(tmp_path):
    with open_directory(tmp_path) as directory:
        directory.add(make_record(0))
        nan = {"loss": (math.nan, -2.0), "active": (False, True), "best": (False, True)}
        directory.add(make_record(1, **nan))
        directory.add(make_record(2, **nan))
    first, second = read_metadata(tmp_path)["samples"]
    assert first["stopped"] == "the loss is NaN at iteration 1"
    assert first["final"] == first["best"] == first["initial"]
    assert (second["stopped"], second["best_iteration"]) == (None, 2)
    lines = read_history(tmp_path)
    assert [line["loss"] for line in lines if line["sample"] == 0] == [-1.0, None]
    assert [line["iteration"] for line in lines if line["sample"] == 1] == [0, 1, 2]


def test_a_sample_stopped_early_keeps_its_last_iterate_and_the_reason(tmp_path):
    reason = "clip_text_b at iteration 1 has been below its highest"
    with open_directory(tmp_path) as directory:
        directory.add(make_record(0))
        directory.add(replace(make_record(1, best=(False, True)), stopped=[reason, None]))
        directory.add(make_record(2, active=(False, True), best=(False, True)))
    first, second = read_metadata(tmp_path)["samples"]
    assert first["stopped"] == reason
    assert (first["best_iteration"], first["final"]) == (0, {"aesthetic": 2.0})
    assert (second["stopped"], second["best_iteration"]) == (None, 2)
    assert [line["iteration"] for line in read_history(tmp_path) if line["sample"] == 0] == [0, 1]


def test_regularisers_are_in_the_history_where_there_are_any(tmp_path):
    with open_directory(tmp_path) as directory:
        directory.add(replace(make_record(0), regularisers={"kl_prior": [0.25, 0.5]}))
    assert read_history(tmp_path)[1]["regularisers"] == {"kl_prior": 0.5}


def test_several_batches_have_grids_of_their_own_and_curves_in_common(tmp_path):
    with open_directory(tmp_path, replace(make_config(), batch_size=1)) as directory:
        for n_records in (2, 3):  # of the first batch and of the second
            for i in range(n_records):
                directory.add(make_record(i, loss=(-n_records - i, math.nan)))
            directory.finish_batch()
    drawn = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.png")}
    assert {name for name in drawn if not name.startswith("samples")} == {
        "batches/000/grid.png",
        "batches/001/grid.png",
        "loss.png",
    }
    curves = {
        0: {
            "loss": [(0, -2.0), (1, -3.0)],
            "aesthetic": [(0, 1.0), (1, 2.0)],
            "held_out.clip_text_b": [(0, 0.0), (1, 0.1)],
        },
        1: {
            "loss": [(0, -3.0), (1, -4.0), (2, -5.0)],
            "aesthetic": [(0, 1.0), (1, 2.0), (2, 3.0)],
            "held_out.clip_text_b": [(0, 0.0), (1, 0.1), (2, 0.2)],
        },
    }
    assert read_curves(tmp_path) == curves
    assert (tmp_path / "loss.png").read_bytes() == draw_curves(curves, {0: 1, 1: 2})


def test_many_curves_are_drawn_with_the_mean_of_those_that_reach_so_far():
    axis = Figure().subplots()
    plot_mean(axis, [{0: 1.0, 1: 2.0}, {0: 3.0}, {0: 5.0, 1: 6.0, 2: 7.0}, {}])
    each, mean = axis.lines
    assert mean.get_xydata().tolist() == [[0, 3], [1, 4], [2, 7]]
    parts = np.split(each.get_xydata(), np.flatnonzero(np.isnan(each.get_xdata())))
    assert [len(part) - (i > 0) for i, part in enumerate(parts)] == [2, 1, 3, 0, 0]


def test_pictures_and_metadata_are_written_at_once_and_then_every_few_seconds(
    tmp_path, monkeypatch
):
    with open_directory(tmp_path, replace(make_config(), batch_size=1)) as directory:
        directory.add(make_record(0))
        assert (tmp_path / "samples/000/initial.png").exists()
        assert read_metadata(tmp_path)["samples"][0]["best_iteration"] == 0
        directory.add(make_record(1))
        assert read_metadata(tmp_path)["samples"][0]["best_iteration"] == 0
        directory.finish_batch()
        directory.add(make_record(0))
        assert not (tmp_path / "samples/001/initial.png").exists()
        monkeypatch.setattr("doodl_cli.run_directory.FLUSH_SECONDS", 0.0)
        directory.add(make_record(1))
        assert (tmp_path / "samples/001/initial.png").exists()


def test_an_inversion_is_saved_like_a_run_without_an_iteration(tmp_path):
    record = make_record(0)
    with open_directory(tmp_path) as directory:
        directory.add_inversions(record.images, record.pair)
    latents = load_file(tmp_path / "samples/001/latents.safetensors")
    expected = torch.stack([record.pair[0][1], record.pair[1][1]])
    for name in ("initial", "best", "final"):
        assert torch.equal(latents[f"x_T_{name}"], expected)
        assert (tmp_path / f"samples/001/{name}.png").exists()
    assert read_metadata(tmp_path)["samples"][1]["best_iteration"] == 0
    assert not (tmp_path / "history.jsonl").exists()


def test_a_signal_waits_until_the_files_agree():
    reached = False
    with pytest.raises(KeyboardInterrupt), signals_deferred():
        signal.raise_signal(signal.SIGINT)
        reached = True
    assert reached


def test_folders_of_the_same_name_made_at_the_same_time_are_different(tmp_path):
    with ThreadPoolExecutor(8) as pool:
        paths = list(pool.map(lambda _: claim(tmp_path / "now", pattern=True), range(16)))
    assert len(set(paths)) == 16


def test_a_named_folder_may_be_empty_but_is_claimed_once(tmp_path):
    check_free(tmp_path)
    assert claim(tmp_path) == tmp_path
    with pytest.raises(UserError, match="must be a new or an empty folder"):
        claim(tmp_path)
    with pytest.raises(UserError, match="must be a new or an empty folder"):
        check_free(tmp_path)
