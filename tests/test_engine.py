"""The engine: half precision that does not underflow, little memory, batches that halve, graphs."""

import json
from contextlib import contextmanager
from dataclasses import replace
from weakref import WeakSet

import open_clip
import pytest
import torch
from diffusers import AutoencoderKL
from open_clip.modified_resnet import ModifiedResNet

from doodl_cli import cli
from doodl_cli import problem as problem_module
from doodl_cli.commands.task import set_determinism
from doodl_cli.errors import lacks_memory
from doodl_cli.guidance import Guidance
from doodl_cli.guidance.guidance import ignore_prompts
from doodl_cli.guidance.scores import colourfulness
from doodl_cli.models import clip as clips
from doodl_cli.models import latent_model
from doodl_cli.models.capture import N_WARM_UP, Captured, Captures, Replay
from doodl_cli.models.clip import Clip, SelfAttention, fold_norms
from doodl_cli.models.decoder import decode_sparingly
from doodl_cli.models.half import in_half
from doodl_cli.models.latent_model import LatentModel, load_model
from doodl_cli.models.pipeline import adapt_pipeline
from doodl_cli.models.tuning import tune
from doodl_cli.optimize import MicroBatch, initial_noise
from doodl_cli.optimize.assess import assess
from doodl_cli.optimize.noise import make_generators
from doodl_cli.problem import pose_problem
from doodl_cli.sampling import SAMPLERS, make_grid
from tests.pipelines import make_pipeline, make_unet
from tests.runs import needs_weights

gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


def make_problem(seeds=(0,), n_crops=4, device="cpu", **options):
    """Return a problem on a tiny pipeline whose loss draws random crops."""
    pipeline = make_pipeline("sd15").to(device)
    model = adapt_pipeline(pipeline)
    guidance = {"colourfulness": Guidance(ignore_prompts(colourfulness), n_crops=n_crops)}
    table = SAMPLERS["bdia"](make_grid(model.schedule, 4))
    prompts = ["a cat"] * len(seeds)
    problem = pose_problem(
        model, table, prompts, [""] * len(seeds), seeds, 2.0, "reversible", guidance, {}
    )
    return replace(problem, **options)


def assess_at_start(problem):
    x_T = initial_noise(problem.seeds, (4, 8, 8)).to(problem.device)
    return assess(problem, (x_T, x_T.clone()), make_generators(problem.seeds, "optimize"), True)


def gradient_through(network, weights, x, cotangent):
    """Return the gradient of a linear network at x, and the one of float32."""
    results = []
    for function in (network, lambda x: x @ weights):
        leaf = x.clone().requires_grad_()
        results.append(torch.autograd.grad(function(leaf), leaf, cotangent)[0])
    return results


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_gradients_in_half_precision_do_not_underflow(dtype):
    generator = torch.Generator().manual_seed(0)
    weights = torch.randn(8, 3, generator=generator)
    x = torch.randn(2, 8, generator=generator)
    cotangent = torch.tensor([[1e-12], [1e3]]) * torch.randn(2, 3, generator=generator)

    def network(x):
        return in_half(lambda x: x @ weights.to(dtype), x, dtype)

    found, exact = gradient_through(network, weights, x, cotangent)
    assert ((found - exact).norm(dim=1) < 1e-2 * exact.norm(dim=1)).all()


def test_half_precision_underflows_without_the_scaling():
    weights = torch.ones(4, 1, dtype=torch.float16)
    leaf = torch.ones(1, 4, requires_grad=True)
    out = (leaf.to(torch.float16) @ weights).float()
    (gradient,) = torch.autograd.grad(out, leaf, torch.full((1, 1), 1e-12))
    assert gradient.abs().max() == 0


@pytest.fixture(scope="module")
def vae():
    torch.manual_seed(0)
    vae = AutoencoderKL(
        block_out_channels=(8, 16, 16),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        layers_per_block=2,
        latent_channels=4,
        norm_num_groups=4,
    )
    return vae.eval().requires_grad_(False)


def saved_bytes(function):
    """Return how many bytes a function's graph keeps, apart from leaves."""
    sizes = {}

    def pack(tensor):
        if not tensor.is_leaf:
            sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda kept: kept):
        function()
    return sum(sizes.values())


