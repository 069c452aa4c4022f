"""Every scorer against its own library, on tiny checkpoints in the real formats, offline."""

import shutil
import sys
import urllib.error
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

from doodl_cli.config import (
    Aesthetic,
    Classifier,
    ClipChoice,
    ClipImage,
    ClipText,
    Custom,
    Head,
    Preference,
)
from doodl_cli.errors import UserError
from doodl_cli.guidance import preference, spherical_distance
from doodl_cli.guidance.aesthetic import build_aesthetic, read_layers
from doodl_cli.guidance.classifier import build_classifier
from doodl_cli.guidance.clip import build_clip_image, build_clip_text
from doodl_cli.guidance.custom import build_custom
from doodl_cli.guidance.preference import build_hps, build_pickscore
from doodl_cli.guidance.references import find_references
from doodl_cli.models.classifier import find_class, load_classifier
from doodl_cli.models.clip import load_clip, resize
from doodl_cli.models.locate import hash_file
from doodl_cli.optimize.noise import make_generators
from tests import scorers
from tests.scorers import LABELS, make_images, model

PROMPTS = ["a cat", "a dog"]
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("scorers")


@pytest.fixture(scope="module")
def clips(folder):
    """Two open_clip folders with different weights."""
    return [scorers.save_open_clip(folder / f"clip_{seed}", seed) for seed in (0, 1)]


@pytest.fixture(scope="module")
def vit(folder):
    return scorers.save_vit(folder / "vit")


@pytest.fixture(scope="module")
def timm_folder(folder):
    return scorers.save_timm(folder / "timm")


@pytest.fixture(scope="module")
def pickscore(folder):
    return scorers.save_pickscore(folder / "pickscore")


@pytest.fixture(scope="module")
def pictures(folder):
    """Two reference pictures; the second is twice as wide as it is high."""
    paths = [folder / "first.png", folder / "second.png"]
    for path, size in zip(paths, [(48, 48), (96, 48)], strict=True):
        pixels = np.random.default_rng(size[0]).integers(0, 256, (*size[::-1], 3), np.uint8)
        Image.fromarray(pixels).save(path)
    return [str(path) for path in paths]


def as_pil(images):
    """Return pictures as Pillow's, rounded to 8 bits."""
    pixels = ((images + 1) * 127.5).round().to(torch.uint8)
    return [Image.fromarray(picture.permute(1, 2, 0).numpy()) for picture in pixels]


def as_8_bit(images):
    return ((images + 1) * 127.5).round() / 127.5 - 1


def check_gradient(guidance, prompts=PROMPTS):
    """Check that each sample's loss has a gradient at its own picture, and at no other."""
    images = make_images().requires_grad_()
    loss = guidance.loss(images, prompts, make_generators([0, 1], "test"))
    assert loss.shape == (2,)
    (gradient,) = torch.autograd.grad(loss[0], images)
    assert gradient[0].abs().max() > 0
    assert gradient[1].abs().max() == 0


def text_settings(clips=None, n_crops=0):
    choices = clips and [ClipChoice(name, None, weight) for name, weight in clips]
    return ClipText(weight=1.0, n_crops=n_crops, reduce="min", clips=choices)


def image_settings(images, clips):
    choices = [ClipChoice(name) for name in clips]
    return ClipImage(weight=1.0, n_crops=0, reduce="mean", clips=choices, images=images)


def classifier_settings(target, source, name=None, path=None):
    return Classifier(weight=1.0, n_crops=0, target=target, source=source, name=name, path=path)


def aesthetic_settings(*heads, target=None):
    return Aesthetic(weight=1.0, n_crops=0, target=target, heads=list(heads))


def test_the_text_score_is_the_cosine_that_open_clip_computes(clips):
    import open_clip

    network, _, _ = open_clip.create_model_and_transforms(clips[0])
    images = make_images(size=32)
    with torch.no_grad():
        found = build_clip_text(text_settings([(clips[0], 1.0)]), model).score(images, PROMPTS)
        pixels = ((images + 1) / 2 - 0.4) / 0.3
        pictures = network.eval().encode_image(pixels, normalize=True)
        texts = network.encode_text(open_clip.get_tokenizer(clips[0])(PROMPTS), normalize=True)
    torch.testing.assert_close(found, (pictures * texts).sum(1))


