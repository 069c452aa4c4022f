"""GroupNorm with SiLU and GEGLU in Triton: by its interpreter without a GPU, and in networks."""

import copy
import os
import sys

import pytest
import torch
from diffusers import UNet2DConditionModel
from diffusers.models import attention_processor
from diffusers.models.activations import GEGLU
from diffusers.models.attention_processor import AttnProcessor
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from peft import LoraConfig
from torch import nn
from torch.nn.functional import gelu, group_norm, silu

from doodl_cli.commands.task import set_determinism, set_precision
from doodl_cli.models import tuning
from doodl_cli.models.capture import Captured
from doodl_cli.models.fused import (
    ChannelsLastTransformer2D,
    EmbeddingSiLU,
    FastGEGLU,
    FastGroupNorm,
    FastResnetBlock2D,
    NormSiLU,
    can_fuse,
    fuse_layers,
)
from doodl_cli.models.pipeline import adapt_pipeline
from doodl_cli.models.tuning import attend_plainly, rounds_convolutions, tune
from tests.pipelines import make_autoencoder, make_pipeline, make_unet

CUDA = torch.cuda.is_available()
DEVICE = "cuda" if CUDA else "cpu"
pytestmark = pytest.mark.filterwarnings("ignore:overflow encountered in exp")  # sigmoid(-100)
gpu = pytest.mark.skipif(not CUDA, reason="needs a CUDA device")
LAST = torch.channels_last
SHAPES = [  # of x, and groups: 10, 30, 80, 4, 1 and 13 channels a group
    ((2, 40, 8, 8), 4),
    ((1, 60, 7, 9), 2),
    ((1, 80, 17, 32), 1),  # more tiles than are reduced at once
    ((1, 16, 35, 31), 4),  # large tiles, the last one not full
    ((3, 5, 3, 1), 5),
    ((1, 130, 1, 1), 10),
    ((2, 12, 11), 3),
]
REAL = [  # of Stable Diffusion's UNet and decoder
    ((2, 320, 64, 64), 32),
    ((2, 960, 64, 64), 32),
    ((16, 640, 32, 32), 32),
    ((32, 2560, 8, 8), 32),
    ((1, 512, 64, 64), 32),
    ((1, 128, 512, 512), 32),
]


@pytest.fixture(scope="module")
def kernels():
    """The kernels, which the interpreter runs without a GPU (conftest.py)."""
    pytest.importorskip("triton")
    if not CUDA and os.environ.get("TRITON_INTERPRET") != "1":
        pytest.skip("needs a CUDA device or TRITON_INTERPRET=1")
    from doodl_cli.models import norm_kernels

    return norm_kernels


def draw(shape, dtype=torch.float32, shift=0.0):
    """Return x, weight, bias and the cotangent; x has a mean and a spread that are not 0 and 1."""
    generator = torch.Generator().manual_seed(0)
    sizes = (shape, shape[1:2], shape[1:2], shape)
    x, *others = (torch.randn(size, generator=generator) for size in sizes)
    return [one.to(DEVICE, dtype) for one in (3 * x + 1 + shift, *others)]


def last(x):
    return x.contiguous(memory_format=LAST) if x.ndim == 4 else x


def with_gradient(norm, x, cotangent):
    """Return a function's value and vector-Jacobian product."""
    x = x.detach().requires_grad_()
    y = norm(x)
    return y.detach(), torch.autograd.grad(y, x, cotangent)[0]


def exact(x, weight, bias, cotangent, n_groups, activated):
    """Return what GroupNorm, or SiLU of it, gives in float64."""

    def norm(x):
        y = group_norm(x, n_groups, weight.double(), bias.double(), 1e-5)
        return silu(y) if activated else y

    return with_gradient(norm, x.double(), cotangent.double())


def error(found, expected):
    return ((found.double() - expected).norm() / expected.norm()).item()


