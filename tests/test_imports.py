"""Who may import whom, and what the command line may not wait for."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from unbraid.cli import VERBS

PACKAGE = Path(__file__).parents[1] / "src" / "unbraid"
BELOW = {"errors", "files", "hub", "packing", "objective", "processes", "settings"}
MAY_IMPORT = {
    "errors": set(),
    "files": {"errors"},
    "hub": {"errors"},
    "packing": {"errors"},
    "objective": set(),
    "processes": set(),
    "settings": {"errors"},
    "native": set(),
    "attention": {"native", "packing"},
    "model": {"attention", "native", *BELOW},
    "text": BELOW,
    "metrics": BELOW,
    "training": BELOW,
    "pretraining": {"model", "text", "metrics", *BELOW},
    "tasks": {"inference", "model", "text", "metrics", *BELOW},
    "inference": {"model", "text", "metrics", *BELOW},
    "report": BELOW,
    "bench": {"attention", "model", *BELOW},
    "commands": {
        *("attention", "bench", "native", "training", "pretraining", "tasks", "inference", "report", "model", "text"),
        *BELOW,
    },
    "cli": {"commands", "model", "errors", "files"},
    "__main__": {"cli"},
    "data": set(),
    "": None,
}
RIVALS = ("transformers", "onnx", "openvino", "disentangled_flash")


def room_of(module: str) -> str:
    return module.split(".")[1] if module.count(".") else ""


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found.add(node.module)
            if node.module == "unbraid":
                found |= {f"unbraid.{alias.name}" for alias in node.names if not alias.name.startswith("__")}
    return found


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_nothing_points_back_up(path):
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    room = parts[0] if parts[0] != "__init__" else ""
    allowed = MAY_IMPORT[room]
    for module in imports(path):
        assert room == "bench" or not module.startswith(RIVALS), f"{path} imports {module}"
        if module.startswith("unbraid") and allowed is not None:
            assert room_of(module) in {room, "", *allowed}, f"{path} imports {module}"


def test_backends_do_not_import_each_other():
    for path in (PACKAGE / "attention").rglob("*.py"):
        backend = path.relative_to(PACKAGE / "attention").parts[0].removesuffix(".py")
        if backend not in ("__init__", "choice", "position"):
            others = {module for module in imports(path) if module.startswith("unbraid.attention")}
            own = f"unbraid.attention.{backend}"
            assert all(module.startswith((own, "unbraid.attention.position")) for module in others), path


@pytest.mark.parametrize("verb", ["cli", *VERBS])
def test_help_waits_for_nothing_heavy(verb):
    module = "unbraid.cli" if verb == "cli" else f"unbraid.commands.{verb}"
    heavy = (
        "torch",
        "transformers",
        "datasets",
        "sklearn",
        "scipy",
        "matplotlib",
        "sentencepiece",
        "tokenizers",
        "numpy",
    )
    code = f"import sys, {module}, unbraid.cli; print([name for name in {heavy} if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"


def test_the_core_reads_in_one_sitting():
    core = ["attention/__init__.py", "attention/position.py", "attention/reference.py", "model/encoder.py"]
    lines = sum(len((PACKAGE / name).read_text().splitlines()) for name in core)
    assert lines < 500


def test_nothing_is_guarded_by_assert():
    for path in PACKAGE.rglob("*.py"):
        asserts = [node.lineno for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Assert)]
        assert not asserts, f"{path}: {asserts}"
