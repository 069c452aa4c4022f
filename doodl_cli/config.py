"""What a configuration may hold: every key with its type, its range and one line of help.

The defaults are the files of configs/; this module is what they are checked against. It imports
nothing heavy, so that bad input is answered at once.
"""

import difflib
import math
import re
import types
import typing
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields
from typing import Any, TypeVar

from doodl_cli.errors import UserError

T = TypeVar("T")

WHICH = ("initial", "best", "final")


@dataclass(frozen=True)
class Allowed:
    """The values that a key takes besides its type. `above` and `below` are excluded themselves.

    `entries`: the key holds a list of these, each given as its keys or as its first key's value.
    """

    help: str
    least: float | None = None
    most: float | None = None
    above: float | None = None
    below: float | None = None
    choices: tuple[str, ...] = ()
    entries: type | None = None


def key(help: str, default: Any = MISSING, **limits: Any) -> Any:
    """Declare a key of a section; only an entry of a list has defaults here."""
    return field(default=default, metadata={"allowed": Allowed(help, **limits)})


def section() -> Any:
    """Declare keys of their own below a key."""
    return field()


@dataclass(frozen=True)
class Sampler:
    name: str = key("the sampler")
    n_steps: int = key("denoising steps", least=1, most=1000)
    spacing: str | None = key(
        "grid of timesteps; null: the checkpoint's own",
        choices=("leading", "trailing", "linspace"),
    )


@dataclass(frozen=True)
class Edict(Sampler):
    p: float = key("mixing weight of the coupled chains", least=0.5, most=1)


@dataclass(frozen=True)
class Bdia(Sampler):
    gamma: float | None = key(
        "weight of the step back; null: damped, from a picture hardly",
        above=0,
        most=1,
    )


@dataclass(frozen=True)
class Memory:
    name: str = key("how the gradient is made")
    unet_checkpointing: bool = key("keep less of the UNet, and compute it twice for the gradient")


@dataclass(frozen=True)
class Method:
    name: str = key("how the picture is guided")


@dataclass(frozen=True)
class BestOfN(Method):
    n: int = key("noises to choose from, the sample's own among them", least=1, most=100_000)


@dataclass(frozen=True)
class FullChain(Method):
    strength: float = key("factor of the gradient that moves each prediction", least=0)


@dataclass(frozen=True)
class OneStep(FullChain):
    blend: bool = key("score sigma x_0 + (1 - sigma) x_t of the unconditional prediction")


@dataclass(frozen=True)
class Universal(FullChain):
    n_backward: int = key("gradient steps on each estimate of x_0", least=0, most=10_000)
    backward_lr: float = key("size of these steps", above=0)
    n_recurrences: int = key("times that each step is taken; 1, or sampler=ddim", least=1, most=99)


@dataclass(frozen=True)
class NoiseAware(FullChain):
    path: str | None = key("folder of the classifier of noisy latents; null: the model's own")


@dataclass(frozen=True)
class Optimizer:
    name: str = key("the update rule")
    n_iters: int = key("updates of x_T", least=1, most=10_000)
    n_candidates: int = key(
        "noises of which the one of the best picture is optimised, the sample's own among them; "
        "1: its own",
        least=1,
        most=100_000,
    )
    lr: float = key("step size", above=0)
    momentum: float = key("momentum, without damping", least=0, below=1)
    clip: float | None = key("largest element of the gradient; null: no clipping", above=0)
    perturb: float = key("scale of the noise added after an update", least=0)
    renormalize: bool = key("return x_T to its first norm after an update")
    tied: bool = key("keep both latents of the pair equal")
    balance: bool = key("scale the guidances' gradients to one norm before they are weighted")
    schedule: str = key("how lr falls", choices=("constant", "cosine"))
    warmup: int = key("iterations over which lr rises", least=0, most=10_000)
    chi_norm: float = key("weight of ReNO's term on the norm of x_T (0.01 there)", least=0)
    kl_prior: float = key("weight of the divergence of x_T from the prior", least=0)
    stop_on: str | None = key("held-out score whose decline stops a sample; null: none")
    patience: int = key("iterations that it may stay below its highest", least=1, most=10_000)


