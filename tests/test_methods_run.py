"""`doodl run method=...`: what it leaves behind, how it goes on, what it refuses."""

import json
from pathlib import Path

import pytest
import torch
from diffusers import UNet2DConditionModel
from PIL import Image
from safetensors.torch import load_file, save_file

from doodl_cli.cli import main
from doodl_cli.models.locate import NOISE_AWARE_FILES as FILES
from doodl_cli.models.noise_aware import NoisyClassifier
from tests.runs import ROOT, needs_weights, read_history, read_metadata

pytestmark = pytest.mark.usefixtures("folder")
WORDS = ["run", "prompt=a cat", "seed=[3,5]", "sampler.n_steps=2", "evaluate=symmetry"]
WORDS += ["device=cpu", "memory=checkpoint"]
COLOUR = ["guidance=colourfulness"]
CLASS = ["guidance=classifier", "guidance.classifier.target=penguin"]
METHODS = {
    "doodl": [*COLOUR, "optimizer.n_iters=1"],
    "doodl from the best of 3": [*COLOUR, "optimizer.n_iters=1", "optimizer.n_candidates=3"],
    "none": COLOUR,
    "best_of_n": [*COLOUR, "method.n=3"],
    "one_step": COLOUR,
    "full_chain": [*COLOUR, "method.strength=0.1"],
    "universal": [*COLOUR, "sampler=ddim", "sampler.n_steps=2", "method.n_recurrences=2"],
    "noise_aware": [*CLASS, "method.path=noisy"],
}
GUIDED = ("one_step", "full_chain", "universal", "noise_aware")
LABELS = [
    line.split("\t")[0]
    for line in (ROOT / "scripts/embedded/sets/classes.txt").read_text().splitlines()
]


def make_classifier(folder, in_channels=8):
    """Write a classifier of noisy latents with random weights."""
    torch.manual_seed(0)
    config = {"in_channels": in_channels, "widths": [16, 32], "labels": LABELS}
    folder.mkdir()
    (folder / FILES[0]).write_text(json.dumps(config))
    save_file(NoisyClassifier(**config).half().state_dict(), folder / FILES[1])


def read_pixels(path):
    return Image.open(path).tobytes()


@pytest.fixture
def noisy(folder):
    make_classifier(folder / "noisy")


@needs_weights
@pytest.mark.usefixtures("noisy")
@pytest.mark.parametrize("name", METHODS)
def test_a_run_by_every_method_renders_again_bit_for_bit_and_counts_its_calls(name, monkeypatch):
    forward, n_calls = UNet2DConditionModel.forward, 0

    def counting(unet, sample, *arguments, **options):
        nonlocal n_calls
        n_calls += len(sample) // 2  # a guided call is a batch of two
        return forward(unet, sample, *arguments, **options)

    monkeypatch.setattr(UNet2DConditionModel, "forward", counting)
    method = name.partition(" ")[0]
    assert main([*WORDS, *METHODS[name], f"method={method}", "output_dir=run"]) == 0
    metadata = read_metadata("run")
    assert metadata["method"]["name"] == method
    assert metadata["cost"]["network_calls"] == n_calls > 0
    assert metadata["status"] == "done"
    last = max(line["iteration"] for line in read_history("run"))
    assert last == {"none": 0, "best_of_n": 2, "doodl from the best of 3": 4}.get(name, 1)
    assert Path("run/report.html").exists()
    which = "final" if name in GUIDED else "best"
    assert main(["sample", "run=run", f"which={which}", "output_dir=again"]) == 0
    for k in ("000", "001"):
        again = read_pixels(f"again/samples/{k}/initial.png")
        assert again == read_pixels(f"run/samples/{k}/{which}.png")
        plain = read_pixels(f"run/samples/{k}/initial.png")
        assert (again == plain) == (name == "none")
    names = set(load_file("run/samples/000/latents.safetensors"))
    kind = "x_0" if name in GUIDED else "x_T"
    assert names == {"x_T_initial", f"{kind}_best", f"{kind}_final"}


@needs_weights
@pytest.mark.parametrize("name", ["one_step", "best_of_n", "doodl from the best of 3"])
def test_a_run_that_is_out_of_time_goes_on_to_the_same_files(name):
    words = [*WORDS, *METHODS[name], f"method={name.partition(' ')[0]}", "batch_size=1"]
    assert main([*words, "output_dir=whole"]) == 0
    assert main([*words, "output_dir=run", "max_seconds=0.001"]) == 0
    assert read_metadata("run")["status"] == "out of time"
    assert main(["run", "resume=run"]) == 0
    for path in ("samples/000/best.png", "samples/001/final.png", "grid.png"):
        files = [Path(run, path) for run in ("whole", "run")]
        assert files[0].exists() == files[1].exists()
        if files[0].exists():
            assert files[0].read_bytes() == files[1].read_bytes()
    lines = [[line | {"seconds": 0} for line in read_history(run)] for run in ("whole", "run")]
    assert lines[0] == lines[1]
    cost = [read_metadata(run)["cost"] for run in ("whole", "run")]
    assert cost[0]["network_calls"] == cost[1]["network_calls"]


