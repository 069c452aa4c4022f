"""What users type: exit codes, the one line that bad input gets, quoting, sweeps, signals."""

import json
import signal
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import pytest
from PIL import Image

from doodl_cli.cli import main
from doodl_cli.commands.application import composer, resolve
from doodl_cli.commands.arguments import quote
from tests.runs import ROOT, needs_weights, read_metadata, start

GOOD = ["run", "guidance=aesthetic", "prompt=x"]
PICTURES = ["run", "guidance=clip_image", "prompt=x"]
CLASS = ["run", "guidance=classifier", "prompt=x"]
SMALL = [*GOOD, "sampler.n_steps=2", "optimizer.n_iters=2", "device=cpu"]

pytestmark = pytest.mark.usefixtures("folder")

BAD_INPUT = [
    ([], "run, sample, models"),
    (["rum"], "did you mean run?"),
    (["prompt=x"], "prompt=x: unknown verb"),
    (["models", "x"], "takes no arguments"),
    (["run", "--multi"], "--multi"),
    (["run", "a", "red", "apple"], "a: must be key=value"),
    (["run", "guidance=aesthetic"], "prompt: missing"),
    (["run", "prompt=x"], "guidance: missing; must be one of aesthetic, classifier, clip_image"),
    (["run", "prompt=x", "guidance=null"], "guidance=null: must be one of aesthetic, classifier"),
    (["run", "prompt=x", "guidance=astetic"], "did you mean aesthetic?"),
    (["run", "prompt=x", "guidance=[aesthetic,clip]"], "guidance=clip: must be one of"),
    (["run", "prompt=x", "guidance=aesthetic,clip_text"], "guidance=aesthetic,clip_text: several"),
    ([*GOOD, "guidence=a"], "guidence=a: unknown key; did you mean guidance?"),
    ([*GOOD, "n_steps=4"], "did you mean sampler.n_steps?"),
    ([*GOOD, "optimizer.nter=4"], "optimizer.nter=4: unknown key; must be one of optimizer.name"),
    ([*GOOD, "+quality=4"], "quality=4: unknown key"),
    ([*GOOD, "sampler=edcit"], "did you mean edict?"),
    ([*GOOD, "sampler=[edict,bdia]"], "sampler.p=0.93: needs sampler=edict"),
    ([*GOOD, "sampler.n_steps=0"], "sampler.n_steps=0: must be a whole number from 1 to 1000"),
    ([*GOOD, "sampler.n_steps=1001"], "from 1 to 1000"),
    ([*GOOD, "sampler.n_steps=4.5"], "sampler.n_steps=4.5: must be a whole number"),
    ([*GOOD, "sampler.n_steps=many"], "sampler.n_steps=many: must be a whole number"),
    ([*GOOD, "sampler.n_steps=true"], "sampler.n_steps=true: must be a whole number"),
    ([*GOOD, f"sampler.n_steps={10**30}"], "from 1 to 1000"),
    ([*GOOD, "sampler.spacing=even"], "must be one of leading, trailing, linspace or null"),
    ([*GOOD, "sampler.gamma=0"], "sampler.gamma=0: must be a number above 0 to 1"),
    ([*GOOD, "sampler.gamma=nan"], "sampler.gamma=nan: must be a number above 0 to 1"),
    ([*GOOD, "sampler=edict", "sampler.p=1.1"], "sampler.p=1.1: must be a number from 0.5 to 1"),
    ([*GOOD, "sampler=edict", "sampler.gamma=0.95"], "sampler.gamma=0.95: needs sampler=bdia"),
    ([*GOOD, "memory=reversible", "sampler=ddim"], "memory=reversible: sampler=ddim"),
    ([*GOOD, "memory=small"], "memory=small: must be one of auto, checkpoint, full, reversible"),
    ([*GOOD, "optimizer=sgd"], "optimizer=sgd: must be one of adam, doodl, nesterov"),
    ([*GOOD, "optimizer=null"], "optimizer=null: must be one of adam, doodl, nesterov"),
    ([*GOOD, "optimizer.n_iters=0"], "optimizer.n_iters=0: must be a whole number from 1"),
    ([*GOOD, "optimizer.n_iters=-3"], "optimizer.n_iters=-3"),
    ([*GOOD, "optimizer.lr=-1"], "optimizer.lr=-1: must be a number above 0"),
    ([*GOOD, "optimizer.lr=nan"], "optimizer.lr=nan: must be a number above 0"),
    ([*GOOD, "optimizer.momentum=1"], "optimizer.momentum=1: must be a number from 0 below 1"),
    ([*GOOD, "optimizer.clip=0"], "optimizer.clip=0: must be a number above 0 or null"),
    ([*GOOD, "optimizer.tied=maybe"], "optimizer.tied=maybe: must be true or false"),
    ([*GOOD, "~optimizer.lr"], "optimizer.lr: missing"),
    ([*GOOD, "guidance.aesthetic.weight=0"], "guidance.aesthetic.weight=0"),
    ([*GOOD, "guidance.aesthetic.weight=nan"], "guidance.aesthetic.weight=nan"),
    ([*GOOD, "guidance.aesthetic.n_crops=-1"], "guidance.aesthetic.n_crops=-1"),
    ([*GOOD, "guidance.aesthetic.wieght=1"], "did you mean guidance.aesthetic.weight?"),
    ([*GOOD, "guidance.aesthetic.reduce=min"], "guidance.aesthetic.reduce=min: unknown key"),
    ([*GOOD, "guidance.clip_text.weight=2"], "needs guidance=clip_text"),
    ([*GOOD, "optimizer.balance=1"], "optimizer.balance=1: must be true or false"),
    ([*GOOD, "guidance.aesthetic.heads=[]"], "guidance.aesthetic.heads=[]: must have an entry"),
    (
        [*GOOD, "guidance.aesthetic.heads=3"],
        "heads[0].file=3: must be a published head",
    ),
    (
        [*GOOD, "guidance.aesthetic.heads=[{file:a,weihgt:2}]"],
        "heads[0].weihgt: unknown key; must be one of file, clip, pretrained, weight",
    ),
    (
        ["run", "prompt=x", "guidance=clip_text", "guidance.clip_text.clips=[{name:a,weight:0}]"],
        "guidance.clip_text.clips[0].weight=0: must be a number above 0",
    ),
    (PICTURES, "guidance.clip_image.images: missing; must be a path of a reference picture"),
    ([*PICTURES, "guidance.clip_image.images=[]"], "guidance.clip_image.images=[]: must be a path"),
    ([*PICTURES, "guidance.clip_image.images=n (1).png"], "images=n (1).png: no such file; must"),
    ([*PICTURES, "guidance.clip_image.images=*.png"], "guidance.clip_image.images=*.png: no such"),
    ([*PICTURES, "guidance.clip_image.images=['*.png']"], "images=*.png: no such file"),
    (CLASS, "guidance.classifier.target: missing; must be the class to show, by name or number"),
    ([*CLASS, "guidance.classifier.target=x", "guidance.classifier.name=y"], "source=embedded: "),
    (
        [*CLASS, "guidance.classifier.target=x", "guidance.classifier.source=timm"],
        "guidance.classifier.source=timm: given with no name or path; must have a name",
    ),
    (["run", "prompt=x", "guidance=custom"], "guidance.custom.target: missing; must be package"),
    ([*GOOD, "cfg_scale=nan"], "cfg_scale=nan: must be a number from 0"),
    ([*GOOD, "seed=-1"], "seed=-1: must be a whole number from 0"),
    ([*GOOD, "seed=1.5"], "seed=1.5"),
    ([*GOOD, "seed=[0,-1]"], "seed=[0, -1]"),
    ([*GOOD, "seed=[]"], "seed=[]"),
    ([*GOOD, "seed=0,1"], "seed=0,1: several values are seed=[...], or a sweep, which needs -m"),
    ([*GOOD, "seed=range(0,3)"], "seed=range(0,3): several values"),
    ([*GOOD, "dtype=int8"], "dtype=int8: must be one of float16"),
    ([*GOOD, "device=nonsense"], "device=nonsense: must be auto, cpu"),
    ([*GOOD, "device=cuda:99"], "device=cuda:99: not on this machine; must be auto"),
    ([*GOOD, "model=sd99"], "model=sd99: must be one of"),
    ([*GOOD, "experiment=papr"], "did you mean paper?"),
    ([*GOOD, "output_dir="], "output_dir=: must name a folder"),
    ([*GOOD, f"output_dir={__file__}"], "must be a folder"),
    ([*GOOD, f"output_dir={__file__}/below"], "must be a folder"),
    ([*GOOD, f"output_dir={ROOT}"], "must be a new or an empty folder"),
    ([*GOOD, f"output_dir={'x' * 300}"], "output_dir="),
    ([*GOOD, 'prompt="a" b'], 'prompt="a" b: not understood'),
    ([*GOOD, 'prompt="${x}"'], "Interpolation key 'x' not found"),
    ([*GOOD, "prompt=\udcff"], "must be valid UTF-8"),
    ([*GOOD, "cfg_scale={4"], "cfg_scale={4: not understood"),
    ([*GOOD, "--cfg", "jobs"], "jobs"),
    ([*GOOD, "guidence=a", "--cfg", "job"], "guidence=a: unknown key"),
    ([*GOOD, "-m", "guidence=a,b"], "guidence=a,b: unknown key"),
    ([*GOOD, "-m", "sampler.n_steps=0,-1"], "sampler.n_steps=0"),
    ([*GOOD, "-m", "sampler=edict,edcit"], "sampler=edcit"),
    (["run", "-m", "guidance=aesthetic", "seed=0,1"], "prompt: missing"),
    (["sample"], "prompt: missing"),
    (["sample", "run=nowhere"], "run=nowhere: must be a run directory"),
    (["sample", "run="], "run=: must be a run directory"),
    (["sample", f"run={ROOT}", "which=best"], "must be a run directory"),
    (["sample", "prompt=x", "which=worst"], "which=worst: must be one of initial, best, final"),
]