@dataclass(frozen=True)
class ClipChoice:
    """A CLIP: `ViT-B-32` with the tag or the file of its weights, or `local-dir:FOLDER`."""

    name: str = key("a model of open_clip, local-dir:FOLDER or hf-hub:NAME")
    pretrained: str | None = key("tag or file of its weights", None)
    weight: float = key("weight in the mean", 1.0, above=0)


@dataclass(frozen=True)
class Head:
    """An aesthetic head and the CLIP that it was fitted to, null for a published head's own."""

    file: str = key("a published head's name, or a file of its layout")
    clip: str | None = key("a model of open_clip, local-dir:FOLDER or hf-hub:NAME", None)
    pretrained: str | None = key("tag or file of the CLIP's weights", None)
    weight: float = key("weight in the mean", 1.0, above=0)


@dataclass(frozen=True)
class GuidanceSettings:
    weight: float = key("factor of this loss in the sum; not 0")
    n_crops: int = key("random crops that are scored; 0: the whole picture", least=0, most=1024)


@dataclass(frozen=True)
class Aesthetic(GuidanceSettings):
    target: float | None = key("score to reach; null: as high as it goes")
    heads: list[Head] | None = key(
        "a list of {file, clip, pretrained, weight}, or of files; null: the model's own",
        entries=Head,
    )


@dataclass(frozen=True)
class Clips(GuidanceSettings):
    reduce: str = key("over the crops", choices=("min", "mean"))
    clips: list[ClipChoice] | None = key(
        "a list of {name, pretrained, weight}, or of names; null: the model's own",
        entries=ClipChoice,
    )


@dataclass(frozen=True)
class ClipText(Clips):
    pass


@dataclass(frozen=True)
class ClipImage(Clips):
    images: str | list[str] | None = key(
        "a path of a reference picture, a pattern, or a list: [a,b]; null: each row's own"
    )


@dataclass(frozen=True)
class Classifier(GuidanceSettings):
    target: str | int | None = key("the class to show, by name or number; null: each row's own")
    source: str = key("what `name` and `path` mean", choices=("embedded", "transformers", "timm"))
    name: str | None = key("a model of timm, or of the Hugging Face hub")
    path: str | None = key("a folder or file of weights")


@dataclass(frozen=True)
class Preference(GuidanceSettings):
    path: str | None = key("folder or file of its weights; null: fetched once")


@dataclass(frozen=True)
class Custom(GuidanceSettings):
    target: str = key("package.module.function: (images, prompts) to one loss a sample")


@dataclass(frozen=True)
class Evaluation:
    """A held-out score that takes no settings; others take those of a guidance but LOSS_KEYS."""


@dataclass(frozen=True)
class Init:
    name: str = key("what x_T starts from")


@dataclass(frozen=True)
class ImageInit(Init):
    path: str | None = key("a PNG, JPEG or WebP picture")


@dataclass(frozen=True)
class LatentsInit(Init):
    path: str | None = key("a run directory, whose saved noise it is")
    which: str = key("noise of that run", choices=WHICH)


@dataclass(frozen=True)
class Model:
    name: str = key("the model")
    path: str | None = key("folder of its weights; null: where they belong")
    n_crops: int = key("guidance.*.n_crops where a guidance looks at crops", least=0, most=1024)
    n_iters: int = key("optimizer.n_iters of this model", least=1, most=10_000)
    clip: float | None = key("optimizer.clip of this model; null: no clipping", above=0)
    heads: list[Head] | None = key("guidance.aesthetic.heads; null: its own", entries=Head)
    clips: list[ClipChoice] | None = key("the CLIPs that guide; null: its own", entries=ClipChoice)


