"""The ready experiments: each composes to a valid configuration; the embedded model's run."""

from dataclasses import replace

import pytest
from PIL import Image

from doodl_cli.bench.suite import read_tuned
from doodl_cli.cli import main
from doodl_cli.commands.application import composer, resolve
from doodl_cli.config import Config, read_config
from tests.runs import ROOT, needs_weights, read_metadata

NEEDED = {
    "paper_personalise": ["guidance.clip_image.images=mine.png"],
    "paper_vocabulary": ["guidance.classifier.path=mine", "guidance.classifier.target=Boeing"],
    "paper_aesthetic": ["init.path=mine.png"],
    "emoji_personalise": ["guidance.clip_image.images=mine.png"],
    "emoji_vocabulary": ["guidance.classifier.target=penguin"],
    "emoji_edit": ["init.path=mine.png"],
}
ALL = sorted(path.stem for path in (ROOT / "configs/experiment").glob("*.yaml"))
TUNED = {
    "complex": "emoji_clip_text",
    "vocabulary": "emoji_vocabulary",
    "references": "emoji_personalise",
}
SHORT = ["sampler.n_steps=2", "optimizer.n_iters=1"]


def words(name: str) -> list[str]:
    prompt = [] if name in ("paper_aesthetic", "emoji_edit") else ["prompt=an animal"]
    guided = ["guidance=aesthetic"] if name == "paper" else []
    return [f"experiment={name}", *prompt, *guided, *NEEDED.get(name, [])]


def read(name: str) -> Config:
    with composer(None) as compose:
        return read_config(resolve(compose("run", words(name))))


@pytest.mark.parametrize("name", ALL)
def test_an_experiment_composes(name):
    config = read(name)
    assert config.guidance
    assert config.model.name == ("sd14" if name.startswith("paper_") else "emoji")


@pytest.mark.parametrize(("suite", "name"), TUNED.items())
def test_an_experiment_has_what_its_suite_was_tuned_to(suite, name):
    tuned = read_tuned(suite)["doodl"]
    with composer(None) as compose:
        expected = read_config(resolve(compose("run", [*words(name), *tuned])))
    found = read(name)
    sampler = replace(expected.sampler, gamma=None)  # which other samplers lack
    assert found == replace(expected, sampler=sampler, output_dir=found.output_dir)


def test_the_authors_settings():
    edit = read("paper_aesthetic")
    assert (edit.sampler.n_steps, edit.optimizer.n_iters, edit.optimizer.clip) == (25, 50, 1e-3)
    assert (edit.optimizer.tied, edit.optimizer.renormalize) == (False, False)
    assert (edit.optimizer.perturb, edit.prompt) == (0, "")
    assert edit.guidance["aesthetic"].target == 10
    expected = {
        "paper_clip_text": ("clip_text", 1.0, 1e-3, 1e-4),
        "paper_personalise": ("clip_image", 3.0, 3e-3, 0.0),
        "paper_vocabulary": ("classifier", 0.05, 1e-2, 1e-3),
        "paper_symmetry": ("symmetry", 100.0, 1e-3, 0.0),
    }
    for name, (guidance, weight, clip, perturb) in expected.items():
        config = read(name)
        assert list(config.guidance) == [guidance]
        assert config.guidance[guidance].weight == weight
        assert (config.optimizer.clip, config.optimizer.perturb) == (clip, perturb)
        assert (config.sampler.name, config.sampler.n_steps, config.cfg_scale) == ("edict", 50, 7.5)


@pytest.mark.parametrize("name", [name for name in ALL if name.startswith("emoji_")])
@needs_weights
def test_an_experiment_runs(name, folder):
    Image.new("RGB", (80, 60), "orange").save("mine.png")
    assert main(["run", *words(name), *SHORT, "output_dir=out"]) == 0
    assert read_metadata("out")["status"] == "done"
