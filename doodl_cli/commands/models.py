"""`doodl models`: what is configured, and whether its weights are here."""

from importlib import resources

import yaml

from doodl_cli.commands.help import choices
from doodl_cli.errors import UserError
from doodl_cli.models.locate import find_weights


def main(words: list[str]) -> None:
    """Print a line a model."""
    if words:
        raise UserError(f"{words[0]}: `doodl models` takes no arguments")
    folder = resources.files("doodl_cli.configs") / "model"
    for choice in choices("model"):
        model = yaml.safe_load((folder / f"{choice}.yaml").read_text())
        here, line = find_weights(model["name"], model["path"])
        print(f"{choice:12} {'here' if here else 'missing':8} {line}")
