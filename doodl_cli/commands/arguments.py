"""From the words of a command line to Hydra's flags and overrides, free text taken literally."""

import argparse
import re
from typing import NoReturn

from hydra.core.override_parser.types import Quote, QuotedString

from doodl_cli.errors import UserError

IMAGES = "guidance.clip_image.images"
TEXT_KEYS = (
    "prompt", "negative_prompt", "guidance.classifier.target", "evaluate.classifier.target",
)  # fmt: skip
PATH_KEYS = (
    "output_dir",
    "model.path",
    "method.path",
    "init.path",
    "run",
    "resume",
    "prompts",
    "suite.path",
    "image",
    IMAGES,
    "guidance.classifier.path",
    "guidance.hps.path",
    "guidance.pickscore.path",
    "evaluate.classifier.path",
    "evaluate.hps.path",
    "evaluate.pickscore.path",
)


class Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(message)


def parse_arguments(verb: str, words: list[str]) -> tuple[argparse.Namespace, list[str]]:
    """Return the parsed command line, its overrides as they were typed, and the flags' words.

    Raises UserError for an unknown flag.
    """
    parser = Parser(prog=f"doodl {verb}", add_help=False, allow_abbrev=False)
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("-h", "--help", action="store_true")
    parser.add_argument("-m", "--multirun", action="store_true")
    parser.add_argument("-c", "--cfg", choices=["job", "hydra", "all"])
    parser.add_argument("-p", "--package")
    parser.add_argument("-cd", "--config-dir")
    parser.add_argument("-i", "--info", nargs="?", const="all")
    for flag in ("--resolve", "--hydra-help", "--shell-completion"):
        parser.add_argument(flag, action="store_true")
    flags = parser.parse_intermixed_args(words)
    hydra_flags = [word for word in words if word not in flags.overrides]
    return flags, hydra_flags


def quote(word: str) -> str:
    """Quote the value of a free-text key, so that Hydra's grammar takes every character as it is.

    Text that starts with a quote is left to that grammar: `prompt="a","b"` sweeps with -m. So is a
    list of pictures: [a.png,b.png].

    Raises UserError for a word that is not key=value.
    """
    if word.startswith("~"):
        return word
    key, equals, value = word.partition("=")
    if not key or not equals:
        raise UserError(f"{word}: must be key=value (free text needs quotes around the whole word)")
    name = key.lstrip("+")
    if name not in TEXT_KEYS + PATH_KEYS or value.startswith(("'", '"')):
        return word
    if name == IMAGES and value.startswith("["):
        return word
    if name in TEXT_KEYS:
        value = escape_interpolation(value)
    return f"{key}={QuotedString(value, Quote.double).with_quotes()}"


def escape_interpolation(text: str) -> str:
    r"""Write `${` as `\${`, doubling the backslashes before it, as OmegaConf asks."""
    return re.sub(r"(\\*)\$\{", r"\1\1\\${", text)
