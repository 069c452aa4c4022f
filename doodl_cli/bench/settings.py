"""What `doodl bench` takes itself: a suite, methods, a budget. The rest is `doodl run`'s.

The defaults are configs/bench.yaml and configs/suite/.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from doodl_cli.config import METHODS, is_whole, key, mapping, read_keys, read_section, section, show
from doodl_cli.errors import UserError


@dataclass(frozen=True)
class Part:
    """One kind of guidance with its prompts; a suite has one or several, by name."""

    path: str | None = key("a file of prompts: of the package, or a path")
    hub: str | None = key("a data set of the Hugging Face hub, where there is no path")
    real: str | None = key("folder of real pictures of what is asked for; null: none")
    judge: str | None = key("the held-out score that decides; null: the first")
    run: Any = key("a list of overrides of `doodl run`")


@dataclass(frozen=True)
class Suite:
    name: str = key("prompts with their guidance")
    budget: float = key("network calls a sample", above=0)
    path: str | None = key("a file of prompts, as of `doodl run`, or .tsv")
    n_prompts: int | None = key("only the first prompts of each part; null: all", least=1)
    run: Any = key("a list of overrides of `doodl run`")
    parts: dict[str, Part] = section()


@dataclass(frozen=True)
class Bench:
    methods: list[str] = key(f"a list of {', '.join(METHODS)}")
    budget: float = key("network calls a sample", above=0)
    seeds: list[int] = key("a list of whole numbers, each added a thousandfold to a row's seed")
    vjp_cost: float = key("what a call with its gradient costs, in calls", least=1)
    shard: str | None = key("i/n: of all samples each n-th, from the i-th (0 to n-1) on")
    resume: str | None = key("the folder of a bench, to go on with")
    output_dir: str = key("the folder, new, empty or of this bench")
    suite: Suite = section()

    def to_dict(self) -> dict[str, Any]:
        """Return what `read_bench` reads."""
        return asdict(self)


OWN_KEYS = ("suite", "methods", "budget", "seeds", "vjp_cost", "shard", "resume", "output_dir")


def is_own(name: str) -> bool:
    """Whether a key is `doodl bench`'s, not `doodl run`'s."""
    return name.partition(".")[0] in OWN_KEYS


def read_bench(values: Mapping[str, Any]) -> Bench:
    """Check plain values. Raises UserError with the first key that is missing or out of range."""
    values = dict(values)
    suite = dict(mapping(values.pop("suite", None), "suite"))
    parts = {
        name: read_section(Part, part, f"suite.parts.{name}")
        for name, part in mapping(suite.pop("parts", None), "suite.parts").items()
    }
    read = Suite(parts=parts, **read_keys(Suite, suite, "suite."))
    if values.get("budget") is None:
        values["budget"] = read.budget
    bench = Bench(suite=read, **read_keys(Bench, values, ""))
    for name, words in [
        ("suite", read.run),
        *((f"suite.parts.{k}", p.run) for k, p in parts.items()),
    ]:
        if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
            raise UserError(f"{name}.run={show(words)}: must be a list of overrides of `doodl run`")
    for name in bench.methods:
        if name not in METHODS:
            raise UserError(f"methods={show(name)}: must be of {', '.join(METHODS)}")
    for field, given in (("methods", bench.methods), ("seeds", bench.seeds)):
        if len(set(given)) < len(given):
            raise UserError(f"{field}={show(given)}: one is given twice")
    if not all(is_whole(seed) and 0 <= seed < 10**9 for seed in bench.seeds):
        raise UserError(f"seeds={show(bench.seeds)}: must be a list of whole numbers from 0")
    return bench
