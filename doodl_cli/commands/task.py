"""From a checked configuration to the objects that do the work, and the facts about them."""

import importlib.metadata
import math
import os
import platform
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

import doodl_cli
from doodl_cli.config import Bdia, Checkpoint, Classifier, Config, ImageInit, NoiseAware, Sampler
from doodl_cli.errors import UserError
from doodl_cli.guidance import Prompt, Score
from doodl_cli.guidance.classifier import find_targets
from doodl_cli.guidance.references import find_references
from doodl_cli.methods import METHODS
from doodl_cli.models.latent_model import LatentModel, load_model
from doodl_cli.models.locate import find_noise_aware, hash_file
from doodl_cli.models.noise_aware import load_noise_aware
from doodl_cli.models.pipeline import load_pipeline
from doodl_cli.models.tuning import tune
from doodl_cli.optimize import Problem, Record, Settings
from doodl_cli.optimize.regularisers import REGULARISERS
from doodl_cli.problem import find_memory, pose_problem
from doodl_cli.requests import Request
from doodl_cli.sampling import SAMPLERS, Grid, Table, make_grid
from doodl_cli.sampling.bdia import UNDAMPED, damp, find_gamma
from doodl_cli.sampling.solve import Pair

LOCAL = "local-dir:"
PATHS = ("path", "file", "pretrained", "lora")
Method = Callable[[Problem, Pair, Mapping[str, Tensor] | None], Iterator[Record]]
PACKAGES = ("torch", "diffusers", "transformers", "open_clip_torch")


def find_device(name: str) -> torch.device:
    """Return the device; `auto` is the first of CUDA, MPS and the CPU that is there.

    Raises UserError for a device that is not there.
    """
    n_gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    here = ["cuda"] * bool(n_gpus) + [f"cuda:{i}" for i in range(n_gpus)]
    here += ["mps"] * torch.backends.mps.is_available() + ["cpu"]
    if name != "auto" and name not in here:
        raise UserError(f"device={name}: not on this machine; must be auto, {', '.join(here)}")
    return torch.device(here[0] if name == "auto" else name)


def settle(config: Config, device: torch.device) -> Config:
    """Return the configuration to be saved, which means the same from anywhere later on."""
    model, init = settle_paths(config.model), settle_paths(config.init)
    prompts = config.prompts and os.path.abspath(os.path.expanduser(config.prompts))
    method = settle_paths(config.method)
    sampler = settle_sampler(config)
    return replace(
        config,
        device=str(device),
        model=model,
        method=method,
        init=init,
        prompts=prompts,
        sampler=sampler,
    )


def settle_sampler(config: Config) -> Sampler:
    """Return the sampler with the gamma that null stands for."""
    sampler = config.sampler
    if not isinstance(sampler, Bdia) or sampler.gamma is not None:
        return sampler
    from_image, n_steps = isinstance(config.init, ImageInit), sampler.n_steps
    return replace(sampler, gamma=find_gamma(n_steps, UNDAMPED) if from_image else damp(n_steps))


def settle_guidance(config: Config) -> Config:
    """Return the configuration with what its guidances and held-out scores read found on the disk.

    Raises UserError for reference pictures that are not there.
    """
    guidance = {name: settle_paths(settings) for name, settings in config.guidance.items()}
    evaluate = {name: settle_paths(settings) for name, settings in config.evaluate.items()}
    return replace(config, guidance=guidance, evaluate=evaluate)


def settle_paths(section: Any) -> Any:
    """Return a section whose paths are absolute, as far as they name something."""
    values: dict[str, Any] = {}
    for field in fields(section):
        value = getattr(section, field.name)
        if field.name == "images" and value is not None:
            values[field.name] = [str(path) for path in find_references(value)]
        elif isinstance(value, list):
            values[field.name] = [settle_paths(entry) for entry in value]
        elif isinstance(value, str) and value.startswith(LOCAL):
            folder = os.path.expanduser(value.removeprefix(LOCAL))
            values[field.name] = f"{LOCAL}{os.path.abspath(folder)}"
        elif field.name in PATHS and value and os.path.exists(os.path.expanduser(value)):
            values[field.name] = os.path.abspath(os.path.expanduser(value))
    return replace(section, **values)