def refuse(words, line, capsys):
    """Check that words are refused with one line and nothing is written."""
    before = sorted(Path().rglob("*"))
    assert main(words) == 2
    err = capsys.readouterr().err
    assert line in err
    assert err.count("\n") == 1
    assert sorted(Path().rglob("*")) == before


BDIA = "method.n_recurrences=2: sampler=bdia steps from two states, of which one cannot be made"
REFUSED = {
    "an unknown method": (["method=one_stp"], "method=one_stp: must be one of best_of_n, doodl,"),
    "a key of another method": (["method=none", "method.strength=1"], "method.strength=1: needs"),
    "a strength below 0": (
        ["method=one_step", "method.strength=-1"],
        "method.strength=-1: must be a number from 0",
    ),
    "no noise to choose from": (["method=best_of_n", "method.n=0"], "method.n=0: must be a whole"),
    "recurrence of a pair": (["method=universal", "method.n_recurrences=2"], BDIA),
    "a blend without its half": (
        ["method=one_step", "method.blend=true", "cfg_scale=1"],
        "method.blend=true: with cfg_scale=1 there is no unconditional prediction",
    ),
    "another guidance": (
        ["method=noise_aware"],
        "guidance=[colourfulness]: method=noise_aware is guided by a classifier of noisy latents",
    ),
    "another model": (
        ["method=noise_aware", "model=sd15", *CLASS],
        "method=noise_aware: model=sd15 has no classifier of noisy latents; must be model=emoji",
    ),
    "noise that is not drawn": (
        ["method=best_of_n", "init=image", "init.path=a.png"],
        "init=image: method=best_of_n draws noise; must be noise",
    ),
    "candidates beside a start": (
        ["optimizer.n_candidates=4", "init=image", "init.path=a.png"],
        "optimizer.n_candidates=4: init=image is the one start; must be 1, or init=noise",
    ),
    "no candidate": (
        ["optimizer.n_candidates=0"],
        "optimizer.n_candidates=0: must be a whole number from 1",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_does_not_go_together_is_refused_in_one_line(name, capsys):
    words, line = REFUSED[name]
    refuse([*WORDS, *COLOUR, *words], line, capsys)


@pytest.mark.parametrize("verb", ["sample", "invert"])
def test_verbs_that_guide_nothing_take_no_method(verb, capsys):
    Image.new("RGB", (64, 64)).save("a.png")
    words = [verb, "method=one_step", *(["image=a.png"] if verb == "invert" else ["prompt=x"])]
    refuse(words, f"method=one_step: `doodl {verb}` guides nothing; must be left out", capsys)


@needs_weights
def test_a_classifier_of_noisy_latents_that_cannot_be_used_is_refused(folder, capsys):
    words = [*WORDS, *CLASS, "method=noise_aware"]
    line = "method.path=nowhere: config.json is missing; must be a classifier of noisy latents"
    refuse([*words, "method.path=nowhere"], line, capsys)
    make_classifier(folder / "four", in_channels=4)
    line = "takes latents of 4 channels; must be 8, as of model=emoji"
    refuse([*words, "method.path=four"], line, capsys)
    make_classifier(folder / "cut")
    weights = folder / "cut" / FILES[1]
    weights.write_bytes(weights.read_bytes()[:-1])
    refuse([*words, "method.path=cut"], "is truncated or damaged", capsys)
    make_classifier(folder / "other")
    config = json.loads((folder / "other" / FILES[0]).read_text()) | {"widths": [16, 16]}
    (folder / "other" / FILES[0]).write_text(json.dumps(config))
    refuse([*words, "method.path=other"], "other: cannot be loaded: ", capsys)


@needs_weights
def test_a_picture_guided_on_its_way_has_no_noise_to_start_from(capsys):
    assert main([*WORDS, *COLOUR, "method=one_step", "output_dir=run"]) == 0
    capsys.readouterr()
    words = [*WORDS, *COLOUR, "init=latents", "init.path=run", "optimizer.n_iters=1"]
    line = "init.which=best: init.path=run was guided on the way from x_T (method=one_step), so"
    refuse([*words, "init.which=best"], line, capsys)
    assert main([*words, "init.which=initial", "output_dir=on"]) == 0
    before, after = (read_pixels(f"{run}/samples/000/initial.png") for run in ("run", "on"))
    assert before == after
