"""`doodl run`: optimise x_T so that the finished picture scores better."""

import sys
from dataclasses import replace

from omegaconf import DictConfig

from doodl_cli.commands.application import launch, resolve
from doodl_cli.commands.destination import check_free, claim, find_destination, is_pattern
from doodl_cli.commands.saved import check_start
from doodl_cli.config import GUIDANCES, Config, read_config
from doodl_cli.errors import Terminated, UserError


def main(words: list[str]) -> None:
    launch("run", run, check, words)


def check(cfg: DictConfig) -> Config:
    """Return the checked configuration. Raises UserError."""
    config = check_start(read_config(resolve(cfg)))
    if config.prompt is None:
        raise UserError('prompt: missing; must be text, as in prompt="a red apple"')
    if not config.guidance:
        names = ", ".join(GUIDANCES)
        raise UserError(f"guidance: missing; must be one of {names}, or a list: guidance=[a,b]")
    return config


def run(cfg: DictConfig) -> None:
    """Check, load, optimise and save. Nothing is written before the model is there."""
    config = check(cfg)
    path = find_destination(cfg)
    check_free(path, is_pattern(cfg))

    from doodl_cli.commands import task
    from doodl_cli.commands.progress import follow, summarize
    from doodl_cli.commands.start import find_start
    from doodl_cli.guidance import build_evaluation, build_guidance
    from doodl_cli.optimize import optimize
    from doodl_cli.run_directory import RunDirectory

    device = task.find_device(config.device)
    config = task.settle_guidance(task.settle(config, device))
    model = task.load(config, device)
    guidance = build_guidance(config.guidance, model)
    evaluation = build_evaluation(config.evaluate, config.guidance, model)
    problem = task.make_problem(config, model, guidance, evaluation)
    facts, hydra = task.collect_facts(config, model, problem), task.hydra_files(cfg)
    x_T, facts["init"] = find_start(config, model, problem)
    cost = task.Meter(model, device)
    path = claim(path, is_pattern(cfg))
    config = replace(config, output_dir=str(path))
    try:
        with RunDirectory(path, config, facts, cost, hydra) as directory:
            records = optimize(problem, task.make_settings(config), x_T)
            for record in follow(records, config.optimizer.n_iters):
                directory.add(record)
    except (KeyboardInterrupt, Terminated):
        print(f"doodl: interrupted; what there is lies in {path}", file=sys.stderr)
        raise
    for i, sample in enumerate(directory.samples):
        if sample.stopped:
            print(f"sample {i} (seed {sample.seed}) stopped: {sample.stopped}", file=sys.stderr)
    summarize(directory)