def test_several_clips_weigh_their_distances(clips):
    images = make_images()
    pairs = [(clips[0], 1.5), (clips[1], 0.5)]
    alone = [build_clip_text(text_settings([(name, 1.0)]), model) for name, _ in pairs]
    both = build_clip_text(text_settings(pairs), model)
    first, second = (spherical_distance(one.score(images, PROMPTS)) for one in alone)
    found = both.loss_of(both.score(images, PROMPTS))
    torch.testing.assert_close(found, 0.75 * first + 0.25 * second)
    check_gradient(both)
    check_gradient(build_clip_text(text_settings(pairs, n_crops=3), model))
    assert [clip["name"] for clip in both.facts["clips"]] == clips
    assert all(len(clip["sha256"]) == 64 for clip in both.facts["clips"])


def test_a_clip_by_name_takes_its_weights_from_a_file(clips, monkeypatch):
    file = f"{clips[0].removeprefix('local-dir:')}/open_clip_model.safetensors"
    register(monkeypatch, "tiny")
    images = make_images()
    named, local = load_clip("tiny", file, CPU, "k"), load_clip(clips[0], None, CPU, "k")
    assert named.facts["sha256"] == local.facts["sha256"] == hash_file(Path(file))
    assert not torch.equal(named.embed_images(images), local.embed_images(images))  # OpenAI's mean
    assert torch.equal(named.embed_texts(PROMPTS), local.embed_texts(PROMPTS))


@pytest.mark.parametrize(
    ("name", "pretrained", "line"),
    [
        ("ViT-B-33", "openai", "did you mean ViT-B-32"),
        ("ViT-B-32", "opena", "pretrained must be openai, "),
        ("ViT-B-32", None, "pretrained must be openai, "),
        ("local-dir:nowhere", None, "cannot be loaded"),
        ("local-dir:nowhere", "openai", "brings its own weights"),
    ],
)
def test_a_clip_that_there_is_not_is_said_with_what_there_is(name, pretrained, line, capfd):
    with pytest.raises(UserError, match=line) as error:
        load_clip(name, pretrained, CPU, "guidance.clip_text.clips=x")
    assert str(error.value).startswith("guidance.clip_text.clips=x: ")
    assert capfd.readouterr() == ("", "")


def test_a_clip_without_its_weights_is_not_taken_at_random(clips, tmp_path):
    shutil.copy(f"{clips[0].removeprefix('local-dir:')}/open_clip_config.json", tmp_path)
    with pytest.raises(UserError, match="cannot be loaded"):
        load_clip(f"local-dir:{tmp_path}", None, CPU, "k")


def test_the_image_score_is_the_cosine_to_the_unit_mean_of_the_references(clips, pictures):
    guidance = build_clip_image(image_settings(pictures, clips[:1]), model)
    clip = load_clip(clips[0], None, CPU, "k")
    squares = [Image.open(pictures[0]), Image.open(pictures[1]).crop((24, 0, 72, 48))]
    references = [torch.from_numpy(np.array(x)).permute(2, 0, 1) / 127.5 - 1 for x in squares]
    mean = F.normalize(clip.embed_images(torch.stack(references)).mean(0), dim=0)
    expected = clip.embed_images(make_images()) @ mean
    torch.testing.assert_close(guidance.score(make_images(), PROMPTS), expected)
    assert guidance.facts["images"] == {path: hash_file(Path(path)) for path in pictures}
    check_gradient(guidance)


def test_a_picture_is_nearest_to_itself(clips, pictures):
    guidance = build_clip_image(image_settings(pictures[:1], clips), model)
    pixels = torch.from_numpy(np.array(Image.open(pictures[0]))).permute(2, 0, 1)
    itself = pixels[None] / 127.5 - 1
    assert guidance.score(itself, [""]).item() == pytest.approx(1, abs=1e-5)
    assert guidance.score(make_images(), PROMPTS).max() < 0.999
    itself.requires_grad_()
    loss = guidance.loss(itself, [""], []).sum()
    assert torch.autograd.grad(loss, itself)[0].isfinite().all()


