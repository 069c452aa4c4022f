"""`doodl bench`: methods on suites of prompts at equal cost, and what to conclude from it."""

import json
import os
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import yaml
from omegaconf import DictConfig

from doodl_cli.bench.budget import KNOBS, Price, spend
from doodl_cli.bench.runs import SETTINGS, Part, Run, list_shards
from doodl_cli.bench.settings import Bench, is_own, read_bench
from doodl_cli.bench.suite import (
    Row,
    find_beside,
    find_file,
    make_requests,
    packaged,
    read_packaged,
    read_suite,
    read_tuned,
)
from doodl_cli.commands.application import composer, explained, resolve
from doodl_cli.commands.arguments import PATH_KEYS, parse_arguments, quote
from doodl_cli.commands.destination import check_free, locked
from doodl_cli.commands.help import choices
from doodl_cli.commands.resume import open_run
from doodl_cli.commands.run import carry_out, prepare
from doodl_cli.config import Config, flatten, read_config, show
from doodl_cli.errors import CannotWrite, Terminated, UserError
from doodl_cli.files import read_values, write_whole, writing
from doodl_cli.models.locate import find_folder, find_noise_aware
from doodl_cli.requests import check_conditions

if TYPE_CHECKING:
    from doodl_cli.models.latent_model import LatentModel

Compose = Callable[..., DictConfig]

# Keys of `doodl run` that say what a bench says itself, and what stands in their place.
REPLACED = {
    "method": "methods=[...]",
    "prompt": "suite=file suite.path=FILE",
    "prompts": "suite=file suite.path=FILE",
    "seed": "seeds=[...]",
    "n_seeds": "seeds=[...]",
    "log": "left out",
}
REPEATED = "deterministic=true"  # the same command gives the same tables, on a GPU too

HELP = """\
doodl bench suite=NAME key=value ...    compare methods at equal cost
doodl bench resume=DIR                  go on with a bench that was cut short
doodl bench pairs DIR methods=a,b       a page that shows blind pairs of two methods' pictures
doodl bench tally FILE...               what the answers say: win rates, agreement

  suite=               {suites}
                       one is needed; suite.path=FILE: the prompts of suite=file
  methods=[...]        of none, best_of_n, one_step, full_chain, universal, noise_aware, doodl
  budget=N             network calls a sample; null: the suite's own
  seeds=[0]            each adds its thousands to the seeds of the prompts
  suite.n_prompts=N    only the first prompts of each part
  vjp_cost=2           what a call with its gradient costs, in calls
  shard=i/n            of all samples each n-th, from the i-th (0 to n-1) on, in one output_dir
  output_dir=DIR       new, empty, or this bench's

Everything else is an override of `doodl run`, for all runs: sampler=edict, cfg_scale=2.
"""


def main(words: list[str]) -> None:
    """Answer `doodl bench`. Raises UserError and whatever a run raises."""
    if words and words[0] in ("pairs", "tally"):
        import importlib

        importlib.import_module(f"doodl_cli.commands.{words[0]}").main(words[1:])
    elif set(words) & {"-h", "--help"}:
        print(HELP.format(suites=", ".join(choices("suite"))), end="")
    else:
        bench(words)


def bench(words: list[str]) -> None:
    """Make the runs that are missing, and then the tables, if all are there."""
    plan = make_plan(words)

    from doodl_cli.bench.collect import collect
    from doodl_cli.bench.report import write_report
    from doodl_cli.commands import task

    first = next(iter(plan.configs.values()))
    model = task.load(first, task.find_device(first.device))
    runs = make_runs(plan, model)
    path = begin(plan)
    if plan.left_out:
        print(f"doodl: noise_aware is left out: {plan.left_out}", file=sys.stderr)
    try:
        for run in runs:
            complete(run, run.folder(path), model)
    except (KeyboardInterrupt, Terminated):
        print(f"doodl: interrupted; go on with bench resume={path}", file=sys.stderr)
        raise
    except CannotWrite as error:
        raise CannotWrite(f"{error}; go on with bench resume={path}") from error
    results = collect(path, plan.parts, plan.bench, model)
    if results is None:
        print("doodl: other shards are not done; bench resume=DIR makes the tables then",
              file=sys.stderr)  # fmt: skip
    else:
        write_report(path, results)
    print(path)


