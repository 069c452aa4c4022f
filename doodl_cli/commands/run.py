"""`doodl run`: optimise x_T so that the finished picture scores better."""

import math
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from doodl_cli.commands.application import launch, resolve
from doodl_cli.commands.destination import (
    check_free,
    claim,
    find_destination,
    hydra_files,
    is_pattern,
    locked,
    was_begun,
)
from doodl_cli.commands.resume import OWN_KEYS, change, open_run
from doodl_cli.commands.saved import check_sinks, check_start
from doodl_cli.config import GUIDANCES, Config, is_finite, read_config, show
from doodl_cli.errors import CannotWrite, OutOfTime, Terminated, UserError
from doodl_cli.requests import Request, list_requests

if TYPE_CHECKING:  # they take seconds to import, and a run is checked before
    from doodl_cli.guidance import Guidance, Score
    from doodl_cli.models.latent_model import LatentModel
    from doodl_cli.optimize import MicroBatch, Record
    from doodl_cli.run_directory import RunDirectory
    from doodl_cli.sampling.solve import Pair
    from doodl_cli.sinks import Sinks


def main(words: list[str]) -> None:
    launch("run", run, check, words)


def check(cfg: DictConfig) -> tuple[Config, list[Request], dict[str, Any] | None]:
    """Return the checked configuration, its samples, and the metadata of the run to go on with.

    Raises UserError.
    """
    values = resolve(cfg)
    resume, force, seconds = (values.pop(key) for key in OWN_KEYS)
    if not isinstance(force, bool):
        raise UserError(f"force={show(force)}: must be true or false")
    number = isinstance(seconds, int | float) and not isinstance(seconds, bool)
    if seconds is not None and not (number and is_finite(seconds) and seconds > 0):
        raise UserError(f"max_seconds={show(seconds)}: must be a number above 0 or null")
    composed = read_config(values)
    if resume is not None:
        config, requests, metadata = open_run(str(resume))
        if HydraConfig.initialized():  # a sweep is looked through before its jobs start
            words = HydraConfig.get().overrides.task
            given = [word.lstrip("+~").partition("=")[0].partition("@")[0] for word in words]
            config = change(config, composed, given, force, resume)
        check_sinks(config)
        return config, requests, metadata
    check_sinks(composed)
    if force:
        raise UserError("force=true: needs resume=DIR")
    config = check_start(composed)
    if config.prompt is None and config.prompts is None:
        raise UserError('prompt: missing; must be text, as in prompt="a red apple"')
    if not config.guidance:
        names = ", ".join(GUIDANCES)
        raise UserError(f"guidance: missing; must be one of {names}, or a list: guidance=[a,b]")
    return config, list_requests(config), None


def run(cfg: DictConfig) -> float | None:
    """Check, load, optimise and save; return the held-out score (see `held_out_score`).

    Nothing is written before the model is there.
    """
    began = time.monotonic()
    config, requests, earlier = check(cfg)
    path = find_destination(cfg)
    if earlier is not None:
        path = Path(cfg.resume).expanduser().absolute()
    elif was_begun(cfg, path):
        config, requests, earlier = open_run(str(path))
    if earlier is None:
        check_free(path, is_pattern(cfg))
        return work(cfg, config, requests, path, None, began)
    if earlier.get("status") == "done":
        from doodl_cli.commands.report import write_page
        from doodl_cli.run_directory import remove_state

        remove_state(path)  # what it may have been killed just before
        write_page(path)
        print("already done")
        print(path)
        return held_out_score(config, earlier["samples"])
    with locked(path):
        return work(cfg, config, requests, path, earlier, began)


def held_out_score(config: Config, samples: list[dict[str, Any]]) -> float | None:
    """Return the first score of `evaluate` at the best iterates, the mean over the samples.

    None where nothing was evaluated, or where a sample has no such score.
    """
    for name in config.evaluate:
        scores = [sample["evaluate"].get("best", {}).get(name) for sample in samples]
        found = [score for score in scores if score is not None and math.isfinite(score)]
        return sum(found) / len(found) if len(found) == len(scores) > 0 else None
    return None


@dataclass(frozen=True)
class Prepared:
    """All that a run's batches need; `start` is the first one's pair at x_T, None to be found."""

    config: Config
    requests: list[Request]
    model: "LatentModel"
    guidance: dict[str, "Guidance"]
    evaluation: dict[str, "Score"]
    method: Callable[..., Iterator["Record"]]
    facts: dict[str, Any]
    start: "Pair | None"
    micro_batch: "MicroBatch"  # of all batches: what did not fit in one does not in the next