def test_references_are_paths_and_patterns_in_order_none_twice(tmp_path, monkeypatch):
    names = ["a1.png", "a2.png", "b [1].png"]
    for name in names:
        (tmp_path / name).touch()
    monkeypatch.chdir(tmp_path)
    paths = [tmp_path / name for name in names]
    assert find_references("a1.png") == paths[:1]
    assert find_references("b [1].png") == paths[2:]
    assert find_references(["b [1].png", "a?.png", "a1.png"]) == [paths[2], paths[0], paths[1]]
    with pytest.raises(UserError, match=r"images=c\*.png: no such file"):
        find_references(["a1.png", "c*.png"])


def test_a_reference_that_is_no_picture_is_said(clips, tmp_path):
    (tmp_path / "a.png").write_text("x")
    with pytest.raises(UserError, match=r"images=.*a.png: not understood"):
        build_clip_image(image_settings([str(tmp_path / "a.png")], clips[:1]), model)


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_an_aesthetic_head_is_laions_on_the_unit_embedding(version, clips, tmp_path):
    torch.manual_seed(0)
    head = nn.Linear(scorers.EMBED_DIM, 1) if version == "v1" else scorers.make_v2_head()
    torch.save(head.state_dict(), tmp_path / "head.pth")
    choice = Head(str(tmp_path / "head.pth"), clips[0])
    guidance = build_aesthetic(aesthetic_settings(choice), model)
    embedding = load_clip(clips[0], None, CPU, "k").embed_images(make_images())
    with torch.no_grad():
        expected = (head if version == "v1" else head["layers"])(embedding).squeeze(1)
    torch.testing.assert_close(guidance.score(make_images(), PROMPTS), expected)
    assert guidance.facts["heads"][0]["sha256"] == hash_file(tmp_path / "head.pth")
    check_gradient(guidance)


def test_two_heads_are_a_weighted_mean_and_no_score_is_clamped(clips, tmp_path):
    choices = []
    for bias, weight, clip in ((20.0, 0.5, clips[0]), (-4.0, 1.5, clips[1])):
        head = nn.Linear(scorers.EMBED_DIM, 1)
        nn.init.zeros_(head.weight)
        nn.init.constant_(head.bias, bias)
        file = tmp_path / f"{bias}.pth"
        torch.save(head.state_dict(), file)
        choices.append(Head(str(file), clip, None, weight))
    high = build_aesthetic(aesthetic_settings(choices[0], target=10.0), model)
    assert high.score(make_images(), PROMPTS).tolist() == [20, 20]
    assert high.loss(make_images(), PROMPTS, []).tolist() == [10, 10]
    both = build_aesthetic(aesthetic_settings(*choices), model)
    assert both.score(make_images(), PROMPTS).tolist() == [(0.5 * 20 - 1.5 * 4) / 2] * 2


def test_a_file_named_as_published_knows_its_clip(clips, tmp_path, monkeypatch):
    asked = []

    def load(name, pretrained, device, key):
        asked.append((name, pretrained))
        return load_clip(clips[0], None, device, key)

    monkeypatch.setattr("doodl_cli.guidance.aesthetic.load_clip", load)
    file = tmp_path / "sa_0_4_vit_l_14_linear.pth"
    torch.save(nn.Linear(scorers.EMBED_DIM, 1).state_dict(), file)
    build_aesthetic(aesthetic_settings(Head(str(file))), model)
    assert asked == [("ViT-L-14-quickgelu", "openai")]


def test_a_published_head_is_fetched_once(clips, tmp_path, monkeypatch):
    fetched = []

    def download(url, path, progress):
        fetched.append(url)
        torch.save(scorers.make_v2_head().state_dict(), path)

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", download)
    settings = aesthetic_settings(Head("sac+logos+ava1-l14-linearMSE", clips[0]))
    first, second = build_aesthetic(settings, model), build_aesthetic(settings, model)
    assert len(fetched) == 1
    assert fetched[0].startswith("https://github.com/christophschuhmann/")
    assert first.facts == second.facts
    file = tmp_path / "checkpoints/sac+logos+ava1-l14-linearMSE.pth"
    assert first.facts["heads"][0]["file"] == str(file)


class Surprise:
    def __reduce__(self):
        return print, ("this must not run",)