@dataclass(frozen=True)
class Plan:
    """A bench as it was asked for: its own settings, the words of its runs, and the parts.

    `tuned`: by part and method, the overrides that the package's suites were tuned to. `left_out`:
    why noise_aware takes no part where its guidance does.
    """

    bench: Bench
    words: list[str]
    parts: list[Part]
    shards: list[str | None]
    tuned: dict[str, dict[str, list[str]]]
    configs: dict[tuple[str, str], Config]  # by part and method, without the budget's setting
    left_out: str | None = None

    @property
    def settings(self) -> dict[str, Any]:
        """What two benches of one folder have in common."""
        own = {"shard": None, "resume": None, "output_dir": None}
        return {
            "bench": {**self.bench.to_dict(), **own},
            "run": self.words,
            "tuned": self.tuned,
            "prompts": {part.name: digest(part.rows) for part in self.parts},
        }


def digest(rows: list[Row]) -> str:
    """Return what tells the rows of one file from those of another, wherever these are."""
    lines = [{**asdict(row), "image": row.image and Path(row.image).name} for row in rows]
    return sha256(json.dumps(lines, sort_keys=True).encode()).hexdigest()[:16]


def make_plan(words: list[str]) -> Plan:
    """Check a command line as a whole. Raises UserError; loads and writes nothing."""
    flags, hydra_flags = parse_arguments("bench", words)
    if flags.multirun or flags.cfg or flags.info:
        raise UserError(
            f"{hydra_flags[0]}: `doodl bench` has no such flag; its --help has its keys"
        )
    given = [settle_path(word) for word in flags.overrides]
    own = [word for word in given if is_own(key_of(word))]
    others = [word for word in given if word not in own]
    for word in others:
        if key_of(word) in REPLACED:
            raise UserError(f"{word}: a bench has its own; must be {REPLACED[key_of(word)]}")
    with explained("bench", flags.overrides), composer(flags.config_dir) as compose:
        values = resolve(compose("bench", [quote(word) for word in own]))
        if values.get("resume") is not None:
            return reopen(values, flags.overrides, compose)
        if values.get("suite") is None:
            raise UserError(f"suite: missing; must be one of {', '.join(choices('suite'))}")
        return plan_parts(settle_parts(read_bench(values)), others, compose)


def settle_path(word: str) -> str:
    """Return a word whose path, if it is one that exists, is absolute: a bench goes on anywhere."""
    name, _, value = word.partition("=")
    path = os.path.expanduser(value)
    exists = name.lstrip("+") in PATH_KEYS and value and os.path.exists(path)
    return f"{name}={os.path.abspath(path)}" if exists else word


def settle_parts(bench: Bench) -> Bench:
    """Return a bench whose parts' files, if they are the user's and exist, are absolute, too."""

    def settle(path: str | None) -> str | None:
        found = find_beside(path) if path else None
        if not found or not found.exists() or found.is_relative_to(packaged()):
            return path
        return str(found.absolute())

    parts = {
        name: replace(part, path=settle(part.path), real=settle(part.real))
        for name, part in bench.suite.parts.items()
    }
    return replace(bench, suite=replace(bench.suite, parts=parts))


def reopen(values: dict[str, Any], words: list[str], compose: Compose) -> Plan:
    """Return the plan of a bench that was begun. Raises UserError."""
    folder = Path(str(values["resume"])).expanduser().absolute()
    for word in words:
        name = word.partition("=")[0]
        if name not in ("resume", "shard"):
            raise UserError(
                f"{name}: resume={folder} brings its own; only shard may be given beside it"
            )
    saved = read_values(folder / SETTINGS, yaml.safe_load)
    if not {"bench", "run"} <= saved.keys():
        raise UserError(f"resume={folder}: must be a bench's folder (no readable {SETTINGS})")
    given = {"shard": values["shard"], "output_dir": str(folder)}
    plan = plan_parts(read_bench({**saved["bench"], **given}), saved["run"], compose)
    return plan if plan.bench.shard else replace(plan, shards=list_shards(folder) or [None])


