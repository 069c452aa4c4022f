"""Imports point one way, and importing the core brings in no foreign model."""

import subprocess
import sys

import pytest

FOREIGN = ("diffusers", "transformers", "open_clip", "hydra", "omegaconf", "matplotlib", "rich")
LIGHT = ("doodl_cli.cli", "doodl_cli.config", "doodl_cli.pictures")


def imported_by(module: str) -> set[str]:
    """Return the top-level packages in a fresh interpreter after one import."""
    code = f"import sys, {module}; print(*sorted({{name.split('.')[0] for name in sys.modules}}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


@pytest.mark.parametrize("package", ["sampling", "gradient", "guidance", "optimize", "methods"])
def test_the_core_imports_torch_alone(package):
    found = imported_by(f"doodl_cli.{package}")
    assert "torch" in found
    assert not found.intersection(FOREIGN)


@pytest.mark.parametrize("module", LIGHT)
def test_what_answers_bad_input_imports_no_torch(module):
    assert "torch" not in imported_by(module)