@pytest.mark.parametrize(
    ("content", "line"),
    [
        ({"weight": torch.zeros(1, 768)}, "cannot be read .*keys are weight"),
        ({"weight": torch.zeros(2, 768), "bias": torch.zeros(2)}, r"layers are \(2, 768\)"),
        (
            {"weight": torch.zeros(1, 512), "bias": torch.zeros(1)},
            "takes 512 numbers, its clip",
        ),
        ({"weight": Surprise()}, "cannot be read"),
    ],
)
def test_a_file_that_is_no_head_is_refused_and_runs_nothing(content, line, clips, tmp_path, capfd):
    torch.save(content, tmp_path / "head.pth")
    with pytest.raises(UserError, match=line):
        build_aesthetic(aesthetic_settings(Head(str(tmp_path / "head.pth"), clips[0])), model)
    assert capfd.readouterr() == ("", "")


def test_layers_come_in_the_order_of_their_numbers():
    widths = [(3, 4), (2, 3), (1, 2)]
    weights = {}
    for number, shape in zip((0, 2, 10), widths, strict=True):
        weights[f"layers.{number}.bias"] = torch.zeros(shape[0])
        weights[f"layers.{number}.weight"] = torch.zeros(shape)
    assert [weight.shape for weight, _ in read_layers(weights)] == widths


def test_a_head_that_is_nowhere_is_said_with_the_published_ones():
    with pytest.raises(UserError, match="heads=nowhere: no such file; must be a file or one"):
        build_aesthetic(aesthetic_settings(Head("nowhere")), model)


def test_cross_entropy_is_what_transformers_computes_after_its_own_preprocessing(vit):
    from transformers import AutoImageProcessor, AutoModelForImageClassification

    guidance = build_classifier(classifier_settings("penguin", "transformers", path=vit), model)
    network = AutoModelForImageClassification.from_pretrained(vit)
    images = as_8_bit(make_images())
    pixels = AutoImageProcessor.from_pretrained(vit)(as_pil(images), return_tensors="pt")
    with torch.no_grad():
        expected = F.cross_entropy(network(**pixels).logits, torch.tensor([2, 2]), reduction="none")
    found = guidance.loss(images, PROMPTS, [])
    torch.testing.assert_close(found, expected, atol=0.05, rtol=0)  # Pillow rounds to 8 bits
    assert guidance.facts["label"] == "penguin, king penguin"
    assert len(guidance.facts["sha256"]) == 64
    check_gradient(guidance)


def test_cross_entropy_is_what_timm_computes_after_its_own_preprocessing(timm_folder):
    import timm

    guidance = build_classifier(classifier_settings("penguin", "timm", path=timm_folder), model)
    network = timm.create_model(f"local-dir:{timm_folder}", pretrained=True).eval()
    config = timm.data.resolve_model_data_config(network)
    transform = timm.data.create_transform(**config, is_training=False)
    images = as_8_bit(make_images())
    with torch.no_grad():
        logits = network(torch.stack([transform(picture) for picture in as_pil(images)]))
        expected = F.cross_entropy(logits, torch.tensor([2, 2]), reduction="none")
    torch.testing.assert_close(guidance.loss(images, PROMPTS, []), expected, atol=1e-3, rtol=0)
    check_gradient(guidance)


def test_a_timm_model_by_name_takes_a_checkpoint_with_its_own_number_of_classes(tmp_path):
    import timm

    network = timm.create_model("test_resnet", num_classes=7).eval()
    torch.save({"state_dict": network.state_dict()}, tmp_path / "tiny.pth")
    settings = classifier_settings(6, "timm", name="test_resnet", path=str(tmp_path / "tiny.pth"))
    guidance = build_classifier(settings, model)
    assert guidance.score(make_images(), PROMPTS).shape == (2,)
    assert guidance.facts["label"] is None
    check_gradient(guidance)
    with pytest.raises(UserError, match=r"did you mean test_resnet\b"):
        load_classifier("timm", "test_resnt", None, CPU, "k")
    with pytest.raises(UserError, match="names no classes; must be a number from 0 to 6"):
        build_classifier(classifier_settings("cat", "timm", "test_resnet", settings.path), model)


