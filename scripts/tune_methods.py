"""Tune each method's strength for each suite of the embedded model, at the suite's budget.

The prompts are tuning/'s, which no suite has, and the figure is the held-out score that decides
there. Baselines and `doodl` are tuned alike: a coarse grid of powers of ten, then, as long as it
helps, the settings beside the best one, half a power of ten away, so that the best lies inside what
was tried, and at last those a quarter away. Of settings that a standard error does not tell from
the one of the highest score, that one is chosen whose pictures show most of what can be checked: by
the score alone chance would choose between them.

Complex prompts have a picture each, too few to choose by. There the settings that two standard
errors do not tell from the highest are measured again, with three other noises a prompt, and then
those beside the best of them: these figures alone decide, as those that were searched among favour
what chance has lifted.

Only settings count that KEEP what is not scored: of the plain pictures of complex prompts as many
checks as hold, of those whose colourfulness decides most of the similarity to the prompt, as
otherwise strengths would be best that leave nothing of a picture. There all methods go as far as
that allows, so the steps end at a sixteenth of a power of ten, and `doodl`'s grid is of small steps
and many candidates. With the whole sweep the best is written to
doodl_cli/assets/suites/tuned.json, which `doodl bench` reads.

    python scripts/tune_methods.py --jobs 16 [--out build/tuning] [--suites complex ...]
        [--methods doodl ...] [--measured FILE.csv.gz] [--strengths]

When scorers have changed a little, `--strengths` tunes only the main strength again, the first key
of each method, and the gamma of those that have one, from what they were tuned to; what was
measured for that before stays as `screened`.

The scores by prompt that it rests on are in docs/results/tuning.csv.gz: a setting that was measured
there on the same prompts with the same weights is not measured again; another file has it done. The
benches stay in the folder: what was cut short goes on.
"""

import argparse
import itertools
import json
import math
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from job_pool import COSTS, Job, Pool
from measured import (
    BenchName,
    Measured,
    Scores,
    fingerprint,
    over_prompts,
    read_lines,
    shorten,
)
from scipy.stats import sem

from doodl_cli.bench.collect import CHECKS
from doodl_cli.bench.suite import TUNED, packaged, read_packaged
from doodl_cli.files import read_values, write_whole
from doodl_cli.models.locate import NOISE_AWARE
from doodl_cli.sampling.bdia import MOST_GROWTH, find_gamma

