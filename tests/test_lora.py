"""A LoRA made by peft and saved by diffusers: merged at load, it is what diffusers makes of it."""

import copy

import pytest
import torch
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline
from diffusers.utils import convert_state_dict_to_diffusers
from peft import LoraConfig, get_peft_model_state_dict
from safetensors.torch import load_file, save_file

from doodl_cli.errors import UserError
from doodl_cli.models.pipeline import load_pipeline
from tests.pipelines import make_pipeline
from tests.test_models import CPU, settings_of

FILE = "pytorch_lora_weights.safetensors"
T = 400


def save_lora(pipeline, folder):
    """Save a random LoRA of rank 2 on the attention of the UNet and of the text encoders."""
    layers = {}
    targets = {"unet": ["to_q", "to_v"], "text_encoder": ["q_proj", "v_proj"]}
    if isinstance(pipeline, StableDiffusionXLPipeline):
        targets["text_encoder_2"] = targets["text_encoder"]
    for name, modules in targets.items():
        network = copy.deepcopy(getattr(pipeline, name))
        network.add_adapter(LoraConfig(r=2, lora_alpha=2, target_modules=modules))
        for key, parameter in network.named_parameters():
            if "lora" in key:
                torch.nn.init.normal_(parameter, std=0.3)
        layers[f"{name}_lora_layers"] = convert_state_dict_to_diffusers(
            get_peft_model_state_dict(network)
        )
    type(pipeline).save_lora_weights(folder, **layers)
    return folder / FILE


@pytest.fixture(scope="module", params=["sd15", "sdxl"])
def case(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    pipeline = make_pipeline(request.param)
    pipeline.save_pretrained(folder)
    return pipeline, folder, save_lora(pipeline, folder / "lora")


@torch.no_grad()
def outcome(model):
    """Return the network's output and the text's states, which show both kinds of layers."""
    torch.manual_seed(0)
    x = torch.randn(1, *model.latent_shape)
    return model.net(["a cat"], [""], 2.0)(x, T), model.encode_text(["a cat"]).states


@torch.no_grad()
@pytest.mark.parametrize("scale", [1.0, 0.5])
def test_a_lora_changes_the_output_to_what_diffusers_makes_of_it(case, scale):
    pipeline, folder, file = case
    plain = outcome(load_pipeline(settings_of(folder), CPU, "float32"))
    model = load_pipeline(settings_of(folder, lora=str(file), lora_scale=scale), CPU, "float32")
    assert len(model.weights[str(file)]) == 64
    found = outcome(model)
    reference = copy.deepcopy(load_pipeline(settings_of(folder), CPU, "float32"))
    parts = {"unet": reference.unet, "vae": reference.vae, "scheduler": pipeline.scheduler}
    if isinstance(pipeline, StableDiffusionXLPipeline):
        names = ("text_encoder", "text_encoder_2"), ("tokenizer", "tokenizer_2")
        parts |= dict(zip(names[0], reference.text.encoders, strict=True))
        parts |= dict(zip(names[1], reference.text.tokenizers, strict=True))
        own = StableDiffusionXLPipeline(**parts, add_watermarker=False)
    else:
        parts |= {"text_encoder": reference.text.encoder, "tokenizer": reference.text.tokenizer}
        own = StableDiffusionPipeline(
            **parts, safety_checker=None, feature_extractor=None, requires_safety_checker=False
        )
    own.load_lora_weights(file.parent, adapter_name="own")
    own.set_adapters("own", scale)  # beside the weights, not merged into them
    expected = outcome(reference)
    for a, b, without in zip(found, expected, plain, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
        assert (a - without).abs().max() > 1e-3


def test_a_lora_that_is_missing_damaged_or_of_another_kind_is_refused(case, tmp_path):
    _, folder, file = case
    truncated, foreign = tmp_path / "truncated.safetensors", tmp_path / "foreign.safetensors"
    truncated.write_bytes(file.read_bytes()[:-10])
    renamed = {name.replace("unet.", "transformer."): x for name, x in load_file(file).items()}
    save_file({name: x for name, x in renamed.items() if "transformer" in name}, foreign)
    for path in (tmp_path / "nowhere", truncated, foreign):
        with pytest.raises(UserError, match=f"model.lora={path}: "):
            load_pipeline(settings_of(folder, lora=str(path)), CPU, "float32")