@pytest.mark.parametrize("source", ["transformers", "timm"])
def test_what_is_no_classifier_is_said(source, tmp_path, pickscore):
    (tmp_path / "config.json").write_text("{}")
    for path in (str(tmp_path), pickscore):
        with pytest.raises(UserError, match=rf"k.path=.*: cannot be loaded by {source}"):
            load_classifier(source, None, path, CPU, "k")
    with pytest.raises(UserError, match=r"k.path=nowhere: no such file"):
        load_classifier(source, None, "nowhere", CPU, "k")


@pytest.mark.parametrize(
    ("target", "number"),
    [("penguin", 2), ("King Penguin", 2), ("tench, Tinca tinca", 0), (1, 1), ("3", 3)],
)
def test_a_class_goes_by_its_name_its_synonyms_and_its_number(target, number):
    assert find_class(LABELS, 4, target, "k") == number


@pytest.mark.parametrize(
    ("target", "line"),
    [
        ("pengwin", "k=pengwin: no such class; .*did you mean penguin, king penguin?"),
        ("x", "k=x: no such class; must be one of 4 names or a number from 0 to 3"),
        ("4", "k=4: no such class"),
        (-1, "k=-1: no such class"),
        ("crane", r"k=crane: the name of several classes; must be one of 1 \(crane\), 3 \(crane\)"),
    ],
)
def test_a_class_that_there_is_not_is_said_with_near_ones(target, line):
    with pytest.raises(UserError, match=line):
        find_class(LABELS, 4, target, "k")


def test_pickscore_is_the_scaled_cosine_of_its_model_card(pickscore):
    from transformers import AutoTokenizer, CLIPImageProcessor, CLIPModel

    guidance = build_pickscore(Preference(weight=1.0, n_crops=0, path=pickscore), model)
    network = CLIPModel.from_pretrained(pickscore).eval()
    images = as_8_bit(make_images())
    pixels = CLIPImageProcessor.from_pretrained(pickscore)(as_pil(images), return_tensors="pt")
    tokens = AutoTokenizer.from_pretrained(pickscore)(PROMPTS, padding=True, return_tensors="pt")
    with torch.no_grad():
        expected = network(**pixels, **tokens).logits_per_image.diagonal()
        found = guidance.score(images, PROMPTS)
    torch.testing.assert_close(found, expected, atol=0.02, rtol=0)  # Pillow rounds to 8 bits
    assert len(guidance.facts["sha256"]) == 64
    check_gradient(guidance)


def test_hps_is_the_cosine_of_a_clip_with_its_state_dict(clips, tmp_path, monkeypatch):
    from safetensors.torch import load_file

    file = f"{clips[0].removeprefix('local-dir:')}/open_clip_model.safetensors"
    path = str(tmp_path / "HPS_v2.1_compressed.pt")
    torch.save({"state_dict": load_file(file)}, path)
    register(monkeypatch, "tiny")
    monkeypatch.setattr(preference, "HPS_CLIP", "tiny")
    guidance = build_hps(Preference(weight=1.0, n_crops=0, path=path), model)
    clip = load_clip("tiny", file, CPU, "k")
    expected = (clip.embed_images(make_images()) * clip.embed_texts(PROMPTS)).sum(1)
    torch.testing.assert_close(guidance.score(make_images(), PROMPTS), expected)
    assert guidance.facts["sha256"] == hash_file(Path(path))
    check_gradient(guidance)


def register(monkeypatch, name):
    """Let open_clip know the tiny model by a name."""
    import open_clip.factory

    names = {**open_clip.factory._MODEL_CONFIGS, name: scorers.MODEL_CONFIG}
    monkeypatch.setattr(open_clip.factory, "_MODEL_CONFIGS", names)


@pytest.fixture
def offline(tmp_path, monkeypatch):
    """No network and empty caches."""
    import huggingface_hub.constants

    def refuse(*args, **kwargs):
        raise urllib.error.URLError("no network")

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", refuse)


