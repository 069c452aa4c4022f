"""`doodl VERB key=value ...`: verbs, signals and exit codes.

Standard library only until a verb is chosen, so that `doodl --help` is instant.

    0 done    1 failed    2 the input is at fault    130 interrupted    143 terminated
"""

import difflib
import importlib
import sys
import traceback

from doodl_cli import __version__
from doodl_cli.errors import (
    CannotWrite,
    JobsFailed,
    Terminated,
    UserError,
    find_unordered,
    lacks_memory,
)
from doodl_cli.signals import TERMINATING, handled, terminate

VERBS = {
    "run": "optimise the starting noise so that the finished picture scores better",
    "sample": "render a prompt, or a run's saved noise, without optimising",
    "models": "list the configured models and whether their weights are here",
    "bench": "compare methods on suites of prompts at equal cost",
    "report": "put runs side by side: report.html and results.csv",
    "invert": "find the noise that renders a picture of yours",
}

LESS_MEMORY = (
    "device: its memory is too small for one sample; must be memory.unet_checkpointing=true, "
    "dtype=float16, fewer guidance.*.n_crops, or smaller pictures by model.height and model.width"
)
UNORDERED = "deterministic=true: {} has no fixed order on a GPU; must be deterministic=false"

HELP = """\
doodl VERB key=value ...

{verbs}

    doodl run guidance=aesthetic prompt="a red apple"
    doodl sample run=outputs/DATE/TIME which=best
    doodl run init=image init.path=photo.png guidance=aesthetic
    doodl VERB --help     the keys of a verb, their defaults and what is allowed
    doodl --version
"""


def main(argv: list[str] | None = None) -> int:
    """Run a command line and return its exit code."""
    with handled(TERMINATING, terminate):
        return answer(sys.argv[1:] if argv is None else argv)


def answer(argv: list[str]) -> int:
    """Do what a command line asks and return its exit code; errors are said on stderr."""
    try:
        dispatch(argv)
    except UserError as error:
        print(f"doodl: {error}", file=sys.stderr)
        return 2
    except (JobsFailed, CannotWrite) as error:
        print(f"doodl: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    except Terminated:
        return 143
    except Exception as error:
        if lacks_memory(error):
            print(f"doodl: {LESS_MEMORY}", file=sys.stderr)
            return 2
        if unordered := find_unordered(error):
            print(f"doodl: {UNORDERED.format(unordered)}", file=sys.stderr)
            return 2
        traceback.print_exc()
        return 1
    return 0


def dispatch(argv: list[str]) -> None:
    """Import the verb's module and hand it the rest of the command line."""
    verb, arguments = (argv[0], argv[1:]) if argv else ("", [])
    if verb in ("-h", "--help"):
        lines = (f"    {verb:10}{line}" for verb, line in VERBS.items())
        print(HELP.format(verbs="\n".join(lines)), end="")
    elif verb == "--version" or "--version" in arguments:
        print(f"doodl {__version__}")
    elif verb in VERBS:
        importlib.import_module(f"doodl_cli.commands.{verb}").main(arguments)
    else:
        near = difflib.get_close_matches(verb, VERBS, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        what = f"{verb}: unknown verb" if verb else "no verb"
        raise UserError(f"{what}; must be one of {', '.join(VERBS)}{hint}")
