"""What a checkpoint may be, from the command line: runs, and one line for what cannot be read."""

import json
import os
import pickle
import shutil
import sys
from pathlib import Path

import pytest
import torch
from huggingface_hub.utils import filter_repo_objects
from safetensors.torch import load_file, save_file

from doodl_cli.cli import main
from doodl_cli.models.pipeline import load_pipeline
from tests.pipelines import make_pipeline
from tests.test_models import CPU, settings_of

RUN = ["run", "model=diffusers", "guidance=colourfulness", "prompt=x", "device=cpu"]
UNET = "unet/diffusion_pytorch_model.safetensors"
TEXT = "text_encoder/model.safetensors"
WEIGHTS = (UNET, TEXT, "vae/diffusion_pytorch_model.safetensors")


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folders = {family: tmp_path_factory.mktemp(family) for family in ("sd15", "sdxl")}
    for family, folder in folders.items():
        make_pipeline(family).save_pretrained(folder)
    return folders


@pytest.fixture
def folder(saved, tmp_path, monkeypatch):
    """A copy of the smallest checkpoint, outside of the working directory, which is empty."""
    shutil.copytree(saved["sd15"], tmp_path / "checkpoint")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setattr(sys, "argv", ["doodl"])
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "checkpoint"


def pickle_weights(folder):
    """Turn a checkpoint's weights into .bin files, as they were published before safetensors."""
    for file in WEIGHTS:
        weights = load_file(folder / file)
        (folder / file).unlink()
        name = file.replace("text_encoder/model.", "text_encoder/pytorch_model.")
        torch.save(weights, folder / name.replace("safetensors", "bin"))


def edit(path, **changes):
    values = json.loads(path.read_text())
    path.write_text(json.dumps({**values, **changes}))


def fails(words, capfd):
    """Return the one line that a command ends with, having written nothing."""
    assert main(words) == 2
    out, err = capfd.readouterr()
    assert out == ""
    assert err.startswith("doodl: ")
    assert err.count("\n") == 1
    assert list(Path().iterdir()) == []
    return err


@pytest.mark.parametrize("family", ["sd15", "sdxl"])
def test_a_folder_is_optimised_and_rendered_again(family, saved, folder):
    words = [f"model.path={saved[family]}", "sampler.n_steps=2", "optimizer.n_iters=1"]
    assert main([*RUN, *words, "model.width=96", "output_dir=run"]) == 0
    metadata = json.loads(Path("run/metadata.json").read_text())
    assert metadata["status"] == "done"
    assert len(metadata["model"]["weights"][UNET]) == 64
    (sample,) = metadata["samples"]
    assert sample["initial"] != sample["final"]
    assert main(["sample", "run=run", "which=final", "output_dir=again"]) == 0
    again = Path("again/samples/000/initial.png").read_bytes()
    assert again == Path("run/samples/000/final.png").read_bytes()


def test_turbo_models_take_one_step_without_classifier_free_guidance(folder):
    words = ["sample", "model=sd_turbo", f"model.path={folder}", "prompt=x", "device=cpu"]
    assert main([*words, "dtype=float32", "model.variant=null", "output_dir=run"]) == 0
    metadata = json.loads(Path("run/metadata.json").read_text())
    assert metadata["cost"]["network_calls"] == 1


BAD_SETTINGS = [
    ([], "model.path: missing; must be a diffusers folder, or a name"),
    (["model.path=nowhere"], "model.path=nowhere: no such folder; must be a diffusers folder"),
    (["model.height=100"], "model.height=100: must be a multiple of 8"),
    (["model.lora=nowhere"], "model.lora=nowhere: no such file; must be a LoRA's"),
    (["model.width=4"], "model.width=4: must be a whole number from 8 or null"),
    (["model=emoji", "model.width=64"], "model.width=64: needs model=diffusers"),
    (["model.held_out=null", "evaluate=clip_text_b"], "model.held_out=null: model=diffusers has"),
    (["guidance=aesthetic", "model.heads=null"], "guidance.aesthetic.heads=null: model=diffusers"),
    (["guidance=clip_text", "model.clips=null"], "guidance.clip_text.clips=null: model=diffusers"),
    (
        ["guidance=classifier", "guidance.classifier.target=x"],
        "guidance.classifier.source=embedded: model=diffusers has no classifier of its own",
    ),
]


