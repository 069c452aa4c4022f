"""Fixtures of the tests of the command line, and Triton's interpreter where there is no GPU."""

import os
import signal
import sys

import pytest
import torch

if not torch.cuda.is_available():  # before anything imports Triton, which reads it then
    os.environ["TRITON_INTERPRET"] = "1"

# Jobs in a shell's background ignore Ctrl-C, and so would what the tests send it to.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty working directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["doodl"])  # Hydra's entry point changes it
    return tmp_path


@pytest.fixture(scope="module")
def one_thread():
    """As the processes that `tests.runs.start` starts have: sums in threads round otherwise."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