def test_sparing_decoding_gives_the_same_pictures_and_gradients_and_keeps_less(vae):
    z = torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    results = []
    for decode in (lambda z: decode_sparingly(vae, z), lambda z: vae.decode(z).sample):
        leaf = z.clone().requires_grad_()
        pictures = torch.cat([decode(one) for one in leaf.split(1)])
        gradient = torch.autograd.grad(pictures.square().sum(), leaf)[0]
        results.append((pictures.detach(), gradient))
    for found, expected in zip(*results, strict=True):
        assert torch.equal(found, expected)
    leaf = z.requires_grad_()
    sparing = saved_bytes(lambda: decode_sparingly(vae, leaf))
    assert sparing < 0.5 * saved_bytes(lambda: vae.decode(leaf).sample)
    assert torch.equal(decode_sparingly(vae, z), results[0][0])


def test_a_checkpointed_unet_gives_the_same_gradient_and_keeps_less():
    pipeline = make_pipeline("sd15")
    model = adapt_pipeline(pipeline)
    x = initial_noise([0], model.latent_shape)
    found = []
    for checkpointing in (False, True):
        tune(model, checkpointing, compiled=False)
        net = model.net(["a cat"], [""], 2.0)
        leaf = x.clone().requires_grad_()
        kept = saved_bytes(lambda net=net, leaf=leaf: net(leaf, 501))
        out = net(leaf, 501)
        found.append((kept, torch.autograd.grad(out.double().square().sum(), leaf)[0]))
    (plain, expected), (sparing, gradient) = found
    assert torch.equal(gradient, expected)
    assert sparing < 0.5 * plain


FULL = torch.OutOfMemoryError("out of memory")


def limited(problem, most, error=FULL):
    """Return the problem on a device that holds `most` samples at a time, and what was tried."""
    tried = []

    def decode(x_0):
        tried.append(len(x_0))
        if len(x_0) > most:
            raise error
        return problem.decode(x_0)

    return replace(problem, decode=decode), tried


def test_a_batch_that_does_not_fit_is_halved_for_good_and_draws_the_same_crops():
    seeds = list(range(5))
    released = []
    whole = make_problem(seeds, micro_batch=MicroBatch(5))
    halving = make_problem(seeds, micro_batch=MicroBatch(5, lambda: released.append(True)))
    halving, tried = limited(halving, most=2)
    expected, found = assess_at_start(whole), assess_at_start(halving)
    assert tried[:4] == [5, 3, 2, 2]
    assert halving.micro_batch.size == 2
    assert len(released) == 2
    torch.testing.assert_close(found.loss, expected.loss, rtol=1e-5, atol=1e-6)
    assert (found.gradient - expected.gradient).norm() < 1e-5 * expected.gradient.norm()
    tried.clear()
    assess_at_start(halving)
    assert tried == [2, 2, 1]


def test_a_library_that_finds_no_room_halves_a_batch_and_other_errors_do_not():
    whole = make_problem([0, 1], micro_batch=MicroBatch(2))
    words = "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"
    problem, tried = limited(whole, 1, RuntimeError(words))
    assess_at_start(problem)
    assert tried == [2, 1, 1]
    problem, tried = limited(replace(whole, micro_batch=MicroBatch(2)), 1, RuntimeError("shapes"))
    with pytest.raises(RuntimeError, match="shapes"):
        assess_at_start(problem)
    assert tried == [2]


def test_too_little_memory_that_ends_a_capture_is_still_too_little_memory():
    @contextmanager
    def capture():
        try:
            yield
        finally:
            raise RuntimeError("CUDA error: operation failed due to a previous error")

    def fail(error):
        with capture():
            raise error

    for error, expected in ((torch.OutOfMemoryError("no room"), True), (ValueError(), False)):
        with pytest.raises(RuntimeError) as caught:
            fail(error)
        assert lacks_memory(caught.value) is expected


def test_what_does_not_fit_gives_back_the_graphs_of_scorers_too():
    model, scorer = adapt_pipeline(make_pipeline("sd15")), Captures()
    table = SAMPLERS["bdia"](make_grid(model.schedule, 4))
    problem = pose_problem(model, table, ["a cat"] * 2, [""] * 2, [0, 1], 2.0, "auto", {}, {})
    model.captures.known["unet"] = scorer.known["visual"] = None
    problem.micro_batch.halve(2)
    assert not model.captures.known
    assert not scorer.known


