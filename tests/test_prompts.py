"""Many samples: files of prompts, seeds, batches, shards, and what is said about bad rows."""

import json
from pathlib import Path

import pytest

from doodl_cli.cli import main
from doodl_cli.commands.application import composer, resolve
from doodl_cli.commands.arguments import quote
from doodl_cli.config import read_config
from doodl_cli.errors import UserError
from doodl_cli.requests import list_requests, read_prompts
from tests.runs import needs_weights

pytestmark = pytest.mark.usefixtures("folder")


def requests(*words):
    with composer(None) as compose:
        return list_requests(read_config(resolve(compose("run", [quote(word) for word in words]))))


def write(name, content):
    data = content if isinstance(content, bytes) else content.encode()
    Path(name).write_bytes(data)
    return name


def test_a_text_file_holds_a_prompt_a_line_with_any_characters():
    write("p.txt", '\ufeffa "cat", ${x}\r\nété 🍎\u2028b\n# no comment\n\n')
    prompts = [request.prompt for request in requests("prompts=p.txt")]
    assert prompts == ['a "cat", ${x}', "été 🍎\u2028b", "# no comment"]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("p.csv", 'id,prompt,seed,negative_prompt\ncat,"a, cat\nof 2 lines",7,dull\n,a dog,,\n'),
        (
            "p.jsonl",
            '{"id": "cat", "prompt": "a, cat\\nof 2 lines", "seed": 7, "negative_prompt": "dull"}\n'
            '{"prompt": "a dog", "seed": null}\n',
        ),
    ],
)
def test_csv_and_jsonl_may_give_a_seed_a_negative_prompt_and_a_name(name, content):
    write(name, content)
    first, *rest = requests(f"prompts={name}", "seed=[1,2]", "negative_prompt=grey")
    assert (first.name, first.prompt) == ("cat", "a, cat\nof 2 lines")
    assert (first.seed, first.negative_prompt) == (7, "dull")
    assert [(r.number, r.name, r.prompt, r.seed, r.negative_prompt) for r in rest] == [
        (1, "001", "a dog", 1, "grey"),
        (2, "002", "a dog", 2, "grey"),
    ]


def test_seeds_are_a_list_or_a_first_one_and_how_many():
    assert [r.seed for r in requests("prompt=x", "seed=[5,3]")] == [5, 3]
    assert [r.seed for r in requests("prompt=x", "seed=7", "n_seeds=3")] == [7, 8, 9]
    write("p.jsonl", '{"prompt": "a", "id": "cat"}\n')
    assert [r.name for r in requests("prompts=p.jsonl", "n_seeds=2")] == ["cat-0", "cat-1"]


def test_shards_share_the_samples_out_and_each_keeps_its_number():
    every = requests("prompt=x", "n_seeds=7")
    shards = [requests("prompt=x", "n_seeds=7", f"shard={i}/3") for i in range(3)]
    assert sorted((r for shard in shards for r in shard), key=lambda r: r.number) == every


