"""The pictures that a configuration asks for: one request a sample, from its prompts and seeds.

A file of prompts is checked as a whole before anything starts. A request carries all that its
picture depends on, so that the order, the batch and the shard it comes in do not matter.
"""

import csv
import io
import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from doodl_cli.config import Classifier, ClipImage, Config, declared_keys, is_whole, show
from doodl_cli.errors import UserError

COLUMNS = ("prompt", "seed", "negative_prompt", "id", "target", "image")
FILE = "prompts.jsonl"
OWN_CONDITIONS = {Classifier: ("target", "target"), ClipImage: ("images", "image")}  # key, column
PROMPT_COLUMNS = {"Prompt": "prompt", "Prompts": "prompt"}  # of PartiPrompts and DrawBench
NAMED_AT_MOST = 5  # bad rows in one message


@dataclass(frozen=True)
class Request:
    """A sample: its text and seed, its number among all, and the name of its folder.

    `target` and `image`, a path, are its own class and reference picture, if it has any.
    """

    number: int
    name: str
    prompt: str
    negative_prompt: str
    seed: int
    target: str | int | None = None
    image: str | None = None


def list_requests(config: Config) -> list[Request]:
    """Return every prompt with every seed, or with its own, as far as they are in the shard.

    Raises UserError for a file of prompts that cannot be used.
    """
    requests: list[Request] = []
    rows: list[dict[str, Any]]
    rows = read_prompts(config.prompts) if config.prompts else [{"prompt": config.prompt or ""}]
    for row in rows:
        seeds = [row["seed"]] if "seed" in row else config.seeds
        for seed in seeds:
            number = len(requests)
            name = row.get("id", f"{number:03}")
            if "id" in row and len(seeds) > 1:
                name = f"{name}-{seed}"
            negative_prompt = row.get("negative_prompt", config.negative_prompt)
            own = row.get("target"), row.get("image")
            requests.append(Request(number, name, row["prompt"], negative_prompt, seed, *own))
    known: set[str] = set()
    for request in requests:
        if request.name.casefold() in known:  # some file systems ignore the case
            raise UserError(f"prompts={config.prompts}: id {request.name}: given twice")
        known.add(request.name.casefold())
    check_conditions(config, requests)
    if config.shard is None:
        return requests
    i, n = map(int, config.shard.split("/"))
    if not requests[i::n]:
        raise UserError(f"shard={config.shard}: empty; there are {len(requests)} samples in all")
    return requests[i::n]


def check_conditions(config: Config, requests: Sequence[Request]) -> None:
    """Check that every sample has what its scores ask for, its own or one for all."""
    for group, chosen in (("guidance", config.guidance), ("evaluate", config.evaluate)):
        for name, settings in chosen.items():
            key, column = OWN_CONDITIONS.get(type(settings), ("", ""))
            if not key or getattr(settings, key) is not None:
                continue
            without = [r.name for r in requests if getattr(r, column) is None]
            if without:
                allowed = declared_keys(type(settings))[key][1].help
                rows = f" in every row ({without[0]} has none)" if config.prompts else ""
                raise UserError(f"{group}.{name}.{key}: missing; must be {allowed}{rows}")


def read_prompts(path: str) -> list[dict[str, Any]]:
    """Return the rows of a file: prompt, and the other columns where they are given.

    `.csv` and `.jsonl` say which column is which; any other file holds a prompt a line.
    Raises UserError, which names the bad rows by their lines.
    """
    return read_rows(path, "prompts", lambda row: check_row(row, Path(path).expanduser().parent))