@pytest.mark.parametrize("activated", [False, True])
@pytest.mark.parametrize(("shape", "n_groups"), SHAPES)
def test_values_and_gradients_are_those_of_float64(kernels, shape, n_groups, activated):
    x, weight, bias, cotangent = draw(shape)

    def norm(x):
        return kernels.group_norm(x, weight, bias, n_groups, 1e-5, activated)

    found = with_gradient(norm, last(x), last(cotangent))
    expected = exact(x, weight, bias, cotangent, n_groups, activated)
    for one, other in zip(found, expected, strict=True):
        assert one.shape == x.shape
        assert (one.double() - other).abs().max() < 1e-5 * (1 + other.abs().max())
    assert torch.equal(norm(last(x)), found[0])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_in_half_precision_only_the_result_is_rounded(kernels, dtype):
    x, weight, bias, cotangent = draw((2, 40, 8, 8), dtype)
    found = with_gradient(
        lambda x: kernels.group_norm(x, weight, bias, 4, 1e-5, True), last(x), last(cotangent)
    )
    for one, other in zip(found, exact(x, weight, bias, cotangent, 4, True), strict=True):
        assert one.dtype == dtype
        assert error(one, other) < torch.finfo(dtype).eps / 2


def test_a_large_mean_does_not_drown_the_variance(kernels):
    x, weight, bias, cotangent = draw((1, 16, 8, 12), shift=3000.0)
    found = with_gradient(
        lambda x: kernels.group_norm(x, weight, bias, 4, 1e-5, False), last(x), last(cotangent)
    )
    for one, other in zip(found, exact(x, weight, bias, cotangent, 4, False), strict=True):
        assert error(one, other) < 1e-4  # 6e-8 of the mean is 6e-5 of the deviation


def test_the_memory_layout_of_the_input_and_the_batch_do_not_matter(kernels):
    x, weight, bias, cotangent = draw((3, 16, 6, 10))

    def norm(x):
        return kernels.group_norm(x, weight, bias, 4, 1e-5, True)

    expected = with_gradient(norm, last(x), last(cotangent))
    found = with_gradient(norm, x, cotangent)
    alone = with_gradient(norm, x[1:2], cotangent[1:2])
    for one, single, other in zip(found, alone, expected, strict=True):
        assert one.is_contiguous(memory_format=LAST)
        assert torch.equal(one, other)
        assert torch.equal(single, other[1:2])
    flat = norm(last(x).view(3, 16, 60))  # as attention has it
    assert torch.equal(flat.unflatten(2, (6, 10)), expected[0])


def test_the_gradient_keeps_the_input_and_not_its_norm(kernels):
    x, weight, bias, _ = draw((2, 16, 8, 8))
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(kept.append, lambda _: None):
        kernels.group_norm(last(x).requires_grad_(), weight, bias, 4, 1e-5, True)
    assert sorted(one.numel() for one in kept) == [8, 8, 16, 16, x.numel()]


GATED = [(3, 5, 600), (2, 2), (1, 9, 512), (17, 1, 14)]  # partial tiles, one column, full ones


def exact_geglu(x):
    value, gate = x.chunk(2, -1)
    return value * gelu(gate)