def test_one_by_one_gives_what_all_together_give():
    seeds = [0, 1, 2]
    guidance = {
        "colourfulness": Guidance(ignore_prompts(colourfulness), n_crops=4),
        "brightness": Guidance(ignore_prompts(lambda x: x.flatten(1).mean(1)), weight=3.0),
    }
    together = make_problem(seeds, guidance=guidance, micro_batch=MicroBatch(3))
    alone, decoded = limited(replace(together, one_by_one=True), most=1)
    x_T = initial_noise(seeds, (4, 8, 8))
    found, expected = (
        assess(problem, (x_T, x_T.clone()), make_generators(seeds, "x"), True, balance=True)
        for problem in (alone, together)
    )
    assert decoded == [1, 1, 1]
    torch.testing.assert_close(found.loss, expected.loss, rtol=1e-5, atol=1e-6)
    assert (found.gradient - expected.gradient).norm() < 1e-5 * expected.gradient.norm()
    assert found.gradient.norm() > 0
    torch.testing.assert_close(found.scales, expected.scales, rtol=1e-4, atol=1e-4)
    for name, share in expected.shares.items():
        torch.testing.assert_close(found.shares[name], share, rtol=1e-4, atol=1e-4)
    levels = (found.images.int() - expected.images.int()).abs()
    assert levels.max() <= 1  # where what is rounded differently lies between two levels
    assert levels.float().mean() < 1e-4


class Kept:
    """A tensor that a graph keeps."""

    def __init__(self, tensor):
        self.tensor = tensor


def test_one_by_one_keeps_nothing_of_the_pictures_before():
    problem = make_problem([0, 1, 2], one_by_one=True, micro_batch=MicroBatch(3))
    alive, held, decode = WeakSet(), [], problem.decode

    def keep(tensor):
        kept = Kept(tensor)
        alive.add(kept)
        return kept

    def note(x_0):
        held.append(len(alive))
        return decode(x_0)

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda kept: kept.tensor):
        assess_at_start(replace(problem, decode=note))
    assert held == [0, 0, 0]


def test_large_pictures_are_differentiated_one_by_one(monkeypatch):
    assert not make_problem([0, 1]).one_by_one
    monkeypatch.setattr(latent_model, "SMALL_PICTURE", 0)
    assert make_problem([0, 1]).one_by_one


def test_attention_of_one_product_computes_the_same():
    torch.manual_seed(0)
    attention = torch.nn.MultiheadAttention(12, 3, batch_first=True).eval()
    attention.in_proj_bias.data.normal_()
    x = torch.randn(2, 5, 12)
    for mask in (None, torch.full((5, 5), -torch.inf).triu(1)):
        expected = attention(x, x, x, need_weights=False, attn_mask=mask)[0]
        attention.__class__ = SelfAttention
        found, weights = attention(x, x, x, need_weights=False, attn_mask=mask)
        attention.__class__ = torch.nn.MultiheadAttention
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
        assert weights is None


def test_a_resnet_without_its_batch_norms_computes_the_same():
    torch.manual_seed(0)
    resnet = ModifiedResNet([1, 2, 1, 1], 6, heads=4, image_size=32, width=8)
    for layer in resnet.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):
            for values in (layer.weight.data, layer.bias.data, layer.running_mean):
                values.normal_()
            layer.running_var.uniform_(0.5, 2)
    x = torch.randn(3, 3, 32, 32)
    with torch.no_grad():
        expected = resnet.eval()(x)
        fold_norms(resnet)
        torch.testing.assert_close(resnet(x), expected, rtol=1e-4, atol=1e-5)
    assert not any(isinstance(layer, torch.nn.BatchNorm2d) for layer in resnet.modules())


