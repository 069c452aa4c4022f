"""`doodl models`: what is configured, and whether its weights are here."""

from doodl_cli.commands.application import composer, resolve
from doodl_cli.commands.help import choices
from doodl_cli.errors import UserError
from doodl_cli.models.checkpoint import find_cached
from doodl_cli.models.locate import find_weights


def main(words: list[str]) -> None:
    """Print a line a model."""
    if words:
        raise UserError(f"{words[0]}: `doodl models` takes no arguments")
    with composer(None) as compose:
        models = {
            choice: resolve(compose("run", [f"model={choice}"]))["model"]
            for choice in choices("model")
        }
    for choice, model in sorted(models.items(), key=lambda item: item[0] != "emoji"):
        if model["name"] == "emoji":
            here, line = find_weights(model["name"], model["path"])
        elif model["path"]:
            here, line = find_cached(model["path"], model["variant"])
        else:
            here, line = False, "model.path=FOLDER, or a name on the Hugging Face hub"
        print(f"{choice:12} {'here' if here else 'missing':8} {line}")
