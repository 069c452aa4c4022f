"""Every family against diffusers' own pipeline, on tiny random weights, saved and loaded."""

import pytest
import torch
from diffusers import DDIMScheduler

from doodl_cli.config import Checkpoint
from doodl_cli.guidance import Guidance
from doodl_cli.guidance.guidance import ignore_prompts
from doodl_cli.guidance.scores import colourfulness
from doodl_cli.models.pipeline import load_pipeline
from doodl_cli.optimize import MicroBatch, Problem, Settings, initial_noise, optimize
from doodl_cli.sampling import SAMPLERS, make_grid
from tests.pipelines import SCHEDULERS, make_pipeline

CPU = torch.device("cpu")
PROMPTS = ["a red apple", "a cat"]
NEGATIVE = ["", "blue"]
T = 400


def settings_of(folder, **changes):
    values = {"variant": None, "height": None, "width": None, "held_out": None}
    values |= {"lora": None, "lora_scale": 1.0}
    values |= {"heads": None, "clips": None, "n_crops": 16, "n_iters": 1, "clip": 1e-3}
    return Checkpoint(name="diffusers", path=str(folder), **{**values, **changes})


@pytest.fixture(scope="module", params=SCHEDULERS)
def pair(request, tmp_path_factory):
    """A pipeline of diffusers and the model that is read from where it was saved."""
    folder = tmp_path_factory.mktemp(request.param)
    pipeline = make_pipeline(request.param)
    pipeline.save_pretrained(folder)
    return pipeline, load_pipeline(settings_of(folder), CPU, "float32")


def encode(pipeline, prompts, negative):
    """Return diffusers' own conditioning: (negative, positive), each with what is pooled or None.

    None, not "", is how diffusers is told that there is no negative prompt.
    """
    rows = []
    for prompt, text in zip(prompts, negative, strict=True):
        options = {"device": CPU, "num_images_per_prompt": 1, "do_classifier_free_guidance": True}
        found = pipeline.encode_prompt(prompt=prompt, negative_prompt=text or None, **options)
        rows.append(found if len(found) == 4 else (*found, None, None))
    states, negative_states, pooled, negative_pooled = (
        None if column[0] is None else torch.cat(column) for column in zip(*rows, strict=True)
    )
    return (negative_states, negative_pooled), (states, pooled)


@torch.no_grad()
def test_texts_are_encoded_as_the_pipeline_encodes_them(pair):
    pipeline, model = pair
    negative, positive = encode(pipeline, PROMPTS, NEGATIVE)
    found = (model.encode_negative(NEGATIVE), model.encode_text(PROMPTS))
    for expected, embedding in zip((negative, positive), found, strict=True):
        torch.testing.assert_close(embedding.states, expected[0], rtol=1e-5, atol=1e-6)
        if expected[1] is not None:
            torch.testing.assert_close(embedding.pooled, expected[1], rtol=1e-5, atol=1e-6)


@torch.no_grad()
@pytest.mark.parametrize("cfg_scale", [1.0, 7.5])
def test_the_guided_network_is_that_of_the_pipeline(pair, cfg_scale):
    """Seen from inside: what the pipeline gives its UNet, and what it makes of the answer."""
    pipeline, model = pair
    calls = []
    forward = pipeline.unet.forward

    def spy(sample, timestep, **conditions):
        out = forward(sample, timestep, **conditions)
        calls.append((sample, int(timestep), conditions, out[0]))
        return out

    pipeline.unet.forward = spy
    try:
        pipeline(
            prompt=PROMPTS[0], negative_prompt="blue", guidance_scale=cfg_scale,
            num_inference_steps=1, output_type="latent", latents=torch.randn(1, 4, 8, 8),
        )  # fmt: skip
    finally:
        pipeline.unet.forward = forward
    sample, t, conditions, out = calls[0]
    net = model.net([PROMPTS[0]], ["blue"], cfg_scale)
    torch.testing.assert_close(net.context, conditions["encoder_hidden_states"])
    for name, value in (conditions["added_cond_kwargs"] or {}).items():
        torch.testing.assert_close(net.added[name], value)
    if cfg_scale != 1.0:
        negative, positive = out.chunk(2)
        out = negative + cfg_scale * (positive - negative)
    torch.testing.assert_close(net(sample[:1], t), out, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_latents_are_decoded_and_pictures_encoded_as_the_pipeline_does(pair):
    pipeline, model = pair
    vae, x_0 = pipeline.vae, torch.randn(2, 4, 8, 8, dtype=torch.float64)
    expected = vae.decode(x_0.float() / vae.config.scaling_factor).sample
    torch.testing.assert_close(model.decode(x_0), expected)
    z = vae.encode(expected).latent_dist.mode() * vae.config.scaling_factor
    torch.testing.assert_close(model.encode(expected), z.double())


def test_the_prediction_and_the_schedule_are_the_checkpoints(pair):
    pipeline, model = pair
    reference = DDIMScheduler.from_config(pipeline.scheduler.config)
    assert model.schedule.prediction == reference.config.prediction_type
    alpha_bar = torch.tensor(model.schedule.alpha_bar)
    torch.testing.assert_close(alpha_bar, reference.alphas_cumprod, rtol=1e-4, atol=1e-6)
    assert model.picture_size == (64, 64)


def test_one_iteration_has_a_finite_gradient_that_is_not_zero(pair):
    _, model = pair
    table = SAMPLERS["bdia"](make_grid(model.schedule, 4))
    problem = Problem(
        table=table,
        net=model.net(PROMPTS, NEGATIVE, 2.0),
        decode=model.decode,
        guidance={"colourfulness": Guidance(ignore_prompts(colourfulness))},
        evaluation={},
        prompts=PROMPTS,
        seeds=[0, 1],
        micro_batch=MicroBatch(1),
    )
    x_T = initial_noise([0, 1], model.latent_shape)
    first, last = optimize(problem, Settings(n_iters=1), (x_T, x_T))
    assert all(0 < norm < float("inf") for norm in first.grad_norm)
    assert not torch.equal(first.pair[0], last.pair[0])


@pytest.mark.parametrize("size", [{"height": 96}, {"width": 32}, {"height": 96, "width": 72}])
def test_pictures_need_not_be_square(size, tmp_path):
    make_pipeline("sdxl").save_pretrained(tmp_path)
    model = load_pipeline(settings_of(tmp_path, **size), CPU, "float32")
    h, w = size.get("height", 64), size.get("width", 64)
    net = model.net(["x"], [""], 2.0)
    assert net.added["time_ids"][0].tolist() == [h, w, 0, 0, h, w]
    x_T = initial_noise([0], model.latent_shape)
    assert model.decode(net(x_T, T)).shape == (1, 3, h, w)


def test_an_autoencoder_that_overflows_in_float16_stays_in_float32(tmp_path):
    for family, dtype in (("sd15", torch.float16), ("sdxl", torch.float32)):
        make_pipeline(family).save_pretrained(tmp_path / family)
        model = load_pipeline(settings_of(tmp_path / family), CPU, "float16")
        assert model.vae.dtype == dtype
        assert model.unet.dtype == torch.float16
        assert model.decode(torch.zeros(1, 4, 8, 8)).dtype == torch.float32