BAD_FILES = [
    ("p.txt", "a\n\nb\n", "line 2: empty"),
    ("p.txt", "", "holds no prompt"),
    ("p.txt", " \n\n", "holds no prompt"),
    ("p.txt", b"a\nb\xff\n", "line 2: not UTF-8"),
    ("p.jsonl", '{"prompt": "a"}\n{"prompt": \n', "line 2: not JSON"),
    ("p.jsonl", '{"prompt": "a"}\n\n{"prompt": "b"}\n', "line 2: empty"),
    ("p.jsonl", '["a"]\n', "line 1: must be an object"),
    ("p.jsonl", '{"text": "a"}\n', "line 1: text: unknown column; must be one of prompt, seed"),
    ("p.jsonl", '{"seed": 1}\n', "line 1: prompt: missing"),
    ("p.jsonl", '{"prompt": 3}\n', "line 1: prompt=3: must be text"),
    ("p.jsonl", '{"prompt": "\\ud800"}\n', "line 1: prompt: must be valid UTF-8"),
    ("p.jsonl", '{"prompt": "a", "seed": -1}\n', "line 1: seed=-1: must be a whole number from 0"),
    ("p.jsonl", '{"prompt": "a", "id": "../b"}\n', "line 1: id=../b: must be letters"),
    (
        "p.jsonl",
        '{"prompt": "a", "id": 1}\n{"prompt": "b", "id": "1"}\n',
        "line 2: id 1 is also that of line 1",
    ),
    ("p.jsonl", '{"prompt": "a"}\n{"prompt": "b", "id": "000"}\n', "id 000: given twice"),
    ("p.csv", "text\na\n", "line 1: the first line must name the columns, prompt among them"),
    ("p.csv", "prompt,seed\na,1\nb,one\n", "line 3: seed=one: must be a whole number"),
    ("p.csv", "prompt,seed\n,1\n", "line 2: empty"),
    ("p.csv", "prompt\na,b\n", "line 2: 2 cells under 1 columns"),
    ("p.csv", 'prompt\n"a\n', "line 2: not CSV"),
    ("p.txt", "\n" + "a\n\n" * 9, "line 7: empty; line 9: empty; and 4 more"),
]


@pytest.mark.parametrize(("name", "content", "line"), BAD_FILES, ids=[x[2] for x in BAD_FILES])
def test_bad_rows_are_named_in_one_line_before_anything_starts(name, content, line, folder, capsys):
    write(name, content)
    assert main(["run", "guidance=aesthetic", f"prompts={name}"]) == 2
    out, err = capsys.readouterr()
    assert err.startswith(f"doodl: prompts={name}: ")
    assert line in err
    assert err.count("\n") == 1
    assert out == ""
    assert [path.name for path in folder.iterdir()] == [name]


BAD_WORDS = [
    (["prompts=nowhere"], "prompts=nowhere: must be a file that can be read"),
    (["prompts=."], "prompts=.: must be a file that can be read"),
    (["prompts=p.txt", "prompt=x"], "prompts=p.txt: must be given without prompt"),
    (["prompt=x", "shard=2/2"], "shard=2/2: must be i/n, with i from 0 to n-1"),
    (["prompt=x", "shard=1/2"], "shard=1/2: empty; there are 1 samples in all"),
    (["prompt=x", "shard=half"], "shard=half: must be i/n"),
    (["prompt=x", "n_seeds=0"], "n_seeds=0: must be a whole number from 1"),
    (["prompt=x", "n_seeds=2", "seed=[1,2]"], "seed=[1, 2]: must be the first seed"),
    (["prompt=x", "batch_size=0"], "batch_size=0: must be a whole number from 1"),
]


@pytest.mark.parametrize(("words", "line"), BAD_WORDS, ids=[x[1] for x in BAD_WORDS])
def test_keys_of_many_samples_out_of_range_exit_2_with_one_line(words, line, capsys):
    assert main(["run", "guidance=aesthetic", *words]) == 2
    err = capsys.readouterr().err
    assert line in err
    assert err.count("\n") == 1


def test_a_large_file_is_read_at_once():
    write("p.txt", "".join(f"prompt {i}\n" for i in range(20_000)))
    assert len(read_prompts("p.txt")) == 20_000
    write("p.txt", "a\n" * 3 + "\n" + "b")
    with pytest.raises(UserError, match="line 4: empty"):
        read_prompts("p.txt")


SMALL = ["guidance=clip_text", "sampler.n_steps=2", "optimizer.n_iters=2", "device=cpu"]
SMALL += ["guidance.clip_text.n_crops=2"]