@dataclass(frozen=True)
class Checkpoint(Model):
    """A diffusers checkpoint; it brings no scorers of its own."""

    path: str | None = key("a diffusers folder, or a name on the Hugging Face hub")
    variant: str | None = key("variant of its weights, as fp16; null: the plain ones")
    height: int | None = key("of the pictures, a multiple of 8; null: its own", least=8)
    width: int | None = key("of the pictures, a multiple of 8; null: its own", least=8)
    held_out: list[ClipChoice] | None = key(
        "the CLIP that measures as clip_text_b; null: none", entries=ClipChoice
    )
    lora: str | None = key("file of a LoRA to merge; null: none")
    lora_scale: float = key("strength of the LoRA")


MODELS = {
    "emoji": Model,
    "diffusers": Checkpoint,
    "sd14": Checkpoint,
    "sd15": Checkpoint,
    "sd2": Checkpoint,
    "sd21": Checkpoint,
    "sd_turbo": Checkpoint,
    "sdxl": Checkpoint,
    "sdxl_turbo": Checkpoint,
}
SAMPLERS = {"bdia": Bdia, "edict": Edict, "obelm": Sampler, "ddim": Sampler}
METHODS = {
    "doodl": Method,
    "none": Method,
    "best_of_n": BestOfN,
    "one_step": OneStep,
    "full_chain": FullChain,
    "universal": Universal,
    "noise_aware": NoiseAware,
}
GUIDED = ("one_step", "full_chain", "universal", "noise_aware")  # on the way from x_T to x_0
OPTIMIZERS = {"doodl": Optimizer, "adam": Optimizer, "nesterov": Optimizer}
GUIDANCES = {
    "aesthetic": Aesthetic,
    "classifier": Classifier,
    "clip_image": ClipImage,
    "clip_text": ClipText,
    "colourfulness": GuidanceSettings,
    "custom": Custom,
    "hps": Preference,
    "pickscore": Preference,
    "symmetry": GuidanceSettings,
}
EVALUATIONS: dict[str, type[Evaluation] | type[GuidanceSettings]] = {
    "clip_text_b": Evaluation,
    **GUIDANCES,
}
LOSS_KEYS = {"weight": 1.0, "n_crops": 0, "reduce": "mean"}  # of the loss, not of the score
INITS = {"noise": Init, "image": ImageInit, "latents": LatentsInit}
MEMORIES = dict.fromkeys(("auto", "checkpoint", "full", "reversible"), Memory)
SINKS = ("tensorboard", "wandb")
DTYPES = ("float16", "bfloat16", "tf32", "float32", "float64")
GROUPS = (
    "model", "method", "sampler", "optimizer", "memory", "guidance", "evaluate", "init",
    "experiment",
)  # fmt: skip
AUTO_BATCH = 32
BEFORE = {"deterministic": False}  # what was done before there was the key
OF_VERB = {
    "run": ("resume", "force", "max_seconds"),
    "sample": ("run", "which"),
    "invert": ("image",),
}