def read_rows(
    path: str, key: str, check: Callable[[dict[str, Any]], dict[str, Any] | str]
) -> list[dict[str, Any]]:
    """Return the rows that `check` makes of a file's; a row that it refuses is its reason.

    `key` is what the user gave the path by. Raises UserError, which names the bad rows.
    """
    try:
        data = Path(path).expanduser().read_bytes()
    except (OSError, ValueError, RuntimeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{key}={path}: must be a file that can be read ({reason})") from error
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise UserError(f"{key}={path}: line {line}: not UTF-8") from error
    reader = READERS.get(Path(path).suffix.lower(), read_lines)
    rows: list[dict[str, Any]] = []
    errors: list[str] = []
    ids: dict[str, int] = {}
    for line, row in reader(text):
        problem = row if isinstance(row, str) else check(row)
        if isinstance(problem, str):
            errors.append(f"line {line}: {problem}")
            continue
        first = ids.setdefault(problem.get("id", f"line {line}"), line)
        if first != line:
            errors.append(f"line {line}: id {problem['id']} is also that of line {first}")
        rows.append(problem)
    if errors:
        more = len(errors) - NAMED_AT_MOST
        rest = f"; and {more} more" if more > 0 else ""
        raise UserError(f"{key}={path}: {'; '.join(errors[:NAMED_AT_MOST])}{rest}")
    if not rows:
        raise UserError(f"{key}={path}: holds no prompt")
    return rows


def read_lines(text: str) -> Iterator[tuple[int, dict[str, Any] | str]]:
    """Yield the lines with their numbers; a row that cannot be read is what is wrong with it."""
    lines = text.rstrip().split("\n") if text.strip() else []
    for i, line in enumerate(lines, 1):
        yield i, {"prompt": line.rstrip("\r")}


def read_jsonl(text: str) -> Iterator[tuple[int, dict[str, Any] | str]]:
    for i, row in read_lines(text):
        assert isinstance(row, dict)
        if not row["prompt"].strip():
            yield i, "empty"
            continue
        try:
            value = json.loads(row["prompt"])
        except (ValueError, RecursionError) as error:
            yield i, f"not JSON ({error})"
            continue
        yield i, value if isinstance(value, dict) else 'must be an object: {"prompt": ...}'


def read_csv(text: str, **form: Any) -> Iterator[tuple[int, dict[str, Any] | str]]:
    reader = csv.reader(io.StringIO(text, newline=""), strict=True, **form)
    begins, header = 1, None
    try:
        for cells in reader:
            if header is None:
                header = [cell.strip() for cell in cells]
                header = [PROMPT_COLUMNS.get(name, name) for name in header]
                if "prompt" not in header or len(set(header)) < len(header):
                    yield 1, "the first line must name the columns, prompt among them, each once"
                    return
            elif len(cells) > len(header):
                yield begins, f"{len(cells)} cells under {len(header)} columns"
            else:
                given = zip(header, cells, strict=False)
                row = {name: cell for name, cell in given if cell or name == "prompt"}
                yield begins, row or {"prompt": ""}
            begins = reader.line_num + 1
    except csv.Error as error:
        yield begins, f"not CSV ({error})"


READERS: dict[str, Callable[[str], Iterator[tuple[int, dict[str, Any] | str]]]] = {
    ".csv": read_csv,
    ".jsonl": read_jsonl,
    ".tsv": lambda text: read_csv(text, delimiter="\t", quoting=csv.QUOTE_NONE),
}


def check_row(row: dict[str, Any], folder: Path) -> dict[str, Any] | str:
    """Return a row of a file in `folder` as it is used, or what is wrong with it."""
    row = {name: value for name, value in row.items() if value is not None}
    for name in row:
        if name not in COLUMNS:
            return f"{show(name)}: unknown column; must be one of {', '.join(COLUMNS)}"
    if "prompt" not in row:
        return "prompt: missing"
    for name in ("prompt", "negative_prompt"):
        if not isinstance(row.get(name, ""), str):
            return f"{name}={show(row[name])}: must be text"
        if any("\ud800" <= character <= "\udfff" for character in row.get(name, "")):
            return f"{name}: must be valid UTF-8"
    if not row["prompt"].strip():
        return "empty"
    if "seed" in row:
        seed = row["seed"]
        if isinstance(seed, str) and re.fullmatch(r"\s*[0-9]{1,19}\s*", seed):
            seed = int(seed)
        if not is_whole(seed) or not 0 <= seed < 2**63:
            return f"seed={show(row['seed'])}: must be a whole number from 0"
        row["seed"] = seed
    if "id" in row:
        name = str(row["id"]) if is_whole(row["id"]) else row["id"]
        if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z0-9_-][\w.-]{0,99}", name, re.A):
            return f"id={show(row['id'])}: must be letters, digits, - _ . as in a folder's name"
        row["id"] = name
    if "target" in row and not (is_whole(row["target"]) or isinstance(row["target"], str)):
        return f"target={show(row['target'])}: must be a class, by name or number"
    if "image" in row:
        if not isinstance(row["image"], str) or not (folder / row["image"]).is_file():
            return f"image={show(row['image'])}: no such file; paths start at the file's folder"
        row["image"] = str((folder / row["image"]).absolute())
    return row


def to_jsonl(requests: Sequence[Request]) -> str:
    """Return requests as a run directory keeps them, whatever happens to the user's file."""
    return "".join(f"{json.dumps(asdict(r), ensure_ascii=False)}\n" for r in requests)


def read_requests(config: Config, folder: Path) -> list[Request]:
    """Return the requests of the run in a folder. Raises UserError, OSError or ValueError."""
    if not config.prompts:
        return list_requests(config)
    lines = (folder / FILE).read_text(encoding="utf-8").rstrip("\n").split("\n")
    return [Request(**json.loads(line)) for line in lines]