@pytest.mark.parametrize(("words", "line"), BAD_SETTINGS)
def test_settings_that_a_checkpoint_cannot_have_are_refused_at_once(words, line, folder, capfd):
    path = [f"model.path={folder}"] if words and "path" not in words[0] else []
    assert line in fails([*RUN, *path, *words], capfd)


def test_what_is_not_here_is_named_with_the_command_that_fetches_it(folder, capfd, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    line = fails([*RUN, "model=sdxl", "evaluate=colourfulness"], capfd)
    assert "`hf download stabilityai/stable-diffusion-xl-base-1.0 --include" in line
    assert "text_encoder*/model.fp16.safetensors" in line


def test_the_hubs_cache_is_used_without_the_network(folder, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    cache = tmp_path / "cache"
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
    repository = cache / "models--someone--tiny"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs/main").write_text("0" * 40)
    folder.rename(repository / "snapshot")
    (repository / "snapshots").mkdir()
    (repository / "snapshot").rename(repository / "snapshots" / ("0" * 40))
    model = load_pipeline(settings_of("someone/tiny"), CPU, "float32")
    assert model.folder.name == "0" * 40


@pytest.mark.parametrize("kind", ["safetensors", "bin"])
def test_only_the_files_that_are_needed_are_fetched_and_bin_files_last(
    kind, folder, tmp_path, monkeypatch
):
    """On a stand-in for the hub with the plain weights, a variant and what else is published."""
    if kind == "bin":
        pickle_weights(folder)
    weights = [path for path in folder.rglob("*") if path.suffix in (".safetensors", ".bin")]
    for path in weights:
        path.with_suffix(f".fp16{path.suffix}").write_bytes(b"another variant")
    (folder / "v1-5-pruned.safetensors").write_bytes(b"all in one")
    (folder / "safety_checker").mkdir()
    (folder / "safety_checker/model.safetensors").write_bytes(b"not needed")
    fetched = tmp_path / "fetched"

    def snapshot_download(repository, allow_patterns, local_files_only):
        if local_files_only:
            raise FileNotFoundError("nothing in the cache")
        files = [path for path in folder.rglob("*") if path.is_file()]
        names = [str(path.relative_to(folder)) for path in files]
        for name in filter_repo_objects(names, allow_patterns=allow_patterns):
            (fetched / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(folder / name, fetched / name)
        return str(fetched)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    load_pipeline(settings_of("someone/tiny"), CPU, "float32")
    found = [path for path in fetched.rglob("*") if path.suffix in (".safetensors", ".bin")]
    assert sorted(path.relative_to(fetched) for path in found) == sorted(
        path.relative_to(folder) for path in weights
    )


@pytest.mark.parametrize("damage", ["missing", "truncated", "garbage"])
@pytest.mark.parametrize(
    "file", ["model_index.json", UNET, TEXT, "scheduler/scheduler_config.json"]
)
def test_a_damaged_checkpoint_is_refused_in_one_line(file, damage, folder, capfd):
    path = folder / file
    whole = path.read_bytes()
    path.unlink()
    if damage != "missing":
        path.write_bytes(whole[:-100] if damage == "truncated" else b"not a checkpoint")
    assert f"model.path={folder}: " in fails([*RUN, f"model.path={folder}"], capfd)


UNET_LACKS = "for UNet2DConditionModel: size mismatch for up_blocks"
BAD_FILES = [
    ("model_index.json", {"_class_name": "FluxPipeline"}, "a FluxPipeline; must be Stable Diff"),
    ("model_index.json", {"unet": ["diffusers", "UNet3DModel"]}, "its unet is UNet3DModel; must"),
    ("model_index.json", {"vae": None}, "its vae is None; must be AutoencoderKL"),
    ("unet/config.json", {"in_channels": 9}, "cannot be loaded"),
    ("unet/config.json", {"time_cond_proj_dim": 8}, "cannot be loaded"),
    ("unet/config.json", {"layers_per_block": 2}, UNET_LACKS),
    ("unet/config.json", {"sample_size": None}, "model.height and model.width must"),
    ("vae/config.json", {"latents_mean": [0.0]}, "the auto-encoder shifts its latents"),
    ("text_encoder/config.json", {"num_hidden_layers": 9}, "cannot be loaded: text_encoder lacks"),
    ("scheduler/scheduler_config.json", {"prediction_type": "sample"}, "prediction_type 'sample'"),
    ("scheduler/scheduler_config.json", {"beta_schedule": "sigmoid"}, "beta_schedule 'sigmoid'"),
    ("scheduler/scheduler_config.json", {"timestep_spacing": "x"}, "timestep_spacing 'x': must"),
    (
        "scheduler/scheduler_config.json",
        {"_class_name": "FlowMatchEulerDiscreteScheduler"},
        "must be of a model with DDIM's noise schedule",
    ),
]


@pytest.mark.parametrize(("file", "changes", "line"), BAD_FILES)
def test_a_checkpoint_that_is_not_supported_says_why(file, changes, line, folder, capfd):
    edit(folder / file, **changes)
    assert line in fails([*RUN, f"model.path={folder}"], capfd)


def rename_weights(folder, before, after):
    for file in WEIGHTS:
        path = folder / file
        path.rename(path.with_name(path.name.replace(before, after)))


def test_a_variant_is_read_when_it_is_named_and_hinted_at_when_it_is_not(folder, capfd):
    rename_weights(folder, ".safetensors", ".fp16.safetensors")
    line = fails([*RUN, f"model.path={folder}"], capfd)
    assert "its weights are missing" in line
    assert "those of model.variant=fp16" in line
    load_pipeline(settings_of(folder, variant="fp16"), CPU, "float32")
    assert "model.variant=fp32 are missing" in fails(
        [*RUN, f"model.path={folder}", "model.variant=fp32"], capfd
    )


def test_pickled_weights_are_read_as_tensors_only(folder, capfd):
    """A pickle that runs code is refused and its code does not run."""
    reference = load_pipeline(settings_of(folder), CPU, "float32")
    pickle_weights(folder)
    model = load_pipeline(settings_of(folder), CPU, "float32")
    assert torch.equal(model.encode_text(["x"]).states, reference.encode_text(["x"]).states)
    for name in (UNET.replace("safetensors", "bin"), "text_encoder/pytorch_model.bin"):
        whole = (folder / name).read_bytes()
        torch.save({"conv_in.weight": Intruder()}, folder / name, pickle_module=pickle)
        assert "cannot be loaded" in fails([*RUN, f"model.path={folder}"], capfd)
        (folder / name).write_bytes(whole)


class Intruder:
    def __reduce__(self):
        return os.mkdir, ("intruded",)


def test_text_encoders_of_before_transformers_5_are_read(folder):
    """The published checkpoints name their weights text_model.*."""
    reference = load_pipeline(settings_of(folder), CPU, "float32").encode_text(["a cat"])
    weights = load_file(folder / TEXT)
    plain = {name.removeprefix("text_model."): value for name, value in weights.items()}
    for prefix in ("", "text_model."):
        renamed = {prefix + name: value for name, value in plain.items()}
        save_file(renamed, folder / TEXT, {"format": "pt"})
        found = load_pipeline(settings_of(folder), CPU, "float32").encode_text(["a cat"])
        assert torch.equal(found.states, reference.states)