@dataclass(frozen=True)
class Config:
    """A checked configuration. `prompt` is None where none was given."""

    prompt: str | None = key("text of the picture, needed; any characters")
    prompts: str | None = key("a file of them instead: a prompt a line, .csv or .jsonl")
    negative_prompt: str = key("text to keep away from")
    seed: Any = key("a whole number, or a list of them: one picture each")
    n_seeds: int | None = key("as many seeds, from `seed` on", least=1, most=100_000)
    batch_size: Any = key("samples that are optimised together, or auto: what fits")
    shard: str | None = key("i/n: of all samples each n-th, from the i-th (0 to n-1) on")
    cfg_scale: float = key("classifier-free guidance scale", least=0)
    device: str = key("auto, cpu, cuda, cuda:N or mps")
    dtype: str = key("what the networks compute in", choices=DTYPES)
    deterministic: bool = key("on a GPU, too, the same digits whenever a command is repeated")
    compile: bool = key("compile the UNet, which takes minutes and then saves time; on a GPU")
    output_dir: str = key("the run directory, new or empty")
    log: str | list[str] | None = key(
        "tensorboard, wandb or a list of them, to write to as well; null: none"
    )
    model: Model = section()
    method: Method = section()
    sampler: Sampler = section()
    optimizer: Optimizer = section()
    memory: Memory = section()
    guidance: dict[str, GuidanceSettings] = section()
    evaluate: dict[str, Evaluation | GuidanceSettings] = section()
    init: Init = section()

    @property
    def seeds(self) -> list[int]:
        """The seeds, one a sample and prompt."""
        if self.n_seeds is not None:
            return list(range(self.seed, self.seed + self.n_seeds))
        return self.seed if isinstance(self.seed, list) else [self.seed]

    @property
    def n_together(self) -> int:
        """How many samples make a batch; `auto` takes many, of which as many as fit go together."""
        return AUTO_BATCH if self.batch_size == "auto" else self.batch_size

    @property
    def guides_on_the_way(self) -> bool:
        """Whether the picture is guided between x_T and x_0, and x_T alone does not make it."""
        return self.method.name in GUIDED

    @property
    def differentiates_chain(self) -> bool:
        """Whether gradients are the finished picture's, through the whole chain."""
        return self.method.name in ("doodl", "full_chain")

    @property
    def last_iteration(self) -> int:
        """The iteration of the last record of a sample; the first, the plain picture, is 0."""
        if self.method.name == "doodl":
            return self.n_searched + self.optimizer.n_iters
        if isinstance(self.method, BestOfN):
            return self.method.n - 1
        return int(self.guides_on_the_way)

    @property
    def n_searched(self) -> int:
        """How many pictures `doodl` makes to choose a noise, before it optimises."""
        n = self.optimizer.n_candidates
        return n if self.method.name == "doodl" and n > 1 else 0

    @property
    def held_out(self) -> list[str]:
        """The names of the scores that are measured, twins of the guidances included."""
        twins = {"clip_image": "clip_image_b", "classifier": "classifier_b"}
        return [*self.evaluate, *(twins[name] for name in self.guidance if name in twins)]

    @property
    def sinks(self) -> list[str]:
        """The names in `log`."""
        return [self.log] if isinstance(self.log, str) else self.log or []

    def to_dict(self) -> dict[str, Any]:
        """Return what `read_config` reads."""
        return asdict(self)


def read_config(values: Mapping[str, Any]) -> Config:
    """Check plain values, as a composed or saved configuration holds them.

    A saved one may be older than a key of BEFORE. Raises UserError with the first key that is
    unknown, missing or out of range.
    """
    values = {**BEFORE, **values}
    model = read_choice(MODELS, values.pop("model", None), "model")
    method = read_choice(METHODS, values.pop("method", None), "method")
    sampler = read_choice(SAMPLERS, values.pop("sampler", None), "sampler")
    optimizer = read_choice(OPTIMIZERS, values.pop("optimizer", None), "optimizer")
    memory = read_choice(MEMORIES, values.pop("memory", None), "memory")
    guidance = {
        name: read_guidance(name, section)
        for name, section in mapping(values.pop("guidance", None) or {}, "guidance").items()
    }
    evaluate = {
        name: read_evaluation(name, section)
        for name, section in mapping(values.pop("evaluate", None) or {}, "evaluate").items()
    }
    init = read_choice(INITS, values.pop("init", None), "init")
    config = Config(
        model=model,
        method=method,
        sampler=sampler,
        optimizer=optimizer,
        memory=memory,
        guidance=guidance,
        evaluate=evaluate,
        init=init,
        **read_keys(Config, values, ""),
    )
    check(config)
    return config


