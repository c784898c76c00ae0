import importlib.util
import os
import sys
from pathlib import Path

import pytest
import torch


@pytest.fixture(scope="session")
def toys():
    spec = importlib.util.spec_from_file_location("training_toys", Path(__file__).with_name("toys.py"))
    module = sys.modules["training_toys"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """One thread, and no waiting for the disk."""
    monkeypatch.setattr(os, "fsync", lambda _: None)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
