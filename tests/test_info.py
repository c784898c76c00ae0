"""``unbraid info`` with the kernel and without."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import torch

from unbraid import __version__, cli
from unbraid.native import build


def test_it_shows_what_runs(capsys):
    cli.main(["info"])
    shown = " ".join(capsys.readouterr().out.split())
    versions = (__version__, torch.__version__, platform.python_version())
    for fact in (*versions, str(torch.get_num_threads()), "unbraid-mini-en"):
        assert fact in shown
    assert ("attention, bfloat16 native:" in shown) == (build.load().path is not None)


def test_without_the_kernel_it_shows_why(tmp_path):
    environment = {key: value for key, value in os.environ.items() if key != "CXX"}
    environment |= {"PATH": "", "XDG_CACHE_HOME": str(tmp_path), "COLUMNS": "300"}
    command = [sys.executable, "-m", "unbraid", "info"]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert "sdpa: the native attention kernel cannot be built or loaded: there is no C++ compiler" in run.stdout
    assert str(tmp_path / "unbraid") in run.stdout
    assert run.stderr == ""
