"""Fixtures of the tests of the command line."""

import sys

import pytest


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty working directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["doodl"])  # Hydra's entry point changes it
    return tmp_path
