"""The public names: light to import, and what docs/api.md and the README show runs as it stands."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from diffusers import DiffusionPipeline, StableDiffusionPipeline
from PIL import Image

import doodl_cli
from tests.pipelines import make_pipeline

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs/api.md"


def test_importing_the_package_imports_nothing_else():
    code = "import sys, doodl_cli as d; print('torch' in sys.modules, 'Guidance' in dir(d))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "True"]


@pytest.mark.parametrize("name", doodl_cli.PUBLIC)
def test_every_public_name_is_there_and_told(name):
    assert getattr(doodl_cli, name).__name__ == name
    assert f"`{name}" in PAGE.read_text()


@pytest.mark.parametrize(("page", "n_lines"), [("docs/api.md", 4), ("README.md", 0)])
def test_the_pages_run_as_they_stand_on_a_tiny_pipeline(
    page, n_lines, monkeypatch, tmp_path, capsys
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        StableDiffusionPipeline, "from_pretrained", lambda *_, **__: make_pipeline("sd15")
    )
    monkeypatch.setattr(DiffusionPipeline, "to", lambda self, _: self)
    names = {}
    for block in re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), re.DOTALL):
        exec(block.replace("n_iters=24", "n_iters=1"), names)
    assert Image.open("best.png").size == (64, 64)
    assert len(capsys.readouterr().out.splitlines()) == n_lines


@pytest.mark.parametrize("family", ["sd21", "sdxl_turbo"])
def test_a_pipeline_is_optimised_at_any_size_and_left_as_it_was(family):
    pipeline = make_pipeline(family)
    before = {name: x.clone() for name, x in pipeline.unet.state_dict().items()}
    records = doodl_cli.optimize_pipeline(
        pipeline,
        "a cat",
        doodl_cli.colourfulness,
        cfg_scale=1.0,
        n_steps=2,
        settings=doodl_cli.Settings(n_iters=1),
        width=96,
    )
    first, last = records
    assert first.images.shape == (1, 3, 64, 96)
    assert list(last.guidance) == ["colourfulness"]
    assert first.grad_norm[0] > 0
    assert all(torch.equal(before[name], x) for name, x in pipeline.unet.state_dict().items())


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"sampler": "euler"}, "sampler='euler': must be one of"),
        ({"width": 100}, "width=100: must be a multiple of 8"),
        ({"n_steps": 1001}, "must be between 1 and 1000"),
        ({"sampler": "ddim", "memory": "reversible"}, "memory"),
    ],
)
def test_what_cannot_be_is_said_at_once(options, line):
    with pytest.raises(ValueError, match=line):
        doodl_cli.optimize_pipeline(make_pipeline("sd15"), "x", doodl_cli.symmetry, **options)


def test_another_pipeline_is_refused_with_the_families_that_are_supported():
    with pytest.raises(ValueError, match="a Other; must be Stable Diffusion 1 and 2, SDXL"):
        doodl_cli.adapt_pipeline(type("Other", (), {})())
