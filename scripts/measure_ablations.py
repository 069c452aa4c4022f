"""Measure what each choice of `doodl` is worth at equal cost: samplers, optimisers, regularisers.

Suites of the embedded model, on the prompts that methods are tuned on. Every variant changes the
tuned setting (scripts/tune_methods.py), without candidates, in one way and is compared with it
prompt by prompt, at the same budget of network calls.

    python scripts/measure_ablations.py --jobs 16 [--out build/ablations] [--write FILE.json]

The benches stay in the folder: what was cut short goes on, what is done is read. The figures are
written to docs/results/ablations.json, which scripts/write_results.py makes a table of.
"""

import argparse
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path

from job_pool import Job, Pool
from measured import over_prompts, read_lines, shorten
from tune_methods import GAMMA, SEARCH, can_undo, tell_apart, to_numbers, tuning_words

from doodl_cli.bench import suite as suites
from doodl_cli.bench.statistics import compare

SUITES = ("complex", "vocabulary", "aesthetic")
BUDGET = 400
BUDGETS = (100, 400, 1600)
TUNED_AS = "as tuned, from one noise"
CANDIDATES = {f"from the best of {n} noises": n for n in (4, 8, 16, 32)}
SAMPLERS = {
    "BDIA, 20 steps": ["sampler=bdia", "sampler.n_steps=20"],
    "O-BELM, 20 steps": ["sampler=obelm", "sampler.n_steps=20"],
    "O-BELM, 10 steps": ["sampler=obelm", "sampler.n_steps=10"],
    "EDICT, 50 steps": ["sampler=edict", "sampler.n_steps=50"],
}
OF_BUDGETS = (
    TUNED_AS, "from the best of 8 noises", "BDIA, 20 steps", "O-BELM, 20 steps", "EDICT, 50 steps",
)  # fmt: skip
DEFAULTS = {  # configs/optimizer/doodl, model/emoji, sampler/bdia
    "optimizer.lr": 1.0, "optimizer.clip": 1e-2, "sampler.n_steps": 12.0,
}  # fmt: skip
ONE = "optimizer.n_candidates=1"
OTHER_GAMMA = 0.5  # than the default
CROPS = {"clip_text": (0, 4), "aesthetic": (0, 4), "classifier": (4, 16)}  # other than its own


@dataclass(frozen=True)
class Figures:
    """A variant on a suite: means over prompts of the scores of the best picture.

    `plain`: the held-out score of the picture of the same x_T, unguided; `prompt`: similarity to
    the prompt by the held-out CLIP; `change`: root mean square difference of the two pictures;
    `gain`: of the held-out score on the setting as tuned at the same budget, with its 95 % BCa
    interval over prompts and the share of prompts that are higher.
    """

    variant: str
    overrides: list[str]
    budget: int
    calls: float
    plain: float
    held_out: float
    optimised: float
    prompt: float
    change: float
    gain: list[float]
    wins: float


def read_tuned(suite: str) -> list[str]:
    """Return the overrides that `doodl` was tuned to."""
    return suites.read_tuned(suite).get("doodl", [])


def read_numbers(tuned: list[str]) -> dict[str, float]:
    """Return the values of overrides by key, where there is none the default."""
    return DEFAULTS | to_numbers(tuned)


def name_crops(n: int) -> str:
    return f"{n} crops" if n else "the whole picture, no crops"


def list_variants(guidance: str, tuned: list[str]) -> dict[str, list[str]]:
    """Return what each variant changes, by name."""
    values = read_numbers(tuned)
    lr, clip = values["optimizer.lr"], values["optimizer.clip"]
    gammas = ["null"] if GAMMA in values else []
    if not gammas and can_undo(values["sampler.n_steps"], OTHER_GAMMA):
        gammas = [f"{OTHER_GAMMA:g}"]

    def moving(lr_factor: float, clip_factor: float = 1.0) -> list[str]:
        return [f"optimizer.lr={lr * lr_factor:.3g}", f"optimizer.clip={clip * clip_factor:.3g}"]

    free = "optimizer.renormalize=false"
    adam = {f"Adam, lr {x:g}": ["optimizer=adam", f"optimizer.lr={x}", "optimizer.clip=null"]
            for x in (0.02, 0.05, 0.15)}  # fmt: skip
    return {
        TUNED_AS: [ONE],
        **{name: [f"optimizer.n_candidates={n}"] for name, n in CANDIDATES.items()},
        **SAMPLERS,
        **{f"gamma {gamma}": [f"{GAMMA}={gamma}"] for gamma in gammas},
        "steps 0.3 times as large": moving(0.3),
        "steps 3 times as large": moving(3),
        "clipped at 0.1 times, steps as large": moving(10, 0.1),
        "clipped at 10 times, steps as large": moving(0.1, 10),
        "no momentum": ["optimizer.momentum=0"],
        "no momentum, steps 10 times as large": ["optimizer.momentum=0", *moving(10)],
        "Nesterov": ["optimizer=nesterov", *moving(1)],
        **adam,
        "lr falls as a cosine": ["optimizer.schedule=cosine"],
        "no perturbation": ["optimizer.perturb=0"],
        "perturbation 0.01": ["optimizer.perturb=0.01"],
        "norm left free": [free],
        "norm left free, chi_norm 0.01": [free, "optimizer.chi_norm=0.01"],
        "norm left free, kl_prior 10": [free, "optimizer.kl_prior=10"],
        "pair not tied": ["optimizer.tied=false"],
        **{name_crops(n): [f"guidance.{guidance}.n_crops={n}"] for n in CROPS[guidance]},
    }