def prepare(
    config: Config, requests: list[Request], model: "LatentModel", earlier: dict[str, Any] | None
) -> Prepared:
    """Make the scores, and check what only they can. Raises UserError; writes nothing."""
    from doodl_cli.commands import task
    from doodl_cli.commands.start import describe_start, find_start
    from doodl_cli.guidance import build_evaluation, build_guidance

    model.check_texts([text for r in requests for text in (r.prompt, r.negative_prompt)])
    guidance = build_guidance(config.guidance, model)
    evaluation = build_evaluation(config.evaluate, config.guidance, model)
    own = [*(term.score for term in guidance.values()), *evaluation.values()]
    references = task.try_conditions(model, requests, own)
    first = requests[: config.n_together]
    problem = task.make_problem(config, model, first, guidance, evaluation)
    method = task.build_method(config, model)
    facts = task.collect_facts(config, model, problem)
    facts |= {"references": references} if references else {}
    facts["init"] = (earlier or {}).get("init") or describe_start(config)
    start = find_start(config, model, problem, first) if earlier is None else None
    together = problem.micro_batch
    return Prepared(config, requests, model, guidance, evaluation, method, facts, start, together)


def carry_out(prepared: Prepared, directory: "RunDirectory", sinks: "Sinks") -> Iterator["Record"]:
    """Make and save the records of every batch that is left; yield each once it is saved."""
    from doodl_cli.commands import task
    from doodl_cli.commands.progress import follow
    from doodl_cli.commands.start import find_start

    config, start = prepared.config, prepared.start
    while directory.samples:
        batch = [sample.request for sample in directory.samples]
        problem = task.make_problem(
            config, prepared.model, batch, prepared.guidance, prepared.evaluation
        )
        problem = replace(problem, micro_batch=prepared.micro_batch)
        if directory.loop is not None:
            start = directory.loop["x_T"][0], directory.loop["x_T"][1]
        start = start or find_start(config, prepared.model, problem, batch)
        records = prepared.method(problem, start, directory.loop)
        for record in follow(records, config.last_iteration, directory):
            directory.add(record)
            sinks.add(record, directory.batch)
            yield record
        grid, batch_number = f"{directory.batch_folder}grid.png", directory.batch
        directory.finish_batch()
        sinks.add_grid(directory.path / grid, batch_number)
        start = None


def work(
    cfg: DictConfig,
    config: Config,
    requests: list[Request],
    path: Path,
    earlier: dict[str, Any] | None,
    began: float,
) -> float | None:
    """Load, and optimise batch by batch: from the start, or from the state in the folder."""
    from doodl_cli.commands import task
    from doodl_cli.commands.progress import logged, summarize
    from doodl_cli.commands.report import write_page
    from doodl_cli.run_directory import RunDirectory
    from doodl_cli.sinks import open_sinks
    from doodl_cli.state import read_state

    state = None if earlier is None else read_state(path)
    device = task.find_device(config.device)
    config = task.settle_guidance(task.settle(config, device))
    model = task.load(config, device)
    prepared, hydra = prepare(config, requests, model, earlier), {}
    if earlier is None:
        path, hydra = claim(path, is_pattern(cfg)), hydra_files(cfg)
    cost = task.Meter(model, device, state.progress["cost"] if state else None)
    config = replace(config, output_dir=str(path))
    try:
        with (
            locked(path) if earlier is None else nullcontext(),
            RunDirectory(
                path, config, prepared.facts, cost, hydra, requests, earlier, state
            ) as directory,
            logged(directory),
            open_sinks(config, directory.batch, directory.n_records) as sinks,
        ):
            for record in carry_out(prepared, directory, sinks):
                last = directory.is_last_batch and record.iteration == config.last_iteration
                seconds = time.monotonic() - began
                if cfg.max_seconds and not last and seconds + record.seconds > cfg.max_seconds:
                    raise OutOfTime(f"max_seconds={cfg.max_seconds}")
    except (KeyboardInterrupt, Terminated):
        print(f"doodl: interrupted; go on with resume={path}", file=sys.stderr)
        raise
    except OutOfTime as error:
        print(f"doodl: {error} are over; go on with resume={path}", file=sys.stderr)
    except CannotWrite as error:
        if not (path / "config.yaml").exists():
            raise
        raise CannotWrite(f"{error}; go on with resume={path}") from error
    write_page(path)
    summarize(directory)
    return held_out_score(config, directory.describe())