MEASURED = Path(__file__).parents[1] / "docs/results/tuning.csv.gz"
CONFIGS = Path(__file__).parents[1] / "configs/suite"
SUITES = ("complex", "vocabulary", "references", "aesthetic")
PLAIN = "none"  # the method of plain pictures
KEEP: Mapping[str, Mapping[str, float]] = {  # shares of the plain pictures' means
    "complex": {CHECKS: 1.0},
    "aesthetic": {"clip_text_b": 0.9},
}
CHECKED = ("complex", "vocabulary")  # suites whose prompts say what can be checked
AT_LIMIT = ("aesthetic",)  # where the score rises as far as KEEP allows
ROUNDS = 8  # of settings beside the best one
FINE = 0.5  # the last round's step
FINEST = (0.25, 0.125)  # and then, of the suites in AT_LIMIT
AGAIN: Mapping[str, list[str]] = {"complex": ["seeds=[1,2,3]"]}  # with what finalists are measured
FINALISTS = 12  # at most
FINAL_ROUNDS = 2  # of settings beside the best finalist
BY_CLIPS = ("complex", "references")  # what CLIP C guides
SEARCH = 0.75  # of a budget, the most that candidates may take
MOVED = "optimizer.lr * element"
GAMMA = "sampler.gamma"
ELEMENT = {1e-5: 1e-5, 1e-2: 10**-3.5}  # of a gradient, by what clips it: about what is usual
LISTED: Mapping[str, tuple[float | None, ...]] = {  # what is no power of ten; None: the default
    "sampler.n_steps": (3, 4, 6, 8, 12, 20),
    "optimizer.clip": (1e-5, 1e-2),
    "optimizer.n_candidates": (1, 4, 8, 16, 32, 64),
    GAMMA: (0.25, 0.35, 0.5, None),  # from 8 steps on the default is the highest
    "method.backward_lr": (0.1, None, 10.0, 100.0, 1000.0),
}
STRENGTH = {"method.strength": range(0, 9, 2)}
# By method and key, where the coarse grid is: places in LISTED, of other keys halves of powers of
# ten. An element of x_T moves by `lr` times its gradient, which is at the low clip nearly always,
# and below the high one. The sampler's steps divide the budget of `doodl` between exactness,
# candidates and iterations, that of `best_of_n` between exactness and noises; methods that guide on
# the way spend it on them.
GRIDS = {
    "doodl": {
        MOVED: (-6, -4, -2, 0),
        "optimizer.clip": (0,),
        "sampler.n_steps": (0, 1),
        "optimizer.n_candidates": (1, 3, 5),
        GAMMA: (2,),
    },
    "best_of_n": {"sampler.n_steps": (1, 4), GAMMA: (2,)},
    "one_step": STRENGTH,
    "full_chain": STRENGTH,
    "universal": STRENGTH | {"method.backward_lr": (1,)},
    "noise_aware": {"method.strength": range(-2, 5, 2)},
}
GENTLE = GRIDS["doodl"] | {MOVED: (-8, -7, -6), "optimizer.n_candidates": (2, 3, 4, 5)}

Setting = tuple[float, ...]  # a place on the axis of each key


@cache
def tell_apart(suite: str, method: str) -> str:
    """Return the fingerprint of what a bench on the prompts to tune on is of.

    The prompts, the suite's settings, and the weights that a method makes and judges pictures with.
    """
    unused = {NOISE_AWARE} - {method} | ({"clip_c"} if suite not in BY_CLIPS else set())
    tuning, settings = packaged() / "tuning", CONFIGS / f"{suite}.yaml"
    weights = sorted(packaged().with_name("emoji").rglob("*.safetensors"))
    used = [x for x in weights if x.parent.name not in unused]
    return fingerprint([tuning / f"{suite}.jsonl", tuning / suite, settings, *used])


def tuning_words(suite: str) -> list[str]:
    """Return the words of a bench of a suite on the prompts that methods are tuned on."""
    part = f"suite.parts.{suite}"
    return [f"suite={suite}", f"{part}.path=tuning/{suite}.jsonl", f"{part}.real=null"]


