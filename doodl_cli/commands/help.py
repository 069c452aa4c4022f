"""`doodl VERB --help`: the groups with their choices, the keys with defaults and ranges."""

from importlib import resources
from typing import Any

from doodl_cli.cli import VERBS
from doodl_cli.config import GROUPS, all_keys, describe, show

FLAGS = """\
Flags
  -m, --multirun     sweep: one job a value, as in  seed=0,1,2  or  'prompt="a cat","a dog"'
                     hydra/launcher=joblib, submitit_local, submitit_slurm or ray runs the jobs side
                     by side, hydra/sweeper=optuna searches for the best optimizer settings
  --cfg job          print the configuration instead of running
  --config-dir DIR   look for more configuration files in DIR
  --info             how the configuration was put together

prompt, negative_prompt and paths are taken literally, whatever characters they hold; text that
starts with a quote follows Hydra's grammar. Everything else is Hydra (hydra.cc).
"""


def print_help(verb: str, values: dict[str, Any]) -> None:
    """Print a verb's help for a composed configuration."""
    print(f"doodl {verb} key=value ...    {VERBS[verb]}\n\nChoices")
    for group in GROUPS:
        print(f"  {group:16} {', '.join(choices(group))}")
    print("  guidance and evaluate take several: guidance=[aesthetic,clip_text]")
    print("\nKeys, with their defaults")
    if verb == "run":
        print(f"  {'resume=null':32}  a run directory that was cut short, to go on with")
        print(f"  {'force=false':32}  let a resumed run change its settings")
        print(f"  {'max_seconds=null':32}  stop in time, with the best so far; can be resumed")
    if verb == "sample":
        print(f"  {'run=null':32}  a run directory, to render its saved noise again")
        print(f"  {'which=best':32}  initial, best or final noise of that run")
    if verb == "invert":
        print(f"  {'image=null':32}  a PNG, JPEG or WebP picture, needed")
    seen = set()
    for name, kind, allowed, choice in all_keys():
        value = find(values, name)
        if name in seen or (value is MISSING and not choice.startswith("guidance")):
            continue
        seen.add(name)
        default = name if value is MISSING else f"{name}={show(value)}"
        words = describe(kind, allowed)
        note = "" if words == allowed.help or words.startswith("text") else f" ({words})"
        print(f"  {default:32}  {allowed.help}{note}")
    print(f"\n{FLAGS}", end="")


def choices(group: str) -> list[str]:
    """Return the names of a configuration group's files."""
    folder = resources.files("doodl_cli.configs") / group
    files = (file.name for file in folder.iterdir())
    names = [name.removesuffix(".yaml") for name in files if name.endswith(".yaml")]
    return sorted([*names, *["basic"] * group.startswith("hydra/")])  # Hydra's own


MISSING = object()


def find(values: Any, name: str) -> Any:
    """Return the value at a dotted name, MISSING if there is none."""
    for part in name.split("."):
        if not isinstance(values, dict) or part not in values:
            return MISSING
        values = values[part]
    return values
