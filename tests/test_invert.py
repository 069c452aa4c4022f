"""Real pictures: inverted exactly, rendered again, edited; runs that start from saved latents."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from doodl_cli.cli import main
from doodl_cli.commands.application import composer, resolve
from doodl_cli.config import read_config
from doodl_cli.sampling import SAMPLERS, invert, make_grid, pair_at_x_0, solve
from doodl_cli.sampling.bdia import UNDAMPED, find_gamma
from tests.problems import gaussian_net, make_noise, make_schedule, make_smooth_net
from tests.runs import needs_weights, read_metadata

ROOT = Path(__file__).parents[1]
INVERTIBLE = ("bdia", "edict", "obelm")
GUIDED = ["run", "guidance=aesthetic", "device=cpu"]


@pytest.fixture(autouse=True)
def photo(folder):
    draw(Path("photo, (a).png"))


def draw(path, size=(150, 100)):
    """Draw a picture with edges, a slope and two colours, larger than the model's."""
    x, y = np.meshgrid(np.linspace(-1, 1, size[0]), np.linspace(-1, 1, size[1]))
    pixels = np.stack([200 + 40 * x, 120 + 60 * y, 90 + 0 * x], -1)
    pixels[x**2 + y**2 < 0.4] = (250, 210, 60)
    Image.fromarray(pixels.astype(np.uint8)).save(path)


def pictures(run, name="initial"):
    return [
        np.asarray(Image.open(path)) for path in sorted(Path(run).glob(f"samples/*/{name}.png"))
    ]


@pytest.mark.parametrize("name", INVERTIBLE)
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("end", [None, 1.0])
@pytest.mark.parametrize("n_steps", [1, 2, 5, 20])
def test_a_picture_comes_back_from_where_its_inversion_arrives(name, prediction, end, n_steps):
    grid = make_grid(make_schedule(prediction, "leading", end), n_steps)
    table, net, x_0 = SAMPLERS[name](grid), make_smooth_net(), make_noise()
    pair = pair_at_x_0(table, grid, net, x_0)
    for slot in table.x_0_slots:
        assert torch.equal(pair[slot], x_0)
    again = solve(table, net, invert(table, net, pair))
    for slot in (0, 1):
        torch.testing.assert_close(again[slot], pair[slot], rtol=0, atol=1e-10)


@pytest.mark.parametrize("name", INVERTIBLE)
def test_the_inversion_of_a_likely_picture_is_likely_noise(name):
    """The flow of N(0, s^2) scales x by a known number, backwards as forwards."""
    std, schedule = 0.7, make_schedule()
    grid = make_grid(schedule, 50)
    undamped = {"gamma": find_gamma(50, UNDAMPED)} if name == "bdia" else {}
    table, net = SAMPLERS[name](grid, **undamped), gaussian_net(schedule, std)
    x_0 = std * make_noise()
    start = (grid.alpha[0] ** 2 * std**2 + grid.sigma[0] ** 2) ** 0.5
    for latent in invert(table, net, pair_at_x_0(table, grid, net, x_0)):
        torch.testing.assert_close(latent, x_0 * start / std, rtol=0.05, atol=0)


def check_inversion(run):
    """Check that an inverted picture is as good as the auto-encoder allows."""
    metadata = read_metadata(run)
    init = metadata["init"]
    assert metadata["status"] == "done"
    assert init["round_trip_psnr"] == pytest.approx(init["autoencoder_psnr"], abs=0.1)
    assert init["autoencoder_psnr"] > 20
    assert metadata["round_trip_error"] < 1e-6