def load(config: Config, device: torch.device) -> LatentModel:
    """Load the model that a configuration names. Raises UserError."""
    chosen, dtype = config.model, set_precision(config.dtype)
    set_determinism(config.deterministic and device.type == "cuda")
    if config.compile and device.type != "cuda":
        raise UserError(f"compile=true: device={device}; must be device=cuda")
    if isinstance(chosen, Checkpoint):
        model = load_pipeline(chosen, device, dtype)
    else:
        model = load_model(chosen.name, chosen.path, device, dtype)
    tune(model, config.memory.unet_checkpointing, config.compile)
    return model


def set_precision(name: str) -> str:
    """Return what the networks compute in; tf32 is float32 whose products are rounded on a GPU.

    So are those of what stays in float32 beside networks in half precision: an auto-encoder for its
    range, small scorers.
    """
    rounded = name in ("tf32", "float16", "bfloat16")
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = rounded
    return "float32" if name == "tf32" else name


def set_determinism(wanted: bool) -> None:
    """Have a GPU add up in one order whenever an operation is repeated; a few cannot, and raise."""
    if wanted:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # one of the two that do
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    if wanted != torch.are_deterministic_algorithms_enabled():  # the call imports the compiler: 1 s
        torch.use_deterministic_algorithms(wanted)


def find_grid(config: Config, model: LatentModel) -> Grid:
    """Return the sampler's timesteps. Raises UserError where the model's schedule has too few."""
    try:
        return make_grid(model.schedule, config.sampler.n_steps, config.sampler.spacing)
    except ValueError as error:
        raise UserError(str(error)) from error


def make_table(config: Config, model: LatentModel) -> Table:
    """Return the sampler's table. Raises UserError where the model's schedule forbids it."""
    sampler = config.sampler
    options = {name: getattr(sampler, name) for name in ("p", "gamma") if hasattr(sampler, name)}
    try:
        return SAMPLERS[sampler.name](find_grid(config, model), **options)
    except ValueError as error:
        raise UserError(str(error)) from error


def settle_memory(config: Config, model: LatentModel, n_samples: int) -> Config:
    """Return the configuration of so many samples with what memory=auto stands for.

    It is the same for all batches then, and how often they evaluate the network is known.
    """
    if config.memory.name != "auto" or config.compile:
        return config
    n_together = min(n_samples, config.n_together)
    name = find_memory(model, make_table(config, model), "auto", n_together)
    return replace(config, memory=replace(config.memory, name=name))


def make_problem(
    config: Config,
    model: LatentModel,
    requests: Sequence[Request],
    guidance: dict[str, Any] | None = None,
    evaluation: dict[str, Callable[..., Tensor]] | None = None,
) -> Problem:
    """Return what is to be optimised or rendered: the samples of a batch.

    Raises UserError where the model's schedule or the memory mode forbids the sampler.
    """
    try:
        return pose_problem(
            model,
            table=make_table(config, model),
            prompts=[Prompt(r.prompt, r.target, r.image) for r in requests],
            negative_prompts=[request.negative_prompt for request in requests],
            seeds=[request.seed for request in requests],
            cfg_scale=config.cfg_scale,
            memory=config.memory.name,
            guidance=guidance or {},
            evaluation=evaluation or {},
            compiled=config.compile,
            at_the_end=config.differentiates_chain,
        )
    except ValueError as error:
        raise UserError(str(error)) from error


@torch.no_grad()
def try_conditions(
    model: LatentModel, requests: Sequence[Request], scores: Sequence[Score]
) -> dict[str, str]:
    """Score a grey picture for every class and reference that is a sample's own.

    So what is wrong with one is said before anything is written. Returns the sha256 of the pictures
    by their paths. Raises UserError.
    """
    conditions = {(r.target, r.image): r.prompt for r in requests if r.target or r.image}
    grey = torch.zeros(1, 3, *model.picture_size, device=model.device)
    for (target, image), text in conditions.items():
        for score in scores:
            score(grey, [Prompt(text, target, image)])
    return {r.image: hash_file(Path(r.image)) for r in requests if r.image}


def make_settings(config: Config) -> Settings:
    """Return the update rule's settings."""
    optimizer = config.optimizer
    return Settings(
        n_iters=optimizer.n_iters,
        lr=optimizer.lr,
        rule=optimizer.name,
        momentum=optimizer.momentum,
        clip=math.inf if optimizer.clip is None else optimizer.clip,
        perturb=optimizer.perturb,
        renormalize=optimizer.renormalize,
        tied=optimizer.tied,
        balance=optimizer.balance,
        schedule=optimizer.schedule,
        warmup=optimizer.warmup,
        regularisers={
            name: weight for name in REGULARISERS if (weight := getattr(optimizer, name))
        },
        stop_on=optimizer.stop_on,
        patience=optimizer.patience,
    )


