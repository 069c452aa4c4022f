"""The embedded model's own weights: gradients, batches, damaged files, the main job's effect."""

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from doodl_cli.cli import main
from doodl_cli.config import Aesthetic
from doodl_cli.guidance import build_guidance
from doodl_cli.models.latent_model import load_model
from doodl_cli.models.locate import PIPELINE_FILES, SCORER_FILES
from doodl_cli.optimize import MicroBatch, Problem, initial_noise
from doodl_cli.optimize.assess import assess
from doodl_cli.optimize.noise import make_generators
from doodl_cli.sampling import SAMPLERS, make_grid

EMOJI = Path(__file__).parents[1] / "doodl_cli/assets/emoji"
PROMPTS = ["a red apple", "a cat", "a house", "a rocket"]
CPU = torch.device("cpu")
RANKING = Path(__file__).parents[1] / "scripts/embedded/sets/ranking_captions.txt"


@pytest.fixture(scope="module")
def model():
    return load_model("emoji", None, CPU, "float32")


def make_problem(model, name, n_steps, memory, prompts, seeds):
    guidance = build_guidance({"aesthetic": Aesthetic(1.0, 0, None, None)}, model)
    table = SAMPLERS[name](make_grid(model.schedule, n_steps))
    net = model.net(prompts, [""] * len(prompts), 4.0)
    problem = Problem(table, net, model.decode, guidance, {}, prompts, seeds, memory)
    return replace(problem, micro_batch=MicroBatch(1))


def gradient_of(model, name, n_steps, memory, prompts, seeds):
    """Return the gradient of the aesthetic loss by x_T, (2, b, c, h, w)."""
    problem = make_problem(model, name, n_steps, memory, prompts, seeds)
    x_T = initial_noise(seeds, model.latent_shape)
    return assess(problem, (x_T, x_T), make_generators(seeds, "optimize"), True).gradient


def difference(a, b):
    """Return the largest difference, as a share of the largest element of b."""
    return ((a - b).abs().max() / b.abs().max()).item()


def read_image(path):
    """Return a picture file as (1, 3, h, w) in [-1, 1]."""
    array = np.asarray(Image.open(path).convert("RGB"))
    return torch.from_numpy(array.copy()).permute(2, 0, 1)[None].float() / 127.5 - 1


@pytest.mark.parametrize("n_steps", [4, 5])
@pytest.mark.parametrize("name", SAMPLERS)
def test_memory_modes_agree_on_the_float32_network(model, name, n_steps):
    reference = gradient_of(model, name, n_steps, "full", PROMPTS[:1], [0])
    assert reference.abs().max() > 0
    modes = ("checkpoint",) if name == "ddim" else ("reversible", "checkpoint")
    for memory in modes:
        found = gradient_of(model, name, n_steps, memory, PROMPTS[:1], [0])
        assert difference(found, reference) < 1e-5


def test_a_gradient_is_the_same_alone_and_in_a_batch_of_four(model):
    """On the CPU to the last digit, because samples are computed one by one."""
    seeds = [0, 1, 2, 3]
    together = gradient_of(model, "bdia", 12, "reversible", PROMPTS, seeds)
    for i, (prompt, seed) in enumerate(zip(PROMPTS, seeds, strict=True)):
        alone = gradient_of(model, "bdia", 12, "reversible", [prompt], [seed])
        assert torch.equal(together[:, i : i + 1], alone)


@pytest.mark.parametrize("damage", ["missing", "truncated", "garbage"])
@pytest.mark.parametrize("file", [*PIPELINE_FILES, *SCORER_FILES])
def test_a_damaged_file_exits_2_with_one_line_and_writes_nothing(
    file, damage, tmp_path, monkeypatch, capsys
):
    copy = tmp_path / "model"
    shutil.copytree(EMOJI, copy, copy_function=lambda src, dst: Path(dst).symlink_to(src))
    whole = (copy / file).read_bytes()
    (copy / file).unlink()
    if damage == "truncated":
        (copy / file).write_bytes(whole[:-100])
    elif damage == "garbage":
        (copy / file).write_bytes(b"not a checkpoint")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    monkeypatch.setattr(sys, "argv", ["doodl"])
    assert main(["run", "guidance=aesthetic", "prompt=a cat", f"model.path={copy}"]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert f"model.path={copy}: {file} is " in err
    assert list(elsewhere.iterdir()) == []


def test_the_main_job_makes_the_apple_more_colourful_and_keeps_it_an_apple(model, tmp_path):
    """By the pixel formula and the held-out pair, neither of which is optimised."""
    words = ["run", "guidance=aesthetic", f"prompt={PROMPTS[0]}", "device=cpu", "output_dir=run"]
    subprocess.run([sys.executable, "-m", "doodl_cli", *words], cwd=tmp_path, check=True)
    metadata = json.loads((tmp_path / "run/metadata.json").read_text())
    held_out = metadata["samples"][0]["evaluate"]
    ratio = held_out["best"]["colourfulness"] / held_out["initial"]["colourfulness"]
    assert ratio >= 1.3
    captions = RANKING.read_text().splitlines()
    picture = read_image(tmp_path / "run/samples/000/best.png")
    similarity = model.clip_b.embed_images(picture) @ model.clip_b.embed_texts(captions).T
    assert captions.index(PROMPTS[0]) in similarity[0].topk(3).indices
    assert metadata["cost"]["peak_bytes"] < 2e9


def test_the_peak_of_memory_is_the_command_s_own():
    held = bytearray(2_000_000_000)
    held[::4096] = b"x" * len(held[::4096])  # so that this process has a higher peak
    code = "import torch; from doodl_cli.commands.task import peak_bytes as peak; "
    code += "print(peak(torch.device('cpu')))"
    words = [sys.executable, "-c", code]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    assert 1e8 < int(done.stdout) < 2e9