@dataclass
class Search:
    """A method's settings on a suite: with each, the deciding score and others."""

    suite: str
    method: str
    out: Path
    measured: Measured
    words: list[str]
    found: dict[Setting, Scores] = field(default_factory=dict)
    screened: dict[Setting, Scores] = field(default_factory=dict)  # before the finalists
    again: list[str] = field(default_factory=list)  # the finalists' words
    before: Mapping[str, Any] | None = None  # the entry whose strength alone was tuned again

    @property
    def judge(self) -> str:
        """The deciding score."""
        return read_packaged(self.suite)["parts"][self.suite]["judge"]

    @property
    def names(self) -> list[str]:
        """The scores that have a part in the choice, the deciding one first."""
        checks = [CHECKS] if self.suite in CHECKED else []
        return list(dict.fromkeys([self.judge, *checks, *KEEP.get(self.suite, ())]))

    @property
    def least(self) -> dict[str, float]:
        """What the scores to keep must not be below."""
        shares = KEEP.get(self.suite)
        if shares is None:
            return {}
        plain = self.measured.found[self.name(PLAIN, [])]
        return {name: share * float(plain[name].mean()) for name, share in shares.items()}

    @property
    def kept(self) -> list[Setting]:
        """The settings that keep enough, else those that keep most."""
        least = self.least
        lacking = {
            setting: sum(max(most - found[name].mean(), 0.0) for name, most in least.items())
            for setting, found in self.found.items()
        }
        least_lacking = min(lacking.values())
        return [x for x in self.found if lacking[x] == least_lacking]

    @property
    def highest(self) -> Setting:
        """The setting of the highest score of those that are kept."""
        return max(self.kept, key=self.score)

    @property
    def best(self) -> Setting:
        """The setting to choose: by the checks, where there are any, of those near the highest."""
        if self.suite not in CHECKED:
            return self.highest
        near = self.list_near(1)
        return max(near, key=lambda x: (self.found[x][CHECKS].mean(), self.score(x)))

    def list_near(self, n_errors: float) -> list[Setting]:
        """Return what so many standard errors do not tell from the highest, and it, in order."""
        top = self.found[self.highest][self.judge]
        near = [x for x in self.kept if within_error(self.found[x][self.judge], top, n_errors)]
        return sorted(near, key=self.score, reverse=True)

    def score(self, setting: Setting) -> float:
        """Return the mean of the deciding score."""
        return float(self.found[setting][self.judge].mean())

    def values(self, setting: Setting) -> dict[str, float]:
        """Return the value of each key that has not its default."""
        found = {
            key: LISTED[key][int(place)] if key in LISTED else 10 ** (place / 2)
            for key, place in zip(GRIDS[self.method], setting, strict=True)
        }
        return {key: value for key, value in found.items() if value is not None}

    def feasible(self, setting: Setting) -> bool:
        """Whether the steps can be undone and the candidates leave budget to optimise one."""
        values = self.values(setting)
        n_steps, gamma = values.get("sampler.n_steps", 0), values.get(GAMMA)
        if gamma is not None and not can_undo(n_steps, gamma):
            return False
        n_calls = values.get("optimizer.n_candidates", 0) * n_steps
        return n_calls <= SEARCH * read_packaged(self.suite)["budget"]

    def overrides(self, setting: Setting) -> list[str]:
        """Return the overrides of `doodl run` that make a setting."""
        values = self.values(setting)
        if MOVED in values:
            values["optimizer.lr"] = values.pop(MOVED) / ELEMENT[values["optimizer.clip"]]
        return [f"{key}={value:.2g}" for key, value in values.items()]

    def place(self, overrides: list[str]) -> Setting:
        """Return the setting of overrides, to a part of the finest step."""
        values = to_numbers(overrides)
        if "optimizer.lr" in values:
            values[MOVED] = values.pop("optimizer.lr") * ELEMENT[values["optimizer.clip"]]
        return tuple(
            LISTED[key].index(values.get(key))
            if key in LISTED
            else round(2 * math.log10(values[key]) / FINEST[-1]) * FINEST[-1]
            for key in GRIDS[self.method]
        )

    def name(self, method: str, overrides: list[str]) -> BenchName:
        """Return what the bench of a setting is known by."""
        words = " ".join([*overrides, *self.again, *self.words])
        return BenchName(self.suite, method, words, tell_apart(self.suite, method))

    def make_job(self, method: str, overrides: list[str]) -> Job:
        """Return a bench on the prompts to tune on."""
        words = [*tuning_words(self.suite), f"methods=[{method}]"]
        of = self.out / f"{self.suite}-{tell_apart(self.suite, method)}"
        folder = of / ("again" if self.again else "") / method / ("_".join(overrides) or "plain")
        words += [*overrides, *self.again, *self.words]
        return Job(folder, words, COSTS.get(method, 1.0))

    def measure(self, pool: Pool, method: str, settings: list[list[str]]) -> list[Scores]:
        """Return the scores of a method with overrides, measured where they are not known."""
        benches = [self.name(method, overrides) for overrides in settings]
        jobs = {
            bench: self.make_job(method, overrides)
            for bench, overrides in zip(benches, settings, strict=True)
            if not self.measured.has(bench, self.names)
        }
        try:
            pool.run(jobs.values())
        finally:
            done = {bench: job for bench, job in jobs.items() if job.done}
            if done:
                self.measured.add({x: read_scores(job, self.names) for x, job in done.items()})
        return [self.measured.found[bench] for bench in benches]

    def measure_plain(self, pool: Pool) -> None:
        """Measure plain pictures, also of the noises of finalists."""
        for again in ([], AGAIN.get(self.suite, [])):
            replace(self, again=again).measure(pool, PLAIN, [[]])

    def propose(self, step: float = 1) -> list[Setting]:
        """Return the settings to try next: the grid, then those a step beside the best ones."""
        if not self.found:
            gentle = self.method == "doodl" and self.suite in AT_LIMIT
            grid = GENTLE if gentle else GRIDS[self.method]
            return list(itertools.product(*grid.values()))
        return self.list_beside([self.highest, self.best], list(GRIDS[self.method]), step)

    def list_beside(self, settings: list[Setting], keys: list[str], step: float) -> list[Setting]:
        """Return what is a step in one of the keys beside some settings, and not measured yet."""
        beside = [x for at in settings for x in neighbours(at, keys, step)]
        return self.choose_new(beside)

    def choose_new(self, settings: list[Setting]) -> list[Setting]:
        """Return the settings that are possible and not measured yet, each once."""
        return [x for x in dict.fromkeys(settings) if x not in self.found and self.feasible(x)]

    def add(self, pool: Pool, settings: list[Setting]) -> None:
        """Measure settings."""
        scores = self.measure(pool, self.method, [self.overrides(x) for x in settings])
        self.found |= zip(settings, scores, strict=True)

    def run(self, pool: Pool) -> None:
        """Measure the grid, and then what is beside the best setting; at last the finalists."""
        finest = FINEST if self.suite in AT_LIMIT else ()
        for step in (*[1] * (1 + ROUNDS), FINE, *finest):
            self.add(pool, self.propose(step))
        if self.suite in AGAIN:
            self.decide(pool)

    def decide(self, pool: Pool) -> None:
        """Measure the finalists, and what is beside the best of them, with other noises."""
        finalists = self.list_near(2)[:FINALISTS]
        self.screened, self.found, self.again = self.found, {}, AGAIN[self.suite]
        self.add(pool, finalists)
        for _ in range(FINAL_ROUNDS):
            self.add(pool, self.propose())

    def move(self, pool: Pool, before: Mapping[str, Any]) -> None:
        """Tune the main strength and gamma alone, from the choice of an earlier tuned.json."""
        self.before, self.again = before, AGAIN.get(self.suite, [])
        best = [self.place(before["overrides"])]
        for _ in range(1 + ROUNDS):
            self.add(pool, self.list_around(best))
            best = [self.highest, self.best]

    def list_around(self, settings: list[Setting]) -> list[Setting]:
        """Return what is new of some settings and those beside them in the main strength.

        With every gamma, if the method has one: the best strength is not the same with each.
        """
        keys = list(GRIDS[self.method])
        step = 1 if keys[0] in LISTED else FINE
        around = [x for at in settings for x in (at, *neighbours(at, keys[:1], step))]
        if GAMMA in keys:
            k, places = keys.index(GAMMA), range(len(LISTED[GAMMA]))
            around = [(*x[:k], place, *x[k + 1 :]) for x in around for place in places]
        return self.choose_new(around)

    def open_ends(self) -> list[str]:
        """Return the keys whose best value is the lowest or the highest that was tried."""
        tried = zip(*(self.screened | self.found), strict=True)
        columns = zip(GRIDS[self.method], self.best, tried, strict=True)
        return [
            key
            for key, best, places in columns
            if key not in LISTED and best in (min(places), max(places))
        ]

    def means(self, found: Mapping[Setting, Scores]) -> dict[str, dict[str, float]]:
        """Return the means over prompts with each setting, by its overrides."""
        return {
            " ".join(self.overrides(setting)): {
                name: shorten(found[setting][name].mean()) for name in self.names
            }
            for setting in sorted(found)
        }

    def entry(self) -> dict:
        """Return what tuned.json holds."""
        least = {"least": self.least} if self.least else {}
        screened = {"screened": self.means(self.screened)} if self.screened else {}
        if self.before:
            screened = {"screened": self.before["sweep"] | self.before.get("screened", {})}
        return {
            "overrides": self.overrides(self.best),
            "score": self.judge,
            **least,
            "sweep": self.means(self.found),
            **screened,
        }