@pytest.mark.parametrize(
    ("build", "settings", "line"),
    [
        (build_pickscore, Preference(1.0, 0, None), "guidance.pickscore.path=null: .*Pick"),
        (build_hps, Preference(1.0, 0, None), "guidance.hps.path=null: HPS_v2.1_compressed.pt of"),
        (build_hps, Preference(1.0, 0, "x"), "guidance.hps.path=x: no such file; must be HPS_v2.1"),
        (build_pickscore, Preference(1.0, 0, "x"), "guidance.pickscore.path=x: PickScore cannot"),
        (
            build_aesthetic,
            aesthetic_settings(Head("sa_0_4_vit_b_32_linear")),
            "heads=sa_0_4_vit_b_32_linear: .*sa_0_4_vit_b_32_linear.pth is missing and cannot be",
        ),
        (
            build_clip_text,
            ClipText(1.0, 0, "min", [ClipChoice("ViT-B-32", "laion2b_s34b_b79k")]),
            "guidance.clip_text.clips=ViT-B-32 laion2b_s34b_b79k: cannot be loaded",
        ),
        (
            build_classifier,
            classifier_settings("cat", "transformers", "google/vit-base-patch16-224"),
            "guidance.classifier.name=google/vit-base-patch16-224: cannot be loaded by transform",
        ),
        (
            build_classifier,
            classifier_settings("cat", "timm", "resnet18"),
            "guidance.classifier.name=resnet18: cannot be loaded by timm",
        ),
    ],
)
def test_weights_that_are_not_here_are_said_in_one_line(build, settings, line, offline, capfd):
    with pytest.raises(UserError, match=line) as error:
        build(settings, model)
    assert "\n" not in str(error.value)
    assert capfd.readouterr() == ("", "")


def dark(images, prompts):
    assert len(prompts) == len(images)
    return images.flatten(1).mean(1)


def one_number(images, prompts):
    return images.mean()


def detached(images, prompts):
    return dark(images.detach(), prompts)


def constant(images, prompts):
    return torch.zeros(len(images), requires_grad=True)


def whole(images, prompts):
    return torch.zeros(len(images), dtype=torch.int64)


def broken(images, prompts):
    return images.nonsense


def no_tensor(images, prompts):
    return [1.0, 2.0]


def test_a_function_of_the_users_is_the_loss_itself():
    guidance = build_custom(Custom(2.0, 0, f"{__name__}.dark"), model)
    images = make_images()
    torch.testing.assert_close(guidance.loss(images, PROMPTS, []), images.flatten(1).mean(1))
    torch.testing.assert_close(guidance.score(images, PROMPTS), -images.flatten(1).mean(1))
    check_gradient(guidance)


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("one_number", r"returned \(\) of float32; must return one loss a sample, \(2,\)"),
        ("whole", r"returned \(2,\) of int64; must return one loss a sample"),
        ("no_tensor", "returned list; must return one loss"),
        ("detached", "does not depend on the pictures"),
        ("constant", "does not depend on the pictures"),
        ("broken", "raised AttributeError: 'Tensor' object has no attribute 'nonsense'"),
        ("drak", "drak is not in .*; did you mean dark?"),
        ("PROMPTS", "PROMPTS is list"),
    ],
)
def test_a_function_that_cannot_guide_is_said_at_once(name, line):
    with pytest.raises(UserError, match=line) as error:
        build_custom(Custom(1.0, 0, f"{__name__}.{name}"), model)
    assert str(error.value).startswith(f"guidance.custom.target={__name__}.{name}: ")


@pytest.mark.parametrize("shape", [(40, 40), (64, 48), (9, 20)])
def test_pictures_are_resized_as_by_interpolate(shape):
    images = torch.rand(2, 3, *shape, requires_grad=True)
    found = resize(images, 20)
    exact = F.interpolate(images.double(), (20, 20), mode="bicubic", antialias=True)
    torch.testing.assert_close(found, exact.float(), atol=1e-6, rtol=0)
    slopes = [torch.autograd.grad(x.square().sum(), images)[0] for x in (found, exact)]
    torch.testing.assert_close(*slopes, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("target", ["dark", "no such.module", "nowhere.dark", "tests..dark"])
def test_a_function_that_cannot_be_imported_is_said(target):
    with pytest.raises(UserError, match=f"guidance.custom.target={target}: .*package.module.func"):
        build_custom(Custom(1.0, 0, target), SimpleNamespace())


def test_the_working_directory_is_searched_and_nothing_is_written_there(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    (tmp_path / "my_own_losses.py").write_text("def dark(images, prompts):\n    return images.x\n")
    with pytest.raises(UserError, match="raised AttributeError"):
        build_custom(Custom(1.0, 0, "my_own_losses.dark"), model)
    assert [path.name for path in tmp_path.iterdir()] == ["my_own_losses.py"]
