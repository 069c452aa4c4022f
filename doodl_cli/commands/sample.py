"""`doodl sample`: render a prompt, or a run's saved noise again, without optimising."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from doodl_cli.commands.application import launch, resolve
from doodl_cli.commands.destination import claim, free_destination, hydra_files, is_pattern
from doodl_cli.commands.saved import check_plain, check_start, read_run
from doodl_cli.config import WHICH, Config, read_config, show
from doodl_cli.errors import UserError
from doodl_cli.requests import Request, list_requests

BESIDE_RUN = ("run", "which", "output_dir", "device")


def main(words: list[str]) -> None:
    launch("sample", sample, check, words)


def check(cfg: DictConfig) -> tuple[Config, list[Request], list[Path]]:
    """Return the checked configuration, its samples and, with `run`, the files of their latents.

    Raises UserError.
    """
    values = resolve(cfg)
    run, which = values.pop("run"), values.pop("which")
    if which not in WHICH:
        raise UserError(f"which={show(which)}: must be one of {', '.join(WHICH)}")
    config = read_config(values)
    if run == "":
        raise UserError("run=: must be a run directory")
    if run is not None:
        return read_run(run, "run")
    check_plain(config, "sample")
    config = check_start(config)
    if config.prompt is None and config.prompts is None:
        raise UserError("prompt: missing; must be text, or give a run to render again: run=DIR")
    return config, list_requests(config), []


def sample(cfg: DictConfig) -> None:
    """Check, load, render and save. Nothing is written before the model is there."""
    config, requests, latents = check(cfg)
    given = [word.lstrip("+").partition("=")[0] for word in HydraConfig.get().overrides.task]
    if latents:
        for key in given:
            if key not in BESIDE_RUN:
                raise UserError(
                    f"{key}: run={cfg.run} brings its own; must be one of {', '.join(BESIDE_RUN)}"
                )
        if "device" in given:
            config = replace(config, device=cfg.device)
    path = free_destination(cfg)

    from doodl_cli.commands import task
    from doodl_cli.commands.start import describe_start, find_start
    from doodl_cli.optimize import Problem, render
    from doodl_cli.run_directory import RunDirectory
    from doodl_cli.sampling.solve import Pair

    device = task.find_device(config.device)
    config = task.settle(config, device)
    model = task.load(config, device)
    model.check_texts([text for r in requests for text in (r.prompt, r.negative_prompt)])

    # A picture that was guided on its way is decoded again, from where the way ended.
    kind = "x_0" if latents and config.guides_on_the_way and cfg.which != "initial" else "x_T"

    def prepare(batch: Sequence[Request]) -> tuple[Problem, Pair]:
        problem = task.make_problem(config, model, batch)
        if not latents:
            return problem, find_start(config, model, problem, batch)
        files = [latents[requests.index(request)] for request in batch]
        return problem, task.read_pair(files, f"{kind}_{cfg.which}")

    # What cannot be used is said before anything is written.
    problem, pair = prepare(requests[: config.n_together])
    facts = task.collect_facts(config, model, problem)
    if latents:
        run = latents[0].parents[2]
        facts["rendered_from"] = {"run": str(run.absolute()), "which": cfg.which, "latents": kind}
    else:
        facts["init"] = describe_start(config)
    hydra, cost = hydra_files(cfg), task.Meter(model, device)
    path = claim(path, is_pattern(cfg))
    config = replace(config, output_dir=str(path))
    with RunDirectory(path, config, facts, cost, hydra, requests) as directory:
        while directory.samples:
            if directory.batch > 0:
                problem, pair = prepare([sample.request for sample in directory.samples])
            directory.add_pictures(render(problem, pair, finished=kind == "x_0"))
            directory.finish_batch()
    print(path)