def check(config: Config) -> None:
    """Check what one key's range cannot say."""
    if config.n_seeds is not None and not is_whole(config.seed):
        raise UserError(
            f"seed={show(config.seed)}: must be the first seed where n_seeds={config.n_seeds}"
        )
    seeds = config.seeds
    if not seeds or not all(is_whole(seed) and 0 <= seed < 2**63 for seed in seeds):
        raise UserError(
            f"seed={show(config.seed)}: must be a whole number from 0, or a list: [0,1]"
        )
    if not re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", config.device):
        raise UserError(f"device={show(config.device)}: must be auto, cpu, cuda, cuda:N or mps")
    check_method(config)
    check_model(config)
    size = config.batch_size
    if size != "auto" and not (is_whole(size) and 1 <= size <= 10_000):
        raise UserError(f"batch_size={show(size)}: must be a whole number from 1 to 10000, or auto")
    if config.compile and config.device != "auto" and not config.device.startswith("cuda"):
        raise UserError(f"compile=true: device={config.device}; must be device=cuda")
    if config.compile and config.memory.name == "full":
        raise UserError(
            "compile=true: memory=full differentiates evaluations that round otherwise than those "
            "that render; must be memory=auto, reversible or checkpoint"
        )
    if config.memory.name == "reversible" and config.sampler.name == "ddim":
        raise UserError(
            "memory=reversible: sampler=ddim cannot be inverted; must be memory=auto, checkpoint "
            "or full, or sampler=bdia, edict or obelm"
        )
    if isinstance(config.init, ImageInit | LatentsInit) and not config.init.path:
        raise UserError(
            f"init.path: missing; must be {declared_keys(type(config.init))['path'][1].help}"
        )
    if config.init.name == "image" and config.sampler.name == "ddim":
        raise UserError(
            "init=image: sampler=ddim cannot be inverted; must be sampler=bdia, edict or obelm"
        )
    if config.optimizer.stop_on not in (None, *config.held_out):
        names = ", ".join(config.held_out) or "one that evaluate=[...] names"
        raise UserError(
            f"optimizer.stop_on={show(config.optimizer.stop_on)}: must be {names}, or null"
        )
    if config.prompt is not None and config.prompts is not None:
        raise UserError(f"prompts={config.prompts}: must be given without prompt")
    shard = re.fullmatch(r"(\d{1,9})/(\d{1,9})", config.shard or "0/1")
    if not shard or int(shard[1]) >= int(shard[2]):
        raise UserError(f"shard={show(config.shard)}: must be i/n, with i from 0 to n-1")
    for name in config.sinks:
        if name not in SINKS:
            raise UserError(f"log={show(name)}: must be {' or '.join(SINKS)}, or a list of them")
    if config.output_dir == "":
        raise UserError("output_dir=: must name a folder")
    for name, text in (("prompt", config.prompt), ("negative_prompt", config.negative_prompt)):
        if text and any("\ud800" <= character <= "\udfff" for character in text):
            raise UserError(f"{name}={text!r}: must be valid UTF-8")


def check_method(config: Config) -> None:
    """Check that a method goes with what it is asked to guide."""
    method, sampler = config.method, config.sampler.name
    if isinstance(method, BestOfN) and config.init.name != "noise":
        raise UserError(f"init={config.init.name}: method=best_of_n draws noise; must be noise")
    if config.n_searched and config.init.name != "noise":
        raise UserError(
            f"optimizer.n_candidates={config.n_searched}: init={config.init.name} is the one "
            "start; must be 1, or init=noise"
        )
    if isinstance(method, OneStep) and method.blend and config.cfg_scale == 1:
        raise UserError(
            "method.blend=true: with cfg_scale=1 there is no unconditional prediction; must be "
            "false, or another cfg_scale"
        )
    if isinstance(method, Universal) and method.n_recurrences > 1 and sampler != "ddim":
        raise UserError(
            f"method.n_recurrences={method.n_recurrences}: sampler={sampler} steps from two "
            "states, of which one cannot be made noisy again; must be 1, or sampler=ddim"
        )
    if isinstance(method, NoiseAware):
        if isinstance(config.model, Checkpoint):
            raise UserError(
                f"method=noise_aware: model={config.model.name} has no classifier of noisy "
                "latents; must be model=emoji"
            )
        chosen = config.guidance.get("classifier")
        own = isinstance(chosen, Classifier) and chosen.source == "embedded"
        if config.guidance and not (own and len(config.guidance) == 1):
            raise UserError(
                f"guidance=[{','.join(config.guidance)}]: method=noise_aware is guided by a "
                "classifier of noisy latents; must be classifier, with source=embedded"
            )


