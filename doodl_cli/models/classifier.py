"""Image classifiers behind one interface: the model's own, transformers' and timm's.

A classifier's own preprocessing is part of it. Both libraries' transforms work on tensors and let
the gradient through, so they are used as they are.
"""

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from doodl_cli.errors import UserError
from doodl_cli.models.fetch import cache_first, explain, hash_weights, quiet

PROBE_SIDE = 64


@dataclass(frozen=True)
class Classifier:
    """`preprocess` takes pictures in [0, 1]; `logits` what it returns, to (b, n_classes).

    `labels` are the classes' names, empty where nothing says them.
    """

    network: nn.Module
    preprocess: Callable[[Tensor], Tensor]
    logits: Callable[[Tensor], Tensor]
    labels: list[str]
    n_classes: int
    image_size: int
    facts: Mapping[str, Any]

    def log_probabilities(self, images: Tensor) -> Tensor:
        """Return log p(class | picture), (b, n_classes), for pictures (b, 3, h, w) in [-1, 1]."""
        return self.logits(self.preprocess((images.float() + 1) / 2)).float().log_softmax(1)


def load_classifier(
    source: str, name: str | None, path: str | None, device: torch.device, key: str
) -> Classifier:
    """Load a classifier, frozen, in float32: of `transformers` or `timm`.

    Raises UserError, with the `key` that the user gave it by, for what cannot be loaded.
    """
    load = {"transformers": load_from_transformers, "timm": load_from_timm}[source]
    if path is not None and not Path(path).exists():
        raise UserError(f"{key}.path={path}: no such file; must be the classifier's weights")
    what = f"{key}.path={path}" if path else f"{key}.name={name}"
    try:
        with quiet():
            classifier = load(name, path, device)
    except Exception as error:  # what they raise on damaged files has no common class
        raise UserError(
            f"{what}: cannot be loaded by {source}: {explain(error)}; must be a classifier that is "
            "here or can be fetched"
        ) from error
    if not classifier.preprocess(make_probe(device)).requires_grad:
        raise UserError(f"{what}: its preprocessing lets no gradient through; choose another")
    return classifier


def make_probe(device: torch.device) -> Tensor:
    """Return a grey picture to find out what a classifier makes of pictures."""
    return torch.full((1, 3, PROBE_SIDE, PROBE_SIDE), 0.5, device=device, requires_grad=True)


def load_from_transformers(name: str | None, path: str | None, device: torch.device) -> Classifier:
    """Load an AutoModelForImageClassification with its image processor."""
    from transformers import AutoImageProcessor, AutoModelForImageClassification

    where = path or name
    assert where is not None
    network, loading = cache_first(
        lambda offline: AutoModelForImageClassification.from_pretrained(
            where, dtype=torch.float32, local_files_only=offline, output_loading_info=True
        )
    )
    if loading["missing_keys"]:
        raise ValueError(f"it lacks {sorted(loading['missing_keys'])[0]}: no classifier")
    processor = cache_first(
        lambda offline: AutoImageProcessor.from_pretrained(where, local_files_only=offline)
    )
    network.to(device).eval().requires_grad_(False)
    labels = network.config.id2label

    def preprocess(images: Tensor) -> Tensor:
        return processor(images=255 * images, return_tensors="pt")["pixel_values"]

    return Classifier(
        network=network,
        preprocess=preprocess,
        logits=lambda pixels: network(pixel_values=pixels).logits,
        labels=[labels[i] for i in range(len(labels))],
        n_classes=len(labels),
        image_size=preprocess(make_probe(device)).shape[-1],
        facts={"name": where, "sha256": hash_weights(where)},
    )


def load_from_timm(name: str | None, path: str | None, device: torch.device) -> Classifier:
    """Load a model of timm by name, with a checkpoint's weights if any, or a folder it saved."""
    import timm

    if name and ":" not in name and not timm.is_model(name.partition(".")[0]):
        near = difflib.get_close_matches(name, timm.list_models(), n=3)
        hint = f"; did you mean {' or '.join(near)}?" if near else ""
        raise ValueError(f"timm has no such model{hint}")
    network: Any
    if path and Path(path).is_dir():
        network = timm.create_model(f"local-dir:{path}", pretrained=True)
    elif path and name:
        network = create_from_file(name, path)
    elif name and not path:
        network = timm.create_model(name, pretrained=True)
    else:
        raise ValueError("a file of weights needs the model's name too")
    network.to(device).eval().requires_grad_(False)
    config = timm.data.resolve_model_data_config(network)
    where = path or network.pretrained_cfg.get("hf_hub_id") or ""
    return Classifier(
        network=network,
        preprocess=timm.data.create_transform(**config, is_training=False),
        logits=network,
        labels=read_timm_labels(network),
        n_classes=network.num_classes,
        image_size=config["input_size"][-1],
        facts={
            "name": name,
            "path": path,
            "sha256": hash_weights(where),
        },
    )


def create_from_file(name: str, path: str) -> Any:
    """Return a model of timm with a file's weights, as many classes as these have."""
    import timm

    weights = timm.models.load_state_dict(path, weights_only=True)
    network: Any = timm.create_model(name)
    head = f"{network.pretrained_cfg.get('classifier')}.weight"
    if head in weights and len(weights[head]) != network.num_classes:
        network = timm.create_model(name, num_classes=len(weights[head]))
    network.load_state_dict(weights)
    return network


def read_timm_labels(network: Any) -> list[str]:
    """Return the classes' names: the checkpoint's own, or ImageNet's where it was trained on it."""
    from timm.data import ImageNetInfo, infer_imagenet_subset

    config = network.pretrained_cfg
    names, descriptions = config.get("label_names"), config.get("label_descriptions") or {}
    if names:
        return [descriptions.get(name, name) for name in names]
    subset = infer_imagenet_subset(network)
    return list(ImageNetInfo(subset).label_descriptions()) if subset else []


def find_class(labels: list[str], n_classes: int, target: str | int, key: str) -> int:
    """Return the number of a class given by name or number.

    A label that lists synonyms ("tabby, tabby cat") goes by each of them. Raises UserError with
    near names for a class that there is not, with the numbers for a name of several.
    """
    text = str(target).strip().casefold()
    spellings = [[label.casefold(), *label.casefold().split(", ")] for label in labels]
    whole = [i for i, label in enumerate(labels) if label.casefold() == text]
    found = whole or [i for i, names in enumerate(spellings) if text in names]
    if len(found) == 1:
        return found[0]
    if found:
        several = ", ".join(f"{i} ({labels[i]})" for i in found)
        raise UserError(f"{key}={target}: the name of several classes; must be one of {several}")
    if text.isdecimal() and int(text) < n_classes:
        return int(text)
    if not labels:
        raise UserError(
            f"{key}={target}: this classifier names no classes; must be a number from 0 to "
            f"{n_classes - 1}"
        )
    near = [labels[i] for i in near_classes(spellings, text)]
    shown = ", ".join(labels[:8]) + (", ..." if len(labels) > 8 else "")
    hint = f"; did you mean {' or '.join(near)}?" if near else f": {shown}"
    raise UserError(
        f"{key}={target}: no such class; must be one of {len(labels)} names or a number from 0 to "
        f"{n_classes - 1}{hint}"
    )


def near_classes(spellings: list[list[str]], text: str) -> list[int]:
    """Return the numbers of up to three classes with a name like `text`."""
    numbers = {name: i for i, names in enumerate(spellings) for name in names}
    near = difflib.get_close_matches(text, numbers, n=3)
    return list(dict.fromkeys(numbers[name] for name in near))