def plan_parts(bench: Bench, words: list[str], compose: Compose) -> Plan:
    """Read the prompts and check the settings of every run. Raises UserError."""
    parts, tuned, configs = [], {}, {}
    left_out = None
    for name, part in bench.suite.parts.items():
        path = find_file(part, bench.suite)
        rows = read_suite(path, bench.suite.n_prompts)
        of_suite = [*bench.suite.run, *part.run]
        found = find_tuned(name, path, last_of_each([*of_suite, *words]))
        tuned[name] = keep_tuned(found, words, bench.budget == bench.suite.budget)
        config, methods = None, []
        for method in bench.methods:
            chosen = [f"method={method}", *tuned[name].get(method, [])]
            given = last_of_each([REPEATED, *chosen, *of_suite, *words])
            values = resolve(compose("run", [quote(word) for word in given]))
            if method == "noise_aware":
                if not takes_noise_aware(values):
                    continue
                if left_out := find_missing(values):
                    continue
            values |= {"prompts": str(path.absolute()), "shard": bench.shard}
            config = read_config(values)
            if not config.guidance:
                raise UserError(f"guidance: missing; suite={bench.suite.name} has none of its own")
            configs[name, method] = config
            methods.append(method)
        if config is None:
            continue
        check_conditions(config, make_requests(rows, 0, config.negative_prompt))
        judge = part.judge or next(iter(config.held_out), "a score")
        if judge not in config.held_out:
            raise UserError(
                f"evaluate={show(list(config.evaluate))}: must have {judge}, to compare by"
            )
        real = find_beside(part.real) if part.real else None
        parts.append(Part(name, rows, methods, next(iter(config.guidance)), judge, real))
    if not parts:
        reason = left_out or "needs a suite with guidance=classifier"
        raise UserError(f"methods=['noise_aware']: {reason}")
    return Plan(bench, words, parts, [bench.shard], tuned, configs, left_out)


def find_tuned(name: str, path: Path, given: list[str]) -> dict[str, list[str]]:
    """Return what each method was tuned to for a part, if it was for such runs.

    None for another guidance or model than in the package's suite, and none for the prompts that
    methods are tuned on; other prompts of one's own are such as the suite's.
    """
    found = read_tuned(name)
    if not found or path.is_relative_to(packaged() / "tuning"):
        return {}
    own = read_packaged(name)
    words = [*own["run"], *own["parts"][name]["run"]]
    chosen = {word for word in words if key_of(word) in ("model", "guidance")}
    return found if chosen <= set(given) else {}


def keep_tuned(
    tuned: dict[str, list[str]], words: list[str], same_budget: bool
) -> dict[str, list[str]]:
    """Return by method the tuned overrides that hold with a user's words.

    None beside an experiment, and none of a group, as optimizer, of which another is chosen. A
    gamma goes with the number of steps; with these and the budget, how many candidates there is
    room for.
    """
    chosen = {key_of(word) for word in words}
    if "experiment" in chosen:
        return {}
    if "sampler.n_steps" in chosen:
        chosen.add("sampler.gamma")
    if chosen & {"sampler", "sampler.n_steps"} or not same_budget:
        chosen.add("optimizer.n_candidates")
    return {
        method: [word for word in found if not {word.partition(".")[0], key_of(word)} & chosen]
        for method, found in tuned.items()
    }


def takes_noise_aware(values: Mapping[str, Any]) -> bool:
    """Whether a run is guided by what noise_aware is itself: the embedded model's classifier."""
    guidance = values["guidance"]
    own = [*guidance] == ["classifier"] and guidance["classifier"]["source"] == "embedded"
    return own and values["model"]["name"] == "emoji"


def find_missing(values: Mapping[str, Any]) -> str | None:
    """Return which file of the classifier of noisy latents is missing, None if both are there."""
    folder = find_folder(values["model"]["name"], values["model"]["path"])
    for file in find_noise_aware(folder, values["method"]["path"]):
        if not file.is_file():
            return f"{file} is missing; scripts/embedded/train_noise_aware.py makes it"
    return None


def last_of_each(words: list[str]) -> list[str]:
    """Return words without those whose key comes again."""
    return list({key_of(word): word for word in words}.values())


def key_of(word: str) -> str:
    """Return the key of an override."""
    return word.lstrip("+~").partition("=")[0]