@pytest.mark.parametrize("shape", GATED)
def test_geglu_and_its_gradient_are_those_of_float64(kernels, shape):
    from doodl_cli.models.geglu_kernels import geglu

    x, _, _, cotangent = draw(shape)
    cotangent = cotangent[..., : shape[-1] // 2]  # which is not contiguous
    found = with_gradient(geglu, x, cotangent)
    expected = with_gradient(exact_geglu, x.double(), cotangent.double())
    for one, other in zip(found, expected, strict=True):
        assert one.shape == other.shape
        assert (one.double() - other).abs().max() < 1e-5 * (1 + other.abs().max())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_geglu_in_half_precision_rounds_the_result_alone(kernels, dtype):
    from doodl_cli.models.geglu_kernels import geglu

    x, *_ = draw((7, 300), dtype)
    cotangent = x[:, 150:].clone()
    found = with_gradient(geglu, x, cotangent)
    expected = with_gradient(exact_geglu, x.double(), cotangent.double())
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == dtype
        assert error(one, other) < torch.finfo(dtype).eps / 2


def make_linear_unet():
    """Return a UNet whose transformers project by linear layers, as from Stable Diffusion 2 on."""
    return UNet2DConditionModel.from_config(
        {**make_unet(False).config, "use_linear_projection": True}
    )


def make_unet_with_lora():
    """Return a UNet whose layers with weights that are fused are LoRA's."""
    unet = make_unet(False)
    unet.add_adapter(LoraConfig(target_modules=["conv1", "proj_in", "proj_out", "proj"]))
    for parameter in unet.parameters():  # LoRA begins at zero
        parameter.data += 0.05 * torch.randn_like(parameter)
    return unet


@pytest.mark.parametrize(
    "make",
    [
        lambda: make_unet(False),
        make_linear_unet,
        make_unet_with_lora,
        lambda: make_autoencoder(False),
    ],
)
def test_a_fused_network_computes_the_same_and_keeps_its_names(make):
    torch.manual_seed(0)
    network = make().eval()
    fused = copy.deepcopy(network)
    for _ in range(2):
        fuse_layers(fused)
    assert not any(type(module) is nn.GroupNorm for module in fused.modules())
    assert list(fused.state_dict()) == list(network.state_dict())
    x = torch.randn(2, 4, 8, 8)
    expected, found = evaluate(network, x), evaluate(fused, x)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def evaluate(network, x):
    """Return what a UNet, or the decoder of an auto-encoder, makes of latents."""
    if hasattr(network, "decoder"):
        return network.decode(x).sample
    context = torch.ones(len(x), 7, 32, dtype=x.dtype, device=x.device)
    return network(x, torch.tensor(501, device=x.device), encoder_hidden_states=context).sample


def test_every_silu_after_a_norm_is_fused_and_the_time_embedding_keeps_its_own():
    unet, decoder = make_unet(False), make_autoencoder(False).decoder
    fuse_layers(unet)
    fuse_layers(decoder)
    for network in (unet, decoder):
        assert type(network.conv_norm_out) is NormSiLU
        blocks = [module for module in network.modules() if isinstance(module, ResnetBlock2D)]
        assert {type(block.norm1) for block in blocks} == {NormSiLU}
        assert {type(block.norm2) for block in blocks} == {NormSiLU}
        assert {type(block.nonlinearity) for block in blocks} == {EmbeddingSiLU}
    embedding = torch.randn(2, 8)
    assert torch.equal(blocks[0].nonlinearity(embedding), silu(embedding))
    assert type(unet.time_embedding.act) is nn.SiLU
    kinds = {type(module) for module in unet.modules()}
    assert {FastGEGLU, FastResnetBlock2D, ChannelsLastTransformer2D} <= kinds
    assert not {GEGLU, ResnetBlock2D, Transformer2DModel} & kinds
    assert type(decoder.mid_block.attentions[0].group_norm) is FastGroupNorm


@pytest.mark.parametrize(
    "options", [{"time_embedding_norm": "scale_shift"}, {"non_linearity": "mish"}]
)
def test_a_block_that_activates_something_else_keeps_its_activation(options):
    torch.manual_seed(0)
    block = ResnetBlock2D(in_channels=8, temb_channels=6, groups=4, **options)
    x, embedding = torch.randn(2, 8, 4, 4), torch.randn(2, 6)
    expected, activation = block(x, embedding), type(block.nonlinearity)
    fuse_layers(block)
    assert torch.equal(block(x, embedding), expected)
    assert type(block.nonlinearity) is activation
    assert type(block.norm1) is FastGroupNorm


@pytest.mark.parametrize(
    "options", [{}, {"up": True}, {"down": True}, {"skip_time_act": True}, {"out_channels": 12}]
)
def test_a_fused_block_computes_the_same(options):
    torch.manual_seed(0)
    block = ResnetBlock2D(in_channels=8, temb_channels=6, groups=4, **options).eval()
    x, embedding = torch.randn(2, 8, 4, 4), torch.randn(2, 6)
    expected = block(x, embedding)
    fuse_layers(block)
    assert type(block) is FastResnetBlock2D
    torch.testing.assert_close(block(x, embedding), expected, rtol=1e-5, atol=1e-6)


def count_softmaxes(function, monkeypatch):
    """Return a function's result and how often it called the softmax of a tensor."""
    counted, softmax = [], torch.Tensor.softmax
    with monkeypatch.context() as patch:
        patch.setattr(
            torch.Tensor, "softmax", lambda x, dim: counted.append(dim) or softmax(x, dim)
        )
        return function(), len(counted)


def test_plain_attention_of_a_decoder_computes_the_same(monkeypatch):
    torch.manual_seed(0)
    decoder = make_autoencoder(False).decoder.eval()
    x, cotangent = torch.randn(2, 8, 6, 4), torch.randn(2, 8, 6, 4)
    (attention,) = decoder.mid_block.attentions
    expected = with_gradient(attention, x, cotangent)
    attend_plainly(decoder)
    for most, kept in ((24, 1), (23, 0)):
        monkeypatch.setattr(tuning, "MOST_POSITIONS", most)
        found, n_kept = count_softmaxes(lambda: with_gradient(attention, x, cotangent), monkeypatch)
        assert n_kept == kept
        for one, other in zip(found, expected, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


def test_plain_attention_of_a_decoder_takes_all_that_diffusers_gives_it(monkeypatch):
    decoder = make_autoencoder(False).decoder.eval()
    attend_plainly(decoder)
    said = []
    monkeypatch.setattr(attention_processor.logger, "warning", lambda *args: said.append(args))
    decoder.mid_block(torch.randn(1, 8, 6, 4))
    assert said == []


def test_a_processor_of_the_user_stays():
    decoder = make_autoencoder(False).decoder
    (attention,) = decoder.mid_block.attentions
    attention.set_processor(AttnProcessor())
    attend_plainly(decoder)
    assert type(attention.processor) is AttnProcessor


@pytest.fixture
def flags():
    """What says whether a GPU rounds products of float32; a test may change it."""
    backends = torch.backends.cuda.matmul, torch.backends.cudnn
    before = [backend.allow_tf32 for backend in backends]
    yield backends
    for backend, allowed in zip(backends, before, strict=True):
        backend.allow_tf32 = allowed


@pytest.mark.parametrize(
    ("dtype", "rounded"),
    [("float32", False), ("tf32", True), ("float16", True), ("bfloat16", True)],
)
def test_what_stays_in_float32_beside_half_precision_is_rounded(flags, dtype, rounded):
    for backend in flags:
        backend.allow_tf32 = not rounded
    set_precision(dtype)
    assert torch.backends.cuda.matmul.allow_tf32 == rounded
    assert rounds_convolutions() == rounded


def test_determinism_is_asked_of_torch_and_of_cublas(monkeypatch):
    asked = []
    monkeypatch.setattr(torch, "use_deterministic_algorithms", asked.append)
    monkeypatch.setattr(torch, "are_deterministic_algorithms_enabled", lambda: asked[-1:] == [True])
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", "")
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG")
    set_determinism(False)
    assert "CUBLAS_WORKSPACE_CONFIG" not in os.environ
    assert asked == []  # as it is; the call takes a second
    set_determinism(True)
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    set_determinism(False)
    assert asked == [True, False]


@pytest.mark.skipif(not hasattr(torch.backends.cudnn, "conv"), reason="needs PyTorch 2.9")
def test_a_caller_may_have_set_the_precision_of_convolutions_alone(flags):
    torch.backends.cudnn.conv.fp32_precision = "ieee"
    assert not rounds_convolutions()


def test_off_a_gpu_nothing_is_fused():
    model = adapt_pipeline(make_pipeline("sd15"))
    tune(model, unet_checkpointing=False, compiled=False)
    for network in (model.unet, model.vae):
        assert not any(isinstance(one, FastGroupNorm) for one in network.modules())


def test_without_triton_one_line_says_so_and_nothing_breaks(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "doodl_cli.models.norm_kernels", None)
    assert not can_fuse(torch.device("cpu"), torch.float32)
    (line,) = capsys.readouterr().err.splitlines()
    assert "without Triton" in line


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_where_triton_runs_layers_can_be_fused(kernels, dtype, capsys):
    assert can_fuse(torch.device(DEVICE), dtype)
    assert not capsys.readouterr().err


@gpu
@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
@pytest.mark.parametrize(("shape", "n_groups"), REAL)
def test_real_shapes_on_a_gpu_are_right_and_the_same_every_time(kernels, shape, n_groups, dtype):
    x, weight, bias, cotangent = draw(shape, dtype)

    def norm(x):
        return kernels.group_norm(x, weight, bias, n_groups, 1e-5, True)

    found = with_gradient(norm, last(x), last(cotangent))
    again = with_gradient(norm, last(x), last(cotangent))
    expected = exact(x, weight, bias, cotangent, n_groups, True)
    for one, other, third in zip(found, expected, again, strict=True):
        assert error(one, other) < max(torch.finfo(dtype).eps / 2, 2e-6)
        assert torch.equal(one, third)
    with torch.no_grad():
        assert torch.equal(norm(last(x)), found[0])


@gpu
@pytest.mark.gpu
@pytest.mark.parametrize("shape", [(2, 4096, 2560), (16, 64, 10240), (1, 100, 5120)])
def test_geglu_of_real_shapes_on_a_gpu(kernels, shape):
    from doodl_cli.models.geglu_kernels import geglu

    x, _, _, cotangent = draw(shape, torch.float16)
    cotangent = cotangent[..., : shape[-1] // 2].contiguous()
    found = with_gradient(geglu, x, cotangent)
    expected = with_gradient(exact_geglu, x.double(), cotangent.double())
    for one, other in zip(found, expected, strict=True):
        assert error(one, other) < torch.finfo(torch.float16).eps / 2


@gpu
@pytest.mark.gpu
def test_a_captured_norm_gives_what_the_plain_one_does(kernels):
    x, weight, bias, cotangent = draw((2, 320, 16, 16), torch.float16)

    def norm(x):
        return kernels.group_norm(x, weight, bias, 32, 1e-5, True)

    captured = Captured(norm, (torch.zeros_like(last(x)),))
    found = with_gradient(captured, last(x), last(cotangent))
    for one, other in zip(found, with_gradient(norm, last(x), last(cotangent)), strict=True):
        assert torch.equal(one, other)


@gpu
@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_tuned_networks_on_a_gpu_compute_as_before(dtype, monkeypatch):
    pytest.importorskip("triton")
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    pipeline = make_pipeline("sd15").to("cuda", dtype)
    plain = copy.deepcopy(pipeline)
    model = adapt_pipeline(pipeline)
    tune(model, unet_checkpointing=False, compiled=False)
    assert type(model.unet.conv_norm_out) is NormSiLU
    assert isinstance(model.vae.decoder.conv_norm_out, NormSiLU) == (dtype == torch.float16)
    torch.manual_seed(0)
    x = torch.randn(2, 4, 8, 8, device="cuda", dtype=dtype)
    tolerance = 2e-2 if dtype == torch.float16 else 1e-4
    for network, expected in ((pipeline.unet, plain.unet), (pipeline.vae, plain.vae)):
        assert list(network.state_dict()) == list(expected.state_dict())
        cotangent = torch.randn_like(evaluate(network, x))
        results = [
            with_gradient(lambda x, one=one: evaluate(one, x), x, cotangent)
            for one in (network, expected)
        ]
        for one, other in zip(*results, strict=True):
            assert error(one, other.double()) < tolerance