@pytest.mark.parametrize(("words", "line"), BAD_INPUT, ids=[" ".join(w) for w, _ in BAD_INPUT])
def test_bad_input_exits_2_with_one_line_and_writes_nothing(words, line, folder, capsys):
    assert main(words) == 2
    out, err = capsys.readouterr()
    assert line in err
    assert err.startswith("doodl: ")
    assert err.count("\n") == 1
    assert out == ""
    assert list(folder.iterdir()) == []


LITERAL_TEXT = [
    "", "a red apple", "a cat, a dog", "it's", 'he said "no"', "a (b) [c] {d}", "choice(a,b)",
    "${x}", r"\${x}", r"\\${x}\\", "$x", "a=b", "=", "-x", "--help", "null", "true", "123", "1e5",
    "???", "~a", "  a ", "a\nb", "a\tb", "a\\", "\\", "a: b", "#a", "@%&*|;<>?!", "été", "日本",
    "🍎", "a\u2028b",
]  # fmt: skip


@pytest.mark.parametrize("key", ["prompt", "negative_prompt", "++prompt"])
@pytest.mark.parametrize("text", LITERAL_TEXT)
def test_free_text_is_taken_literally(text, key):
    with composer(None) as compose:
        values = resolve(compose("run", [quote(f"{key}={text}")]))
    assert values[key.lstrip("+")] == text


def test_text_that_starts_with_a_quote_follows_the_grammar_of_hydra():
    with composer(None) as compose:
        assert compose("run", [quote('prompt="a, b"')]).prompt == "a, b"
        assert compose("run", [quote("prompt='a, b'")]).prompt == "a, b"


def test_groups_compose_and_combine():
    words = ["guidance=[aesthetic,clip_text]", "guidance.aesthetic.weight=2", "experiment=paper"]
    with composer(None) as compose:
        values = resolve(compose("run", words))
    assert list(values["guidance"]) == ["aesthetic", "clip_text"]
    assert values["guidance"]["aesthetic"]["weight"] == 2
    assert values["guidance"]["clip_text"]["n_crops"] == 16
    assert values["sampler"] == {"name": "edict", "n_steps": 50, "spacing": None, "p": 0.93}
    assert values["optimizer"]["clip"] == 1e-3


def test_help_names_the_verbs_the_choices_and_the_keys(capsys):
    assert main(["--help"]) == 0
    assert "sample" in capsys.readouterr().out
    assert main(["run", "--help", "sampler=edict"]) == 0
    out = capsys.readouterr().out
    for words in ("aesthetic, classifier", "sampler.p=0.93", "guidance.clip_text.reduce", "-m"):
        assert words in out


def test_flags_may_stand_anywhere(capsys):
    assert main(["run", "seed=3", "--cfg", "job", "sampler=obelm"]) == 0
    out = capsys.readouterr().out
    assert "seed: 3" in out
    assert "name: obelm" in out


@pytest.mark.parametrize(("words", "limit"), [(["--help"], 0.3), (["run", "--cfg", "job"], 1.0)])
def test_it_starts_fast_because_it_imports_nothing_heavy(words, limit):
    seconds = []
    for _ in range(3):
        began = time.monotonic()
        process = start(*words)
        process.communicate()
        seconds.append(time.monotonic() - began)
        assert process.returncode == 0
    assert min(seconds) < limit
    code = f"import sys; from doodl_cli.cli import main; main({words}); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = done.stdout.splitlines()[-1].split()
    assert not {"torch", "numpy", "matplotlib", "rich"} & set(loaded)


def test_the_installed_command_says_its_version():
    command = Path(sys.executable).with_name("doodl")
    if not command.exists():
        pytest.skip("the package is not installed in this environment")
    done = subprocess.run([command, "--version"], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("doodl 0.")


def test_every_package_is_listed_for_installation():
    packages = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"][
        "packages"
    ]
    code = {path.parent for path in (ROOT / "doodl_cli").rglob("*.py")}
    configs = {path.parent for path in (ROOT / "configs").rglob("*.yaml")}
    names = {".".join(path.relative_to(ROOT).parts) for path in code}
    names |= {".".join(["doodl_cli", *path.relative_to(ROOT).parts]) for path in configs}
    assert sorted(packages) == sorted(names)


@needs_weights
def test_models_are_listed_with_their_weights(capsys):
    assert main(["models"]) == 0
    assert capsys.readouterr().out.startswith("emoji")


@needs_weights
def test_a_model_without_weights_exits_2_and_writes_nothing(folder, capsys):
    assert main([*SMALL, "model.path=nowhere"]) == 2
    err = capsys.readouterr().err
    assert "nowhere" in err
    assert err.count("\n") == 1
    assert list(folder.iterdir()) == []


@needs_weights
def test_a_run_is_rendered_again_bit_for_bit(folder, capsys):
    prompt = 'an "apple", (red) ${x} 🍎'
    assert main([*SMALL, f"prompt={prompt}", "seed=[3,5]", "output_dir=a run"]) == 0
    run = folder / "a run"
    assert capsys.readouterr().out.splitlines()[-1] == str(run)
    metadata = read_metadata(run)
    assert metadata["status"] == "done"
    assert [sample["prompt"] for sample in metadata["samples"]] == [prompt] * 2
    for which in ("initial", "best", "final"):
        assert main(["sample", "run=a run", f"which={which}", f"output_dir={which}"]) == 0
        for sample in ("samples/000", "samples/001"):
            again = folder / which / sample
            assert [path.name for path in again.iterdir()] == ["initial.png"]
            assert (again / "initial.png").read_bytes() == (
                run / sample / f"{which}.png"
            ).read_bytes()


@needs_weights
def test_the_same_command_twice_writes_the_same_pictures_and_scores(folder):
    for name in ("a", "b"):
        assert main([*SMALL, f"output_dir={name}"]) == 0
    for file in ("best.png", "latents.safetensors", "trajectory.webp"):
        a, b = ((folder / name / "samples/000" / file).read_bytes() for name in ("a", "b"))
        assert a == b
    a, b = (
        [json.loads(line) | {"seconds": 0} for line in (folder / name / "history.jsonl").open()]
        for name in ("a", "b")
    )
    assert a == b


@needs_weights
def test_a_sample_is_the_same_alone_and_beside_others(folder):
    assert main([*SMALL, "seed=[3,5]", "output_dir=both"]) == 0
    assert main([*SMALL, "seed=5", "output_dir=alone"]) == 0
    for file in ("latents.safetensors", "trajectory.webp"):
        beside = folder / "both/samples/001" / file
        assert (folder / "alone/samples/000" / file).read_bytes() == beside.read_bytes()


@needs_weights
def test_a_run_directory_is_not_written_to_twice(folder, capsys):
    assert main(["sample", "prompt=x", "sampler.n_steps=1", "output_dir=a"]) == 0
    assert main([*SMALL, "output_dir=a"]) == 2
    assert "must be a new or an empty folder" in capsys.readouterr().err


@needs_weights
def test_sample_takes_nothing_from_the_command_line_that_the_run_brings(folder, capsys):
    assert main([*SMALL, "output_dir=a"]) == 0
    assert main(["sample", "run=a", "cfg_scale=2"]) == 2
    assert "cfg_scale: run=a brings its own" in capsys.readouterr().err


BAD_GUIDANCE = [
    ([*CLASS, "guidance.classifier.target=pengwin"], "did you mean penguin?"),
    ([*CLASS, "guidance.classifier.target=100"], "=100: no such class; must be one of 100 names"),
    ([*PICTURES, f"guidance.clip_image.images={__file__}"], "not understood"),
    ([*PICTURES, f"guidance.clip_image.images={'x' * 300}"], "no such file"),
    ([*GOOD, f"guidance.aesthetic.heads={'x' * 300}"], "no such file"),
    (["run", "prompt=x", "guidance=hps", f"guidance.hps.path={'x' * 300}"], "no such file"),
    (["run", "prompt=x", "guidance=hps", "guidance.hps.path=~nobody/x"], "no such file"),
    (["run", "prompt=x", "guidance=custom", "guidance.custom.target=os.getcwd"], "must be"),
    ([*GOOD, "guidance.aesthetic.heads=nowhere"], "guidance.aesthetic.heads=nowhere: no such file"),
    ([*GOOD, f"guidance.aesthetic.heads=[{{file:'{__file__}',clip:x}}]"], "cannot be read"),
]


@needs_weights
@pytest.mark.parametrize(("words", "line"), BAD_GUIDANCE, ids=[w[-1][:60] for w, _ in BAD_GUIDANCE])
def test_what_a_guidance_cannot_use_exits_2_with_one_line_and_writes_nothing(
    words, line, folder, capfd
):
    assert main([*words, "device=cpu"]) == 2
    out, err = capfd.readouterr()
    assert line in err
    assert err.startswith("doodl: ")
    assert err.count("\n") == 1
    assert out == ""
    assert list(folder.iterdir()) == []


@needs_weights
def test_guidances_combine_and_say_what_they_use_and_how_much_each_pulls(folder):
    picture = folder / "red.png"
    Image.new("RGB", (80, 64), "red").save(picture)
    (folder / "own").mkdir()
    (folder / "own/loss.py").write_text(
        "def dark(images, prompts):\n    return images.mean((1, 2, 3))"
    )
    words = [*SMALL[2:], "guidance=[classifier,clip_image,custom]", "optimizer.balance=true"]
    words += [
        "guidance.classifier.target=rolled-up newspaper",
        "guidance.custom.target=own.loss.dark",
    ]
    words += [f"guidance.clip_image.images={picture}", "output_dir=run"]
    assert main(["run", *words]) == 0
    metadata = read_metadata("run")
    guidance = metadata["guidance"]
    assert guidance["classifier"]["label"] == "rolled-up newspaper"
    assert list(guidance["clip_image"]["images"]) == [str(picture)]
    assert guidance["custom"] == {"target": "own.loss.dark"}
    assert {"classifier_b", "clip_image_b"} <= set(metadata["samples"][0]["evaluate"]["best"])
    lines = [json.loads(line) for line in (folder / "run/history.jsonl").open()]
    for line in lines[:-1]:
        shares = [line["terms"][name]["share"] for name in guidance]
        assert shares == pytest.approx([1 / 3] * 3, rel=1e-5)
    assert [term["share"] for term in lines[-1]["terms"].values()] == [None] * 3
    (folder / "own/loss.py").unlink()  # what guided a run is not needed to render it again
    assert main(["sample", "run=run", "output_dir=again"]) == 0


@needs_weights
def test_prompts_sweep_and_a_job_that_fails_does_not_stop_the_others(folder, capsys):
    words = ['prompt="a cat","a, dog"', "sampler.n_steps=0,1", "-m", "output_dir=sweep"]
    assert main([*SMALL, *words]) == 1
    assert "sampler.n_steps=0: must be" in capsys.readouterr().err
    runs = sorted(path.parent for path in folder.glob("sweep/*/samples"))
    assert [run.name for run in runs] == ["1", "3"]
    prompts = [read_metadata(run)["prompts"] for run in runs]
    assert prompts == [["a cat"], ["a, dog"]]


@needs_weights
def test_signals_leave_a_consistent_run_directory(folder):
    """Ctrl-C exits 130 and SIGTERM 143, both with what there is on disk."""
    cases = {"int": (signal.SIGINT, 130), "term": (signal.SIGTERM, 143)}
    words = [*GOOD, "optimizer.n_iters=5000", "sampler.n_steps=2", "device=cpu"]
    processes = {name: start(*words, f"output_dir={name}") for name in cases}
    for name, (number, code) in cases.items():
        history, process = folder / name / "history.jsonl", processes[name]
        while process.poll() is None and not (history.exists() and history.read_text()):
            time.sleep(0.05)
        process.send_signal(number)
        _, err = process.communicate(timeout=60)
        assert process.returncode == code, err
        assert "Traceback" not in err
        metadata = read_metadata(folder / name)
        assert metadata["status"] == "interrupted"
        iterations = [json.loads(line)["iteration"] for line in history.open()]
        assert metadata["samples"][0]["best_iteration"] in iterations
        files = {path.name for path in (folder / name).rglob("*") if path.is_file()}
        assert {"loss.png", "grid.png", "best.png", "latents.safetensors"} <= files
        assert not any(file.endswith(".part") for file in files)