def make_runs(plan: Plan, model: "LatentModel") -> list[Run]:
    """Return all runs, the budget spent. Raises UserError where it does not suffice."""
    from doodl_cli.commands import task

    runs = []
    for seed in plan.bench.seeds:
        for part in plan.parts:
            for (name, method), config in plan.configs.items():
                if name != part.name:
                    continue

                def n_calls(n_steps: int, config: Config = config) -> int:
                    sampler = replace(config.sampler, n_steps=n_steps)
                    return task.make_table(replace(config, sampler=sampler), model).n_calls

                config = task.settle_memory(config, model, len(part.rows))
                try:
                    n = spend(config, plan.bench.budget, Price(n_calls, plan.bench.vjp_cost))
                except ValueError as error:
                    raise UserError(f"budget={plan.bench.budget:g}: {error}") from error
                if n is not None:
                    config = set_key(config, KNOBS[method], n)
                requests = make_requests(part.rows, seed, config.negative_prompt)
                for shard in plan.shards:
                    i, of = map(int, (shard or "0/1").split("/"))
                    if own := requests[i::of]:
                        runs.append(Run(part, method, seed, replace(config, shard=shard), own))
    return runs


def set_key(config: Config, name: str, value: int) -> Config:
    """Return a configuration with the value of a key of a section."""
    section, _, key = name.partition(".")
    return replace(config, **{section: replace(getattr(config, section), **{key: value})})


def begin(plan: Plan) -> Path:
    """Make the bench's folder, or take up one of the same settings. Raises UserError."""
    path = Path(plan.bench.output_dir).expanduser().absolute()
    settings = path / SETTINGS
    if not settings.exists():
        try:
            check_free(path)
            with writing(path):
                path.mkdir(parents=True, exist_ok=True)
            own = path / f"{SETTINGS}.{uuid4().hex}"  # what a shard writes no other one moves
            write_whole(own, yaml.safe_dump(plan.settings, sort_keys=False).encode())
            with writing(settings):
                own.replace(settings)
            return path
        except (UserError, CannotWrite):
            if not is_being_written(settings):  # by another shard, at the same time
                raise
    saved = read_values(settings, yaml.safe_load)
    begun = list_shards(path)
    if begun and plan.shards[0] not in begun:
        raise UserError(
            f"shard={show(plan.shards[0])}: output_dir={path} was begun with shard="
            f"{show(begun[0])}; must be {'null' if begun == [None] else f'i/{len(begun)}'}"
        )
    if saved.get("run") != plan.settings["run"]:
        words = show(" ".join(saved.get("run") or []))
        raise UserError(
            f"output_dir={path}: holds a bench with other settings of its runs: {words}"
        )
    now = flatten({**plan.settings["bench"], "tuned": plan.tuned})
    before = flatten({**saved.get("bench", {}), "tuned": saved.get("tuned", {})})
    for name in now:
        if before.get(name) != now[name]:
            raise UserError(
                f"{name}={show(now[name])}: output_dir={path} holds a bench with "
                f"{show(before.get(name))}; must stay so"
            )
    for name, prompts in plan.settings["prompts"].items():
        if saved.get("prompts", {}).get(name) != prompts:
            raise UserError(
                f"suite.parts.{name}.path={plan.bench.suite.parts[name].path}: has other prompts "
                f"than when the bench in output_dir={path} was begun; must stay so"
            )
    return path


def is_being_written(path: Path) -> bool:
    """Wait a moment for a file that another process writes, and return whether it is there."""
    for _ in range(100):
        if path.exists() or not any(path.parent.glob(f"*{path.name}*")):
            break
        time.sleep(0.01)
    return path.exists()


def complete(run: Run, path: Path, model: "LatentModel") -> None:
    """Carry a run out, or what is left of it, in its folder."""
    from doodl_cli.commands import task
    from doodl_cli.commands.progress import logged
    from doodl_cli.run_directory import RunDirectory
    from doodl_cli.sinks import Sinks
    from doodl_cli.state import read_state

    config, requests, earlier, state = run.config, run.requests, None, None
    if (path / "config.yaml").exists():
        config, requests, earlier = open_run(str(path))
        state = read_state(path)
        if earlier.get("status") == "done":
            return
    print(f"{run.name}: {len(requests)} samples", file=sys.stderr, flush=True)
    config = task.settle_guidance(task.settle(config, model.device))
    model.calls.network = model.calls.vjps = 0
    prepared = prepare(config, requests, model, earlier)
    with writing(path):
        path.mkdir(parents=True, exist_ok=True)
    cost = task.Meter(model, model.device, state.progress["cost"] if state else None)
    config = replace(config, output_dir=str(path))
    with (
        locked(path),
        RunDirectory(path, config, prepared.facts, cost, {}, requests, earlier, state) as directory,
        logged(directory),
    ):
        for _ in carry_out(prepared, directory, Sinks([], config.last_iteration)):
            pass
