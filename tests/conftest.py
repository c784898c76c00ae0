"""What several test files share."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def demo(tmp_path_factory) -> Path:
    """The folder of a demo of a few steps, runs/demo within a temporary one."""
    from unbraid import cli

    folder = tmp_path_factory.mktemp("demo") / "runs" / "demo"
    cli.main(["demo", "--output", str(folder), "--steps", "2", "--epochs", "0.02"])
    return folder
