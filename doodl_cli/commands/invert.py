"""`doodl invert`: find the x_T that renders a picture of the user's, and say how well it does."""

from dataclasses import replace

from omegaconf import DictConfig

from doodl_cli.commands.application import launch, resolve
from doodl_cli.commands.destination import claim, free_destination, hydra_files, is_pattern
from doodl_cli.commands.saved import check_plain
from doodl_cli.config import Config, ImageInit, read_config, show
from doodl_cli.errors import UserError
from doodl_cli.requests import list_requests


def main(words: list[str]) -> None:
    launch("invert", invert, check, words)


def check(cfg: DictConfig) -> Config:
    """Return the checked configuration, whose picture can be read. Raises UserError."""
    from doodl_cli.pictures import read_picture

    values = resolve(cfg)
    image = values.pop("image")
    if not isinstance(image, str) or not image:
        raise UserError("image: missing; must be a PNG, JPEG or WebP picture: image=photo.png")
    config = read_config(values)
    check_plain(config, "invert")
    if config.init != ImageInit("image", image):
        raise UserError(f"init={config.init.name}: here the picture is given by image={image}")
    if config.prompts is not None:
        raise UserError(f"prompts={config.prompts}: must be one prompt: a picture has one x_T")
    if len(config.seeds) != 1:
        raise UserError(f"seed={show(config.seed)}: must be one number: a picture has one x_T")
    read_picture(image, "image")
    return config


def invert(cfg: DictConfig) -> None:
    """Check, load, invert, render again and save. Nothing is written before it is done."""
    config = check(cfg)
    path = free_destination(cfg)

    from doodl_cli.commands import task
    from doodl_cli.commands.start import describe_file, invert_picture, reconstruct
    from doodl_cli.pictures import psnr, read_picture
    from doodl_cli.run_directory import RunDirectory, to_image, to_png

    device = task.find_device(config.device)
    config = task.settle(config, device)
    model = task.load(config, device)
    cost = task.Meter(model, device)
    problem = task.make_problem(config, model, list_requests(config))
    facts, hydra = task.collect_facts(config, model, problem), hydra_files(cfg)
    inversion = invert_picture(read_picture(cfg.image, "image"), config, model, problem)
    found = reconstruct(inversion, problem)
    autoencoder_psnr = psnr(found.autoencoded, found.original)
    round_trip_psnr = psnr(found.rendered[0], found.original)
    facts["init"] = {
        "name": config.init.name,
        **describe_file(cfg.image),
        "autoencoder_psnr": autoencoder_psnr,
        "round_trip_psnr": round_trip_psnr,
    }
    path = claim(path, is_pattern(cfg))
    config = replace(config, output_dir=str(path))
    with RunDirectory(path, config, facts, cost, hydra) as directory:
        directory.round_trip_error = found.error
        directory.add_inversions(found.rendered, inversion.x_T)
        for name, image in (("original", found.original), ("autoencoded", found.autoencoded)):
            directory.write(f"samples/000/{name}.png", to_png(to_image(image)))
    print(f"encoded and decoded    {autoencoder_psnr:.2f} dB")
    print(f"inverted and rendered  {round_trip_psnr:.2f} dB")
    print(path)