def read_scores(job: Job, names: Iterable[str]) -> dict[str, np.ndarray]:
    """Return scores over prompts."""
    lines = read_lines(job.folder)
    return {name: np.array([*over_prompts(lines, name).values()]) for name in names}


def to_numbers(overrides: Iterable[str]) -> dict[str, float]:
    """Return the values of overrides by key."""
    words = (word.partition("=") for word in overrides)
    return {name: float(value) for name, _, value in words}


def can_undo(n_steps: int, gamma: float) -> bool:
    """Whether BDIA's steps with a gamma can be undone in float64."""
    return gamma >= find_gamma(n_steps, MOST_GROWTH)


def within_error(values: np.ndarray, top: np.ndarray, n_errors: float = 1) -> bool:
    """Whether standard errors of their difference, paired by prompt, hide which are higher."""
    lost = top - values
    return not lost.any() or (len(lost) > 1 and lost.mean() <= n_errors * sem(lost))


def neighbours(setting: Setting, keys: list[str], step: float) -> list[Setting]:
    """Return the settings that differ by a step in one key, of the first ones that are given."""
    return [
        (*setting[:k], place, *setting[k + 1 :])
        for k, key in enumerate(keys)
        for place in (setting[k] - step, setting[k] + step)
        if key not in LISTED or place in range(len(LISTED[key]))
    ]