@needs_weights
@pytest.mark.parametrize("name", INVERTIBLE)
def test_a_real_picture_renders_again_as_the_autoencoder_alone_shows_it(name, folder, capsys):
    words = [f"sampler={name}", "sampler.n_steps=10", "device=cpu", "cfg_scale=3", "prompt=a sun"]
    assert main(["invert", "image=photo, (a).png", *words, "output_dir=there"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == str(folder / "there")
    assert lines[-2].startswith("inverted and rendered")
    assert lines[-2].endswith("dB")
    check_inversion("there")
    metadata = read_metadata("there")
    assert metadata["init"]["name"] == "image"
    assert metadata["init"]["path"] == str(folder / "photo, (a).png")
    assert len(metadata["init"]["sha256"]) == 64
    files = {path.name for path in (folder / "there/samples/000").iterdir()}
    assert files == {
        "original.png", "autoencoded.png", "latents.safetensors", "initial.png", "best.png",
        "final.png",
    }  # fmt: skip
    difference = pictures("there", "autoencoded")[0].astype(int) - pictures("there")[0]
    assert abs(difference).max() <= 1
    pair = load_file("there/samples/000/latents.safetensors")["x_T_best"]
    assert pair.dtype == torch.float64
    assert not torch.equal(pair[0], pair[1])


@needs_weights
def test_an_inverted_picture_renders_again_bit_for_bit_and_starts_a_run(folder, capsys):
    words = ["sampler.n_steps=4", "device=cpu"]
    assert main(["invert", "image=photo, (a).png", *words, "prompt=a sun", "output_dir=a"]) == 0
    assert read_metadata("a")["sampler"]["growth"] < 3  # a damped path would end far from noise
    (folder / "photo, (a).png").unlink()  # the latents are enough
    assert main(["sample", "run=a", "output_dir=b"]) == 0
    for name in ("initial", "best", "final"):
        there = folder / f"a/samples/000/{name}.png"
        assert (folder / "b/samples/000/initial.png").read_bytes() == there.read_bytes()
    edit = [*GUIDED, *words, "optimizer.n_iters=2", "init=latents", "init.path=a", "seed=[4,5]"]
    capsys.readouterr()
    assert main([*edit, "output_dir=c"]) == 0
    assert "init.path=" not in capsys.readouterr().err
    for picture in pictures("c"):
        assert (picture == pictures("a")[0]).all()
    metadata = read_metadata("c")
    assert metadata["prompts"] == ["a sun"] * 2
    assert metadata["init"] == {"name": "latents", "path": str(folder / "a"), "which": "best"}
    scores = metadata["samples"][0]
    assert scores["best"]["aesthetic"] > scores["initial"]["aesthetic"]
    assert main(["sample", "run=c", "which=best", "output_dir=d"]) == 0
    assert (pictures("d")[1] == pictures("c", "best")[1]).all()


@needs_weights
def test_an_edit_starts_at_the_picture_and_raises_its_score(folder):
    words = ["init=image", "init.path=photo, (a).png", "sampler.n_steps=4", "optimizer.n_iters=3"]
    assert main([*GUIDED, *words, "optimizer.perturb=1e-3", "seed=[1,2]", "output_dir=a"]) == 0
    metadata = read_metadata("a")
    assert metadata["init"]["name"] == "image"
    assert metadata["prompts"] == ["", ""]
    first, second = pictures("a")
    assert (first == second).all()
    first, second = pictures("a", "final")
    assert (first != second).any()  # each with its own perturbation
    for sample in metadata["samples"]:
        assert sample["best"]["aesthetic"] > sample["initial"]["aesthetic"]
    assert main(["invert", "image=photo, (a).png", "sampler.n_steps=4", "output_dir=b"]) == 0
    assert (pictures("b")[0] == pictures("a")[0]).all()
    assert main(["sample", "run=a", "which=best", "output_dir=c"]) == 0
    assert (pictures("c")[0] == pictures("a", "best")[0]).all()


@needs_weights
def test_a_run_goes_on_from_the_chosen_noise_of_another(folder, capsys):
    words = ["prompt=a sun", "sampler.n_steps=3", "optimizer.n_iters=2", "seed=[7,8]"]
    assert main([*GUIDED, *words, "output_dir=a"]) == 0
    for which in ("initial", "final"):
        start = ["init=latents", "init.path=a", f"init.which={which}", f"output_dir={which}"]
        assert main([*GUIDED, *words, *start]) == 0
        for ours, theirs in zip(pictures(which), pictures("a", which), strict=True):
            assert (ours == theirs).all()
    capsys.readouterr()
    assert main([*GUIDED, "init=latents", "init.path=a", "output_dir=b"]) == 2
    assert "seed=0: init.path=a holds 2 samples; must be as many, as in seed=[7, 8]" in (
        capsys.readouterr().err
    )
    other = [*words[1:], "sampler=edict", "cfg_scale=3", "init=latents", "init.path=a"]
    assert main([*GUIDED, *other, "output_dir=b"]) == 0
    assert "other sampler and cfg_scale than there" in capsys.readouterr().err


@needs_weights
def test_a_sample_of_an_image_is_its_inversion_rendered(folder):
    words = ["init=image", "init.path=photo, (a).png", "sampler.n_steps=3", "device=cpu"]
    assert main(["sample", *words, "output_dir=a"]) == 0
    assert main(["invert", "image=photo, (a).png", *words[2:], "output_dir=b"]) == 0
    assert (pictures("a")[0] == pictures("b")[0]).all()


def test_an_edit_keeps_the_pair_untied_unless_the_user_says_otherwise():
    def optimizer(*words):
        with composer(None) as compose:
            config = read_config(resolve(compose("run", [*words, "init.path=x"])))
        return config.optimizer

    edit = optimizer("init=image")
    assert (edit.tied, edit.renormalize, edit.perturb) == (False, False, 0.0)
    assert optimizer("init=image", "experiment=paper").perturb == 0.0
    own = optimizer("init=image", "optimizer.tied=true", "optimizer.perturb=1e-4")
    assert (own.tied, own.renormalize, own.perturb) == (True, False, 1e-4)
    assert optimizer("init=latents").tied is False


EDIT = [*GUIDED, "prompt=x"]
BAD_INPUT = [
    (["invert"], "image: missing; must be a PNG, JPEG or WebP picture"),
    (["invert", "image="], "image: missing"),
    (["invert", "image=nowhere.png"], "image=nowhere.png: no such file; must be a PNG, JPEG"),
    (["invert", "image=empty.png"], "image=empty.png: is empty"),
    (["invert", "image=photo.png", "sampler=ddim"], "sampler=ddim cannot be inverted; must be"),
    (["invert", "image=photo.png", "seed=[0,1]"], "seed=[0, 1]: must be one number"),
    (["invert", "image=photo.png", "init=noise"], "init.path=photo.png: needs init=image"),
    (["invert", "image=photo.png", "init.path=x"], "the picture is given by image=photo.png"),
    (["invert", "imge=photo.png"], "did you mean image?"),
    ([*EDIT, "init=image"], "init.path: missing; must be a PNG, JPEG or WebP picture"),
    ([*EDIT, "init=image", "init.path="], "init.path: missing"),
    ([*EDIT, "init=image", "init.path=nowhere.png"], "init.path=nowhere.png: no such file"),
    ([*EDIT, "init=image", "init.path=empty.png"], "init.path=empty.png: is empty"),
    ([*EDIT, "init=image", "init.path=photo.png", "sampler=ddim"], "cannot be inverted"),
    ([*EDIT, "init.path=photo.png"], "init.path=photo.png: needs init=image or init=latents"),
    ([*EDIT, "init=image", "init.path=photo.png", "init.which=best"], "needs init=latents"),
    ([*EDIT, "init=picture"], "init=picture: must be one of image, latents, noise"),
    ([*EDIT, "init=latents"], "init.path: missing; must be a run directory"),
    ([*EDIT, "init=latents", "init.path=nowhere"], "init.path=nowhere: must be a run directory"),
    ([*EDIT, "init=latents", "init.path=x", "init.which=worst"], "initial, best, final"),
    ([*EDIT, "evaluate=beauty"], "evaluate=beauty: must be one of aesthetic, classifier"),
    (
        [*EDIT, "+evaluate.beauty.x=1"],
        "evaluate.beauty: unknown; must be one of clip_text_b, aesthetic",
    ),
    ([*EDIT, "optimizer.stop_on=beauty"], "must be clip_text_b, colourfulness, or null"),
    ([*EDIT, "optimizer.stop_on=symmetry", "evaluate=[]"], "optimizer.stop_on=symmetry: must be"),
    ([*EDIT, "optimizer.patience=0"], "optimizer.patience=0: must be a whole number from 1"),
    ([*EDIT, "optimizer.chi_norm=-1"], "optimizer.chi_norm=-1: must be a number from 0"),
    ([*EDIT, "optimizer.kl_prior=nan"], "optimizer.kl_prior=nan: must be a number from 0"),
]


@pytest.mark.parametrize(("words", "line"), BAD_INPUT, ids=[" ".join(w) for w, _ in BAD_INPUT])
def test_bad_input_exits_2_with_one_line_and_writes_nothing(words, line, folder, capsys):
    draw(Path("photo.png"))
    Path("empty.png").touch()
    before = sorted(folder.iterdir())
    assert main(words) == 2
    out, err = capsys.readouterr()
    assert line in err
    assert err.startswith("doodl: ")
    assert err.count("\n") == 1
    assert out == ""
    assert sorted(folder.iterdir()) == before