def check_model(config: Config) -> None:
    """Check a model's size, and that what scores its pictures is its own or named."""
    model = config.model
    if not isinstance(model, Checkpoint):
        return
    if model.held_out and len(model.held_out) > 1:
        raise UserError("model.held_out: several; must be one CLIP")
    if not model.path:
        raise UserError(f"model.path: missing; must be {declared_keys(Checkpoint)['path'][1].help}")
    for name in ("height", "width"):
        if (size := getattr(model, name)) and size % 8:
            raise UserError(f"model.{name}={size}: must be a multiple of 8")
    sections: Mapping[str, Mapping[str, Any]] = {
        "guidance": config.guidance,
        "evaluate": config.evaluate,
    }
    for group, settings in sections.items():
        for name, chosen in settings.items():
            for key in ("heads", "clips"):
                if getattr(chosen, key, chosen) is None:
                    raise UserError(
                        f"{group}.{name}.{key}=null: model={model.name} has none of its own; must "
                        f"be {declared_keys(type(chosen))[key][1].help}"
                    )
            if isinstance(chosen, Classifier) and chosen.source == "embedded":
                raise UserError(
                    f"{group}.{name}.source=embedded: model={model.name} has no classifier of its "
                    "own; must be transformers or timm"
                )
    twins = [name for name in config.held_out if name in ("clip_text_b", "clip_image_b")]
    if twins and not model.held_out:
        raise UserError(
            f"model.held_out=null: model={model.name} has no CLIP of its own to measure "
            f"{twins[0]}; must be {{name, pretrained}}"
        )


def read_guidance(name: str, section: Any) -> GuidanceSettings:
    if name not in GUIDANCES:
        raise UserError(f"guidance.{name}: unknown; must be one of {', '.join(GUIDANCES)}")
    settings: GuidanceSettings = read_section(GUIDANCES[name], section, f"guidance.{name}")
    if settings.weight == 0:
        raise UserError(f"guidance.{name}.weight=0: must be a number other than 0")
    if isinstance(settings, Classifier):
        check_classifier(settings)
    return settings


def read_evaluation(name: str, section: Any) -> Evaluation | GuidanceSettings:
    if name not in EVALUATIONS:
        raise UserError(f"evaluate.{name}: unknown; must be one of {', '.join(EVALUATIONS)}")
    cls = EVALUATIONS[name]
    fixed = {key: value for key, value in LOSS_KEYS.items() if key in declared_keys(cls)}
    section = {**fixed, **mapping(section, f"evaluate.{name}")}
    settings: Evaluation | GuidanceSettings = read_section(cls, section, f"evaluate.{name}")
    if isinstance(settings, Classifier):
        check_classifier(settings, "evaluate")
    return settings


def check_classifier(settings: Classifier, group: str = "guidance") -> None:
    """Check that what says where a classifier is goes together."""
    given = [name for name in ("name", "path") if getattr(settings, name) is not None]
    allowed: dict[str, tuple[list[list[str]], str]] = {
        "embedded": ([[]], "neither name nor path, or source=transformers or timm"),
        "transformers": ([["name"], ["path"]], "either its name on the hub or a path"),
        "timm": ([["name"], ["path"], ["name", "path"]], "a name, a path or both"),
    }
    sets, words = allowed[settings.source]
    if given not in sets:
        what = " and ".join(given) or "no name or path"
        raise UserError(
            f"{group}.classifier.source={settings.source}: given with {what}; must have {words}"
        )