def read_part(suite: str) -> tuple[str, str]:
    """Return a suite's guidance and the score that decides there."""
    part = suites.read_packaged(suite)["parts"][suite]
    return part["run"][0].partition("=")[2], part["judge"]


def make_jobs(suite: str, out: Path, words: list[str]) -> dict[tuple[str, int], Job]:
    """Return the bench of each variant and budget."""
    tuned = read_tuned(suite)
    n_steps = read_numbers(tuned)["sampler.n_steps"]
    setting = sha256(" ".join(tuned).encode()).hexdigest()[:8]
    of = out / "-".join([suite, tell_apart(suite, "doodl"), setting])
    jobs = {}
    for name, overrides in list_variants(read_part(suite)[0], tuned).items():
        for budget in BUDGETS if name in OF_BUDGETS else (BUDGET,):
            if name.startswith("EDICT") and budget < BUDGET:
                continue  # not an iteration
            if CANDIDATES.get(name, 0) * n_steps > SEARCH * budget:
                continue
            given = [*tuning_words(suite), "methods=[none,doodl]", f"budget={budget}"]
            if name.startswith("EDICT"):
                given.append("memory=reversible")  # the graph of an evaluation takes 2.5 GB
            folder = of / f"{name.replace(', ', '_').replace(' ', '-')}_{budget}"
            kept = [word for word in tuned if name not in SAMPLERS or not word.startswith(GAMMA)]
            chosen = [*given, *kept, ONE, *overrides, *words]
            jobs[name, budget] = Job(folder, chosen, float(budget))
    return jobs


def read_figures(suite: str, jobs: Mapping[tuple[str, int], Job]) -> list[Figures]:
    """Return the figures of all variants of a suite."""
    guidance, judge = read_part(suite)
    tuned = read_tuned(suite)
    variants = list_variants(guidance, tuned)
    found = []
    for (name, budget), job in jobs.items():
        lines = read_lines(job.folder)
        ours = [line for line in lines if line["method"] == "doodl"]
        plain = [line for line in lines if line["method"] == "none"]
        base = [x for x in read_lines(jobs[TUNED_AS, budget].folder) if x["method"] == "doodl"]
        compared = compare(over_prompts(ours, judge), over_prompts(base, judge))
        assert compared is not None
        gain = compared.gain

        def mean(lines: list[dict[str, str]], score: str) -> float:
            values = over_prompts(lines, score).values()
            return shorten(sum(values) / len(values))

        found.append(
            Figures(
                variant=name,
                overrides=variants[name],
                budget=budget,
                calls=mean(ours, "calls"),
                plain=mean(plain, judge),
                held_out=mean(ours, judge),
                optimised=mean(ours, guidance),
                prompt=mean(ours, "clip_text_b"),
                change=mean(ours, "change"),
                gain=[shorten(x) for x in (gain.mean, gain.low, gain.high)],
                wins=shorten(compared.wins.mean),
            )
        )
    return found


def main() -> None:
    """Measure every variant, and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--jobs", type=int, default=1, help="benches at a time")
    parser.add_argument("--out", type=Path, default=Path("build/ablations"))
    parser.add_argument("--suites", nargs="+", choices=SUITES, default=SUITES)
    parser.add_argument("--words", nargs="*", default=[], help="further words of `doodl bench`")
    parser.add_argument("--write", type=Path, default=Path("docs/results/ablations.json"))
    args = parser.parse_args()
    jobs = {suite: make_jobs(suite, args.out.absolute(), args.words) for suite in args.suites}
    with Pool(args.jobs) as pool:
        pool.run(job for of_suite in jobs.values() for job in of_suite.values())
    written = {}
    for suite in args.suites:
        guidance, judge = read_part(suite)
        rows = [asdict(figures) for figures in read_figures(suite, jobs[suite])]
        written[suite] = {"optimised": guidance, "held_out": judge, "rows": rows}
    args.write.parent.mkdir(parents=True, exist_ok=True)
    args.write.write_text(f"{json.dumps(written, indent=1)}\n")


if __name__ == "__main__":
    main()
