"""Tiny random scorers, saved in the formats of the real ones."""

import json
from pathlib import Path
from types import SimpleNamespace

import torch
from safetensors.torch import save_file
from torch import nn

EMBED_DIM = 768
MODEL_CONFIG = {
    "embed_dim": EMBED_DIM,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 16},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}
LABELS = ["tench, Tinca tinca", "crane", "penguin, king penguin", "crane"]

model = SimpleNamespace(device=torch.device("cpu"), picture_size=(64, 64))


def make_images(b: int = 2, size: int = 64) -> torch.Tensor:
    """Return smooth pictures (b, 3, size, size) in [-1, 1]."""
    noise = torch.rand(b, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    return nn.functional.interpolate(noise, (size, size), mode="bilinear")


def save_open_clip(folder: Path, seed: int = 0) -> str:
    """Save a CLIP as an open_clip folder and return its name."""
    import open_clip

    torch.manual_seed(seed)
    folder.mkdir(parents=True)
    config = {"model_cfg": MODEL_CONFIG, "preprocess_cfg": {"mean": [0.4] * 3, "std": [0.3] * 3}}
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    clip = open_clip.CLIP(**MODEL_CONFIG)
    save_file(clip.state_dict(), folder / "open_clip_model.safetensors")
    return f"local-dir:{folder}"


def make_v2_head() -> nn.Module:
    """Return LAION's improved predictor: its layers 1, 3 and 5 are dropout."""
    layers = nn.Sequential(
        nn.Linear(EMBED_DIM, 1024), nn.Dropout(0.2),
        nn.Linear(1024, 128), nn.Dropout(0.2),
        nn.Linear(128, 64), nn.Dropout(0.1),
        nn.Linear(64, 16), nn.Linear(16, 1),
    )  # fmt: skip
    return nn.ModuleDict({"layers": layers}).eval()


def save_vit(folder: Path) -> str:
    """Save a classifier of transformers with its preprocessing."""
    from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessor

    torch.manual_seed(0)
    config = ViTConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32,
        image_size=32, patch_size=16, initializer_range=0.5, id2label=dict(enumerate(LABELS)),
    )  # fmt: skip
    ViTForImageClassification(config).save_pretrained(folder)
    ViTImageProcessor(size={"height": 32, "width": 32}, resample=2).save_pretrained(folder)
    return str(folder)


def save_timm(folder: Path) -> str:
    """Save a model of timm as its hub does."""
    import timm

    torch.manual_seed(0)
    network = timm.create_model("test_resnet", num_classes=4)
    timm.models.save_for_hf(network, folder, model_config={"label_names": LABELS})
    return str(folder)


def save_pickscore(folder: Path) -> str:
    """Save a CLIPModel with the files that PickScore comes with."""
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPTokenizer

    torch.manual_seed(0)
    letters = [chr(i) for i in range(97, 123)]
    tokens = [*letters, *(f"{x}</w>" for x in letters), "<|startoftext|>", "<|endoftext|>"]
    vocabulary = {token: i for i, token in enumerate(tokens)}
    folder.mkdir(parents=True)
    CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=77).save_pretrained(folder)
    CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=32).save_pretrained(folder)
    tower = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    ends = {"bos_token_id": 52, "eos_token_id": 53, "pad_token_id": 53}
    config = CLIPConfig(
        text_config={**tower, **ends, "intermediate_size": 32, "vocab_size": len(tokens)},
        vision_config={**tower, "intermediate_size": 32, "image_size": 32, "patch_size": 16},
        projection_dim=8,
    )
    CLIPModel(config).save_pretrained(folder)
    return str(folder)