def read_choice(classes: Mapping[str, type[T]], section: Any, name: str) -> T:
    """Read the section of a group, whose `name` says which class it is."""
    choice = mapping(section, name).get("name")
    if not isinstance(choice, str) or choice not in classes:
        raise UserError(f"{name}={show(choice)}: must be one of {', '.join(classes)}")
    return read_section(classes[choice], section, name)


def read_section(cls: type[T], section: Any, name: str) -> T:
    return cls(**read_keys(cls, mapping(section, name), f"{name}."))


def read_keys(cls: type, values: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    """Return the checked value of every declared key of a section."""
    declared = declared_keys(cls)
    for name, value in values.items():
        if name not in declared:
            raise unknown_key(f"{prefix}{name}", value)
    checked = dict(values)
    for name, (kind, allowed) in declared.items():
        if name not in values or (values[name] is None and not fits(None, kind, allowed)):
            raise UserError(f"{prefix}{name}: missing; must be {describe(kind, allowed)}")
        if allowed.entries and values[name] is not None:
            checked[name] = read_entries(allowed.entries, values[name], f"{prefix}{name}")
        elif not fits(values[name], kind, allowed):
            raise UserError(
                f"{prefix}{name}={show(values[name])}: must be {describe(kind, allowed)}"
            )
    return checked


def read_entries(cls: type[T], value: Any, name: str) -> list[T]:
    """Read a list of entries, or one; an entry is a section or the value of its first key."""
    values = value if isinstance(value, list) else [value]
    declared = declared_keys(cls)
    defaults = {f.name: f.default for f in fields(cls) if f.default is not MISSING}  # type: ignore[arg-type]
    first = next(iter(declared))
    if not values:
        raise UserError(f"{name}=[]: must have an entry")
    entries = []
    for i, entry in enumerate(values):
        entry = entry if isinstance(entry, Mapping) else {first: entry}
        for key in entry:
            if key not in declared:
                keys = ", ".join(declared)
                raise UserError(f"{name}[{i}].{show(key)}: unknown key; must be one of {keys}")
        entries.append(read_section(cls, {**defaults, **entry}, f"{name}[{i}]"))
    return entries


def declared_keys(cls: type) -> dict[str, tuple[Any, Allowed]]:
    """Return the keys of a section with their type and what is allowed."""
    return {f.name: (f.type, f.metadata["allowed"]) for f in fields(cls) if f.metadata}


def all_keys() -> Iterator[tuple[str, Any, Allowed, str]]:
    """Yield every key that any configuration has: name, type, what is allowed, its choice."""
    sections: list[tuple[str, type, str]] = [("", Config, "")]
    sections += [("model.", cls, f"model={name}") for name, cls in MODELS.items()]
    sections += [("sampler.", cls, f"sampler={name}") for name, cls in SAMPLERS.items()]
    sections += [("method.", cls, f"method={name}") for name, cls in METHODS.items()]
    sections += [("optimizer.", cls, f"optimizer={name}") for name, cls in OPTIMIZERS.items()]
    sections += [("memory.", cls, f"memory={name}") for name, cls in MEMORIES.items()]
    sections += [(f"guidance.{name}.", cls, f"guidance={name}") for name, cls in GUIDANCES.items()]
    sections += [("init.", cls, f"init={name}") for name, cls in INITS.items()]
    sections += [
        (f"evaluate.{name}.", cls, f"evaluate={name}") for name, cls in EVALUATIONS.items()
    ]
    for prefix, cls, choice in sections:
        for name, (kind, allowed) in declared_keys(cls).items():
            if not (prefix.startswith("evaluate.") and name in LOSS_KEYS):
                yield f"{prefix}{name}", kind, allowed, choice


def known_keys(verb: str = "run") -> list[str]:
    """Return the keys and groups of a verb."""
    keys = [name for name, *_ in all_keys()] + list(GROUPS)
    return list(dict.fromkeys([*keys, *OF_VERB.get(verb, ())]))


def unknown_key(name: str, value: Any = None, verb: str = "run") -> UserError:
    """Return the error for a key that does not exist, or not with the choices that were made."""
    known = known_keys(verb)
    what = name if value is None else f"{name}={show(value)}"
    owners = [choice for key, *_, choice in all_keys() if key == name and choice]
    if owners:
        return UserError(f"{what}: needs {' or '.join(owners)}")
    section = name.rpartition(".")[0]
    siblings = [key for key in known if section and key.rpartition(".")[0] == section]
    near = difflib.get_close_matches(name, siblings or known, n=1, cutoff=0.85 if siblings else 0.6)
    leaves = {key.rpartition(".")[2]: key for key in reversed(known)}
    if not siblings and name in leaves:  # `n_steps` for sampler.n_steps
        near = [leaves[name]]
    elif not siblings and not near:
        near = [leaves[leaf] for leaf in difflib.get_close_matches(name, leaves, n=1)]
    hint = f"did you mean {near[0]}?" if near else f"`doodl {verb} --help` lists the keys"
    if siblings:
        hint = f"must be one of {', '.join(siblings)}" + (f"; {hint}" if near else "")
    return UserError(f"{what}: unknown key; {hint}")


def fits(value: Any, kind: Any, allowed: Allowed) -> bool:
    """Whether a value has the type `kind` (`X | Y`, `list[X]`) and lies in the allowed range."""
    if isinstance(kind, types.UnionType):
        return any(fits(value, one, allowed) for one in typing.get_args(kind))
    if kind is types.NoneType:
        return value is None
    if typing.get_origin(kind) is list:
        (kind,) = typing.get_args(kind)
        return isinstance(value, list) and value != [] and all(isinstance(v, kind) for v in value)
    if kind is int:
        if not is_whole(value):
            return False
    elif kind is float:
        if isinstance(value, bool) or not isinstance(value, int | float) or not is_finite(value):
            return False
    elif kind is not Any and not isinstance(value, kind):
        return False
    return (
        (allowed.least is None or value >= allowed.least)
        and (allowed.most is None or value <= allowed.most)
        and (allowed.above is None or value > allowed.above)
        and (allowed.below is None or value < allowed.below)
        and (not allowed.choices or value in allowed.choices)
    )


def describe(kind: Any, allowed: Allowed) -> str:
    """Say in words what a key takes."""
    null = ""
    kinds = typing.get_args(kind) if isinstance(kind, types.UnionType) else (kind,)
    if types.NoneType in kinds:
        null = " or null"
    (kind, *others) = [one for one in kinds if one is not types.NoneType]
    if allowed.choices:
        return f"one of {', '.join(allowed.choices)}{null}"
    if others or allowed.entries or (kind is str and not null):
        return allowed.help
    words = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
    limits = [
        f"{word} {limit:g}"
        for word, limit in (
            ("above", allowed.above),
            ("from", allowed.least),
            ("to", allowed.most),
            ("below", allowed.below),
        )
        if limit is not None
    ]
    return " ".join([words.get(kind, allowed.help), *limits]) + null


def show(value: Any) -> str:
    """Write a value as the command line does, on one line."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    text = str(value)
    text = text if text.isprintable() else repr(text)
    return text if len(text) <= 200 else f"{text[:200]}..."


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested values by their dotted names."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value
    return flat


def mapping(section: Any, name: str) -> Mapping[str, Any]:
    if not isinstance(section, Mapping):
        raise UserError(f"{name}={show(section)}: must be a section of keys")
    return section


def is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def is_finite(value: float) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # a whole number beyond the floats
        return False