def build_method(config: Config, model: LatentModel) -> Method:
    """Return the configured method: (problem, x_T, state) to the records from x_T or the state on.

    Raises UserError for a classifier of noisy latents that cannot be loaded.
    """
    method = config.method
    if method.name == "doodl":
        n_candidates = config.optimizer.n_candidates
        return partial(METHODS["doodl"], settings=make_settings(config), n_candidates=n_candidates)
    if isinstance(method, NoiseAware):
        chosen = config.guidance["classifier"]
        assert isinstance(chosen, Classifier)
        network = load_noise_aware(model, method.path)
        find = partial(find_targets, network.labels, len(network.labels), chosen.target)
        if chosen.target is not None:
            find([""])  # says so at once where there is no such class
        classifier = network.for_classes(find, chosen.weight)
        return partial(METHODS[method.name], strength=method.strength, classifier=classifier)
    options = {key: value for key, value in asdict(method).items() if key != "name"}
    return partial(METHODS[method.name], **options)


def read_pair(files: list[Path], name: str, key: str = "run") -> tuple[Tensor, Tensor]:
    """Return the pair, two tensors (b, c, h, w), that a run saved under `name`, a sample a file.

    `key` is what the user gave the run by.
    """
    try:
        pairs = torch.stack([load_file(file)[name] for file in files])
    except (OSError, KeyError, SafetensorError) as error:
        run = files[0].parents[2]
        raise UserError(f"{key}={run}: no readable {name} in its latents") from error
    return pairs[:, 0], pairs[:, 1]


def collect_facts(config: Config, model: LatentModel, problem: Problem) -> dict[str, Any]:
    """Return what metadata.json says about a run before it starts."""
    versions = {name: importlib.metadata.version(name) for name in PACKAGES}
    versions |= {"doodl": doodl_cli.__version__, "python": platform.python_version()}
    device = torch.device(config.device)
    return {
        "versions": versions,
        "git_revision": git_revision(),
        "device": config.device,
        "device_name": torch.cuda.get_device_name(device) if device.type == "cuda" else None,
        "model": {"name": model.name, "weights": dict(model.weights)},
        "method": describe_method(config, model),
        "sampler": {
            "name": problem.table.name,
            "n_steps": config.sampler.n_steps,
            "calls_per_sample": problem.table.n_calls,
            "growth": problem.table.growth,
        },
        "memory": problem.memory,
        "guidance": {name: dict(term.facts) for name, term in problem.guidance.items()},
    }


def describe_method(config: Config, model: LatentModel) -> dict[str, Any]:
    """Return what metadata.json says about the method: its name, and a classifier's sha256."""
    method = config.method
    facts: dict[str, Any] = {"name": method.name}
    if isinstance(method, NoiseAware):
        weights = find_noise_aware(model.folder, method.path)[1]
        facts |= {"path": str(weights), "sha256": hash_file(weights)}
    return facts


def git_revision() -> str | None:
    """Return the commit of the checkout that this package runs from, `-dirty` if it was changed."""
    checkout = Path(doodl_cli.__file__).parents[1]
    if not (checkout / ".git").exists():
        return None
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        done = subprocess.run(command, cwd=checkout, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None


class Meter:
    """What a run has cost since the meter was made, and `before`, as an earlier meter said."""

    def __init__(
        self, model: LatentModel, device: torch.device, before: dict[str, Any] | None = None
    ) -> None:
        self.model = model
        self.device = device
        self.began = time.monotonic()
        self.before = before or {"network_calls": 0, "vjps": 0, "seconds": 0.0, "peak_bytes": None}

    def __call__(self) -> dict[str, Any]:
        return {
            "network_calls": self.before["network_calls"] + self.model.calls.network,
            "vjps": self.before["vjps"] + self.model.calls.vjps,
            "seconds": self.before["seconds"] + time.monotonic() - self.began,
            "peak_bytes": max(peak_bytes(self.device) or 0, self.before["peak_bytes"] or 0) or None,
        }


def peak_bytes(device: torch.device) -> int | None:
    """Return the most memory in use so far: of the GPU, or of this process on the CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    status = Path("/proc/self/status")  # Linux, whose getrusage counts the starting process, too
    found = re.search(r"VmHWM:\s+(\d+) kB", status.read_text()) if status.exists() else None
    if found:
        return 1024 * int(found[1])
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak
