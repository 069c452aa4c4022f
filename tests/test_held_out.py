"""Scores that are not optimised: which, where they are reported, and what they stop."""

import pytest
from hydra.errors import ConfigCompositionException

from doodl_cli.cli import main
from doodl_cli.commands.application import composer, resolve
from doodl_cli.commands.help import choices
from doodl_cli.config import EVALUATIONS, GUIDANCES, read_config
from tests.runs import needs_weights, read_history, read_metadata

SMALL = [
    "run", "guidance=aesthetic", "prompt=a sun", "device=cpu", "sampler.n_steps=2",
    "guidance.aesthetic.n_crops=0", "output_dir=a",
]  # fmt: skip

pytestmark = pytest.mark.usefixtures("folder")


def evaluated(*words):
    with composer(None) as compose:
        return list(read_config(resolve(compose("run", [*words]))).evaluate)


def test_every_guidance_can_be_held_out_too():
    assert choices("evaluate") == sorted(EVALUATIONS) == sorted(["clip_text_b", *GUIDANCES])


def test_a_held_out_score_takes_the_keys_of_its_scorer_and_none_of_the_loss():
    words = ["evaluate=[pickscore,classifier]", "evaluate.classifier.target=3"]
    with composer(None) as compose:
        values = resolve(compose("run", words))
        assert values["evaluate"]["pickscore"] == {"path": None}
        config = read_config(values)
        assert config.evaluate["classifier"].target == 3
        assert read_config(config.to_dict()) == config
        with pytest.raises(ConfigCompositionException, match=r"evaluate\.pickscore\.weight"):
            compose("run", [*words, "evaluate.pickscore.weight=2"])


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["evaluate=custom"], "evaluate.custom.target: missing; must be"),
        (["evaluate=custom", "evaluate.custom.target=x.y"], "evaluate.custom.target=x.y: "),
        (["evaluate=hps", "evaluate.hps.path=no, where.pt"], "evaluate.hps.path=no, where.pt: no"),
        (["evaluate.hps.path=x"], "evaluate.hps.path=x: needs evaluate=hps"),
        (["evaluate=classifier", "evaluate.classifier.target=0", "evaluate.classifier.source=timm"],
         "evaluate.classifier.source=timm: given with no name or path"),
        (["optimizer.stop_on=classifier_b"], "must be clip_text_b, colourfulness, or null"),
    ],
)  # fmt: skip
@needs_weights
def test_a_held_out_score_that_cannot_be_had_exits_2(words, line, capsys, folder):
    assert main([*SMALL, *words]) == 2
    err = capsys.readouterr().err
    assert line in err
    assert list(folder.iterdir()) == []


@needs_weights
def test_a_function_of_the_users_can_be_held_out(folder):
    (folder / "mine.py").write_text(
        "def dark(images, prompts):\n    return images.mean((1, 2, 3))\n"
    )
    words = ["evaluate=custom", "evaluate.custom.target=mine.dark", "optimizer.n_iters=1"]
    assert main([*SMALL, *words]) == 0
    assert all(-1 <= line["evaluate"]["custom"] <= 1 for line in read_history("a"))


def test_a_twin_may_stop_a_sample():
    words = [
        "guidance=classifier",
        "guidance.classifier.target=0",
        "optimizer.stop_on=classifier_b",
    ]
    with composer(None) as compose:
        read_config(resolve(compose("run", words)))


def test_the_held_out_scores_are_chosen_by_name():
    assert evaluated() == ["clip_text_b", "colourfulness"]
    assert evaluated("evaluate=[symmetry,clip_text]") == ["symmetry", "clip_text"]
    assert evaluated("evaluate=symmetry") == ["symmetry"]
    assert evaluated("evaluate=[]") == []


@needs_weights
def test_held_out_scores_are_in_the_history_the_metadata_and_the_summary(capsys):
    words = ["evaluate=[aesthetic,symmetry,clip_text]", "optimizer.n_iters=1"]
    assert main([*SMALL, *words]) == 0
    lines, (sample,) = read_history("a"), read_metadata("a")["samples"]
    for line in lines:
        assert list(line["evaluate"]) == ["aesthetic", "symmetry", "clip_text"]
        assert line["evaluate"]["aesthetic"] == line["guidance"]["aesthetic"]
    assert sample["evaluate"]["initial"] == lines[0]["evaluate"]
    assert sample["evaluate"]["final"] == lines[1]["evaluate"]
    out = capsys.readouterr().out
    assert "symmetry" in out
    assert out.count("aesthetic") == 1  # what is optimised is not held out


@needs_weights
def test_a_falling_score_stops_a_sample_and_the_reason_is_kept(capsys):
    words = ["optimizer.stop_on=symmetry", "optimizer.patience=1", "evaluate=symmetry"]
    assert main([*SMALL, *words, "optimizer.n_iters=12", "seed=[0,1,2]"]) == 0
    err = capsys.readouterr().err
    stopped = 0
    for i, sample in enumerate(read_metadata("a")["samples"]):
        scores = [line["evaluate"]["symmetry"] for line in read_history("a") if line["sample"] == i]
        falls = [k for k in range(1, len(scores)) if scores[k] < max(scores[:k])]
        if falls and falls[0] < 12:
            stopped += 1
            assert len(scores) == falls[0] + 1
            assert sample["stopped"] in err
            assert f"symmetry at iteration {falls[0]} has been below" in sample["stopped"]
        else:
            assert sample["stopped"] is None
            assert len(scores) == 13
    assert stopped


@needs_weights
def test_regularisers_are_written_to_the_history_and_change_the_run():
    assert main([*SMALL, "optimizer.n_iters=1"]) == 0
    plain = read_history("a")
    assert "regularisers" not in plain[0]
    words = ["optimizer.chi_norm=0.01", "optimizer.kl_prior=2", "output_dir=b"]
    assert main([*SMALL, "optimizer.n_iters=1", *words]) == 0
    lines = read_history("b")
    terms = lines[0]["regularisers"]
    assert terms["kl_prior"] > 0
    expected = plain[0]["loss"] + 0.01 * terms["chi_norm"] + 2 * terms["kl_prior"]
    assert lines[0]["loss"] == pytest.approx(expected, rel=1e-5)
    assert lines[1]["guidance"] != plain[1]["guidance"]