@needs_weights
@pytest.mark.parametrize(
    ("name", "gradient_alike"),
    # Of the ResNet 0.9990 to 0.9997 over eight such batches, with either weights that it has had.
    [("clip_a", 0.9995), ("clip_c", 0.999)],  # a transformer, a ResNet
)
def test_a_clip_in_half_precision_embeds_alike_and_keeps_less(monkeypatch, name, gradient_alike):
    model = load_model("emoji", None, torch.device("cpu"), "float32")
    monkeypatch.setattr(clips, "fold_norms", lambda visual: None)  # as a large one is loaded
    plain = model.load_own_clip(name)
    spared = model.load_own_clip(name)
    spared.spare()
    x = torch.rand(4, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    x.requires_grad_()
    found = []
    for clip in (plain, spared):
        kept = saved_bytes(lambda clip=clip: clip.embed_images(x))
        embedding = clip.embed_images(x)
        found.append((embedding, torch.autograd.grad(embedding[:, :5].sum(), x)[0], kept))
    pairs = zip(found[0][:2], found[1][:2], (0.9995, gradient_alike), strict=True)
    for one, other, alike in pairs:
        assert torch.cosine_similarity(one.flatten(), other.flatten(), 0) > alike
    assert found[1][2] < 0.5 * found[0][2]


@needs_weights
def test_a_batch_that_did_not_fit_is_not_tried_again_by_the_next(monkeypatch, tmp_path):
    tried, decode = [], LatentModel.decode

    def decode_one(model, x_0):
        tried.append(len(x_0))
        if len(x_0) > 1:
            raise FULL
        return decode(model, x_0)

    monkeypatch.setattr(LatentModel, "decode", decode_one)
    monkeypatch.setattr(problem_module, "count_together", lambda model, n_samples: n_samples)
    words = ["run", "prompt=x", "guidance=colourfulness", "evaluate=[]", "device=cpu"]
    words += ["sampler.n_steps=1", "optimizer.n_iters=1", "n_seeds=5", "batch_size=2"]
    assert cli.main([*words, f"output_dir={tmp_path / 'run'}"]) == 0
    assert tried == [2] + [1] * 10


def test_a_compiled_network_is_replayed_where_nothing_is_guided_too(monkeypatch):
    """Without a graph it would round otherwise than in the run that found the noise."""
    asked = []
    monkeypatch.setattr(LatentModel, "net", lambda self, *words: asked.append(words[3]))
    model = adapt_pipeline(make_pipeline("sd15"))
    table = SAMPLERS["bdia"](make_grid(model.schedule, 4))
    for compiled in (False, True):
        pose_problem(model, table, ["x"], [""], [0], 2.0, "auto", {}, {}, compiled)
    assert asked == [False, True]


@pytest.mark.parametrize(
    ("memory", "limit", "at_the_end", "expected"),
    [
        ("reversible", 2**33, True, (True, False)),
        ("full", 2**33, True, (True, True)),
        ("full", 0, True, (False, False)),
        ("full", 0, False, (True, False)),
    ],
)
def test_one_graph_serves_gradients_on_the_way_and_one_a_timestep_those_at_the_end(
    monkeypatch, memory, limit, at_the_end, expected
):
    asked = []
    monkeypatch.setattr(LatentModel, "net", lambda self, *words: asked.append(words[3:]))
    monkeypatch.setattr(problem_module, "SMALL_BATCH", limit)
    model = adapt_pipeline(make_pipeline("sd15"))
    vars(model)["bytes_per_call"] = 1.0
    table = SAMPLERS["bdia"](make_grid(model.schedule, 4))
    guidance = {"colourfulness": Guidance(ignore_prompts(colourfulness))}
    words = ["x"], [""], [0], 2.0, memory, guidance, {}, False, at_the_end
    pose_problem(model, table, *words)
    assert asked == [expected]


def test_each_timestep_may_have_a_graph_of_its_own():
    net, asked = make_problem().net, []

    def capture(key, function, *inputs):
        asked.append(key)
        return function(*inputs)

    x = torch.zeros(1, 4, 8, 8)
    for apart in (False, True):
        for t in (900, 100):
            replace(net, captures=capture, apart=apart)(x, t)
    assert len(set(asked[:2])) == 1
    assert len(set(asked[2:])) == 2


class Drawn:
    """A captured function without a GPU: like a graph it holds the last evaluation alone."""

    def __init__(self, function):
        self.function, self.n_replays = function, 0

    def evaluate(self, x, *others):
        self.n_replays += 1
        with torch.enable_grad():
            self.x = x.detach().requires_grad_()
            self.out = self.function(self.x, *others)
        return self.out.detach()

    def pull_back(self, cotangent):
        return torch.autograd.grad(self.out, self.x, cotangent)[0]


@pytest.mark.parametrize(("apart", "n_evaluations"), [(True, 4), (False, 7)])
def test_a_whole_graph_of_replays_is_evaluated_once_where_timesteps_are_apart(apart, n_evaluations):
    problem, drawn = make_problem(memory="full"), {}

    def capture(key, function, *inputs):
        graph = drawn.setdefault(key, Drawn(function))
        return Replay.apply(inputs[0], graph, inputs[1:])

    replayed = replace(problem, net=replace(problem.net, captures=capture, apart=apart))
    found, expected = assess_at_start(replayed), assess_at_start(problem)
    assert torch.equal(found.images, expected.images)
    assert (found.gradient - expected.gradient).norm() < 1e-5 * expected.gradient.norm()
    assert sum(graph.n_replays for graph in drawn.values()) == n_evaluations


def test_a_compiled_network_does_not_keep_its_whole_graph(capsys):
    words = ["run", "prompt=x", "guidance=colourfulness", "compile=true", "memory=full"]
    assert cli.main(words) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "compile=true: memory=full" in line


def test_one_sample_that_does_not_fit_is_an_error():
    problem, tried = limited(make_problem([0, 1], micro_batch=MicroBatch(2)), most=0)
    with pytest.raises(torch.OutOfMemoryError):
        assess_at_start(problem)
    assert tried == [2, 1]


def test_too_little_memory_says_what_to_change(monkeypatch, capsys):
    def dispatch(argv):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    monkeypatch.setattr(cli, "dispatch", dispatch)
    assert cli.main(["run"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "memory.unet_checkpointing=true" in line


@pytest.mark.parametrize("captured", [False, True])
def test_an_operation_without_a_fixed_order_says_what_to_change(monkeypatch, capsys, captured):
    def dispatch(argv):
        try:
            raise RuntimeError(
                "adaptive_avg_pool2d_backward_cuda does not have a deterministic implementation, "
                "but you set 'torch.use_deterministic_algorithms(True)'. You can turn off"
            )
        finally:
            if captured:
                raise RuntimeError("CUDA error: operation failed")

    monkeypatch.setattr(cli, "dispatch", dispatch)
    assert cli.main(["run"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("doodl: deterministic=true: adaptive_avg_pool2d_backward_cuda has no")


@pytest.fixture
def determinism_ends():
    """Take back what a run asked of all that comes after it in this process."""
    yield
    set_determinism(False)


@gpu
@pytest.mark.gpu
@needs_weights
@pytest.mark.parametrize("dtype", ["float32", "tf32"])
@pytest.mark.usefixtures("determinism_ends")
def test_on_a_gpu_the_same_command_gives_the_same_digits(tmp_path, dtype):
    found = []
    for name in ("a", "b"):
        words = ["prompt=an owl", "n_seeds=4", "guidance=clip_text", "optimizer.n_iters=6"]
        settings = [f"dtype={dtype}", "deterministic=true", f"output_dir={tmp_path / name}"]
        assert cli.main(["run", *words, *settings]) == 0
        found.append((tmp_path / name / "history.jsonl").read_text().splitlines())
    for lines in zip(*found, strict=True):
        first, second = ({**json.loads(line), "seconds": None} for line in lines)
        assert first == second


@gpu
@pytest.mark.gpu
def test_a_captured_network_evaluates_as_the_plain_one_bit_for_bit():
    torch.manual_seed(0)
    unet = make_unet(False).cuda().eval().requires_grad_(False)
    context = torch.randn(1, 7, 32, device="cuda")
    t = torch.tensor(501, device="cuda")

    def function(x, t, context):
        return unet(x, t, encoder_hidden_states=context).sample

    captured = Captured(function, (torch.zeros(1, 4, 8, 8, device="cuda"), t, context))
    for seed in range(3):
        torch.manual_seed(seed)
        x = torch.randn(1, 4, 8, 8, device="cuda")
        plain, replayed = x.clone().requires_grad_(), x.clone().requires_grad_()
        out, expected = captured(replayed, t, context), function(plain, t, context)
        assert torch.equal(out, expected)
        with torch.no_grad():
            assert torch.equal(captured(x, t, context), expected)
        out = captured(replayed, t, context)
        gradient = torch.autograd.grad(out.square().sum(), replayed)[0]
        torch.testing.assert_close(
            gradient, torch.autograd.grad(expected.square().sum(), plain)[0], rtol=1e-4, atol=1e-6
        )


@gpu
@pytest.mark.gpu
def test_a_captured_network_has_the_gradients_of_all_its_evaluations():
    captured = Captured(lambda x: x.square(), (torch.ones(2, device="cuda"),))
    x = torch.full((2,), 3.0, device="cuda", requires_grad=True)
    first, second = captured(x), captured(2 * x)
    assert torch.equal(torch.autograd.grad(first.sum(), x)[0], 2 * x)
    assert torch.equal(torch.autograd.grad(second.sum(), x)[0], 8 * x)


@gpu
@pytest.mark.gpu
def test_decoders_and_clips_replayed_from_graphs_give_the_same_pictures_and_gradients(monkeypatch):
    monkeypatch.setattr(latent_model, "SMALL_PICTURE", 0)
    model = adapt_pipeline(make_pipeline("sd15").to("cuda", torch.float16))
    torch.manual_seed(0)
    vit = open_clip.create_model("ViT-B-32", device="cuda")
    clip = Clip(vit, None, {}).cuda()
    clip.spare()
    results = []
    for captured in (True, False):
        if not captured:
            monkeypatch.setattr(latent_model, "MEDIUM_PICTURE", 0)
            clip.captured = False
        z = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0)).cuda()
        z.requires_grad_()
        pictures = model.decode(z)
        embedding = clip.embed_images(pictures)
        results.append((pictures, embedding, torch.autograd.grad(embedding[:, :5].sum(), z)[0]))
    assert len(model.captures.known) == len(clip.captures.known) == 1
    (pictures, embedding, gradient), expected = results
    assert torch.equal(pictures, expected[0])
    assert torch.equal(embedding, expected[1])
    assert (gradient - expected[2]).norm() < 1e-2 * expected[2].norm()
    with torch.no_grad():
        assert torch.equal(model.decode(z), pictures)


@gpu
@pytest.mark.gpu
def test_a_batch_that_does_not_fit_on_a_gpu_is_halved(monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    whole = make_problem([0, 1, 2, 3], device="cuda")

    def decode(x_0):
        if len(x_0) > 2:
            torch.empty(2**50, dtype=torch.uint8, device="cuda")
        return whole.decode(x_0)

    halving = replace(whole, decode=decode, micro_batch=MicroBatch(4, whole.micro_batch.release))
    found, expected = assess_at_start(halving), assess_at_start(whole)
    assert halving.micro_batch.size == 2
    assert (found.gradient - expected.gradient).norm() < 1e-5 * expected.gradient.norm()


@gpu
@pytest.mark.gpu
def test_the_state_may_be_on_the_cpu_while_the_networks_are_on_the_gpu(monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    there = assess_at_start(make_problem([0, 1], device="cuda"))
    here = assess_at_start(replace(make_problem([0, 1], device="cuda"), device=torch.device("cpu")))
    difference = here.gradient - there.gradient.cpu()
    assert difference.norm() < 1e-5 * here.gradient.norm()


@gpu
@pytest.mark.gpu
def test_a_capture_that_does_not_fit_is_too_little_memory_and_leaves_the_gpu_usable():
    tried = []

    def function(x):
        tried.append(x)
        if len(tried) == N_WARM_UP + 1:
            torch.empty(2**50, dtype=torch.uint8, device="cuda")
        return x.square()

    x = torch.ones(2, device="cuda", requires_grad=True)
    with pytest.raises(RuntimeError) as caught:
        Captured(function, (x,))
    assert lacks_memory(caught.value)
    (gradient,) = torch.autograd.grad(Captured(lambda x: x.square(), (x,))(3 * x).sum(), x)
    assert gradient.tolist() == [18.0, 18.0]


@gpu
@pytest.mark.gpu
@pytest.mark.parametrize(("memory", "n_graphs"), [("reversible", 1), ("full", 4)])
def test_graphs_give_the_gradient_of_plain_evaluations(monkeypatch, memory, n_graphs):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    problem = make_problem([0, 1], device="cuda", memory=memory)
    problem = replace(problem, net=replace(problem.net, apart=memory == "full"))
    plain = replace(problem, net=replace(problem.net, captures=None))
    found, expected = assess_at_start(problem), assess_at_start(plain)
    assert (found.gradient - expected.gradient).norm() < 1e-5 * expected.gradient.norm()
    assert len(problem.net.captures.known) == n_graphs