def main() -> None:
    """Search for every method's best setting on every suite, and write them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--jobs", type=int, default=1, help="benches at a time")
    parser.add_argument("--out", type=Path, default=Path("build/tuning"))
    parser.add_argument("--suites", nargs="+", choices=SUITES, default=SUITES)
    parser.add_argument("--methods", nargs="+", choices=GRIDS, default=list(GRIDS))
    parser.add_argument("--measured", type=Path, default=MEASURED, help="scores that are known")
    parser.add_argument("--strengths", action="store_true", help="and gammas, from tuned.json's")
    parser.add_argument("--words", nargs="*", default=[], help="further words of `doodl bench`")
    args = parser.parse_args()
    measured, path = Measured(args.measured), packaged() / TUNED
    tuned = read_values(path, json.loads)
    searches = [
        Search(suite, method, args.out.absolute(), measured, args.words)
        for suite in args.suites
        for method in args.methods
        if method != NOISE_AWARE or suite == "vocabulary"  # it is a classifier itself
    ]
    with ThreadPoolExecutor(len(searches)) as threads, Pool(args.jobs) as pool:
        of_suites = {one.suite: one for one in searches}.values()
        list(threads.map(lambda one: one.measure_plain(pool), of_suites))
        if args.strengths:
            list(threads.map(lambda one: one.move(pool, tuned[one.suite][one.method]), searches))
        else:
            list(threads.map(lambda one: one.run(pool), searches))
    for one in searches:
        tuned.setdefault(one.suite, {})[one.method] = one.entry()
        found = f"{one.judge} {one.score(one.best):.4g} ({len(one.screened | one.found)} settings)"
        print(one.suite, one.method, *one.overrides(one.best), found)
        for key in one.open_ends():
            print(f"  {key}: the best value is the last one that was tried")
    write_whole(path, f"{json.dumps(tuned, indent=1)}\n".encode())


if __name__ == "__main__":
    main()