@needs_weights
def test_a_sample_is_the_same_in_any_batch_order_and_shard(folder, capsys):
    rows = [
        {"id": "cat", "prompt": "a cat", "seed": 4},
        {"id": "dog", "prompt": "a dog", "negative_prompt": "grey"},
        {"id": "long", "prompt": "a red apple on a table " * 30, "seed": 9},
    ]
    for name, order in (("p", rows), ("q", rows[::-1])):
        write(f"{name}.jsonl", "".join(f"{json.dumps(row)}\n" for row in order))
    assert main(["run", *SMALL, "prompts=p.jsonl", "batch_size=2", "output_dir=a"]) == 0
    err = capsys.readouterr().err
    assert err.count("prompt: cut to") == 1
    assert err.index("prompt: cut to") < err.index("batch 1/2  iteration 0/2")
    write("p.jsonl", "changed")  # the run directory has its own copy
    words = ["run", *SMALL, "prompts=q.jsonl", "shard=0/2", "batch_size=1", "output_dir=b"]
    assert main(words) == 0
    assert main(["sample", "run=a", "output_dir=c"]) == 0
    assert sorted(path.name for path in Path("a/samples").iterdir()) == ["cat", "dog", "long"]
    assert sorted(path.name for path in Path("b/samples").iterdir()) == ["cat", "long"]
    for sample in ("cat", "long"):
        for file in ("best.png", "latents.safetensors", "trajectory.webp"):
            a, b = (Path(run, "samples", sample, file).read_bytes() for run in "ab")
            assert a == b, (sample, file)
    for sample in ("cat", "dog", "long"):
        again = Path("c/samples", sample, "initial.png").read_bytes()
        assert again == Path("a/samples", sample, "best.png").read_bytes()
    metadata = json.loads(Path("a/metadata.json").read_text())
    assert [sample["id"] for sample in metadata["samples"]] == ["cat", "dog", "long"]
    assert metadata["seeds"] == [4, 0, 9]
    assert (metadata["n_samples"], metadata["n_finished"]) == (3, 3)
    lines = [json.loads(line) for line in Path("a/history.jsonl").read_text().splitlines()]
    assert [line["sample"] for line in lines] == [0, 1] * 3 + [2] * 3
    assert "batch 2/2  iteration 2/2" in Path("a/doodl.log").read_text()


def test_a_row_may_have_its_own_class_and_picture_beside_the_file(folder):
    (folder / "in").mkdir()
    write("in/a.png", b"")
    write("in/p.jsonl", '{"prompt": "x", "target": "cat", "image": "a.png"}\n{"prompt": "y"}\n')
    words = ["prompts=in/p.jsonl", "guidance=classifier", "guidance.classifier.target=3"]
    first, second = requests(*words)
    assert (first.target, first.image) == ("cat", str(folder / "in/a.png"))
    assert (second.target, second.image) == (None, None)
    with pytest.raises(UserError, match=r"every row \(001 has none\)"):
        requests(*words[:2])
    with pytest.raises(
        UserError, match=r"guidance.clip_image.images: missing; .* \(001 has none\)"
    ):
        requests(words[0], "guidance=clip_image")


@needs_weights
def test_rows_with_their_own_classes_are_guided_as_one_run_each_would_be(folder):
    words = ["guidance=classifier", "sampler.n_steps=3", "optimizer.n_iters=2", "device=cpu"]
    rows = [{"prompt": "an animal", "seed": 3, "target": name} for name in ("penguin", "snail")]
    write("p.jsonl", "".join(f"{json.dumps(row)}\n" for row in rows))
    assert main(["run", *words, "prompts=p.jsonl", "output_dir=both"]) == 0
    both = json.loads(Path("both/metadata.json").read_text())["samples"]
    for row, sample in zip(rows, both, strict=True):
        given = ["prompt=an animal", "seed=3", f"guidance.classifier.target={row['target']}"]
        assert main(["run", *words, *given, f"output_dir={row['target']}"]) == 0
        (alone,) = json.loads(Path(f"{row['target']}/metadata.json").read_text())["samples"]
        assert alone == sample
        assert "classifier_b" in sample["evaluate"]["best"]


@needs_weights
def test_a_row_whose_class_does_not_exist_exits_2_before_anything_is_written(folder, capsys):
    write("p.jsonl", '{"prompt": "an animal", "target": "pingwin"}\n')
    assert main(["run", "guidance=classifier", "prompts=p.jsonl", "output_dir=out"]) == 2
    err = capsys.readouterr().err
    assert "target=pingwin: no such class" in err
    assert err.count("\n") == 1
    assert not Path("out").exists()
