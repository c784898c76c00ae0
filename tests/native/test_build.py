"""Building the kernel and finding it: the cache, its faults, and copies in the package."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from torch.utils.cpp_extension import get_cxx_compiler

from unbraid.native import build

compiled = pytest.mark.skipif(shutil.which(get_cxx_compiler()) is None, reason="there is no C++ compiler")


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    """An empty cache, and no copies in the package."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(build, "PREBUILT", tmp_path / "none")
    return tmp_path / "unbraid"


def fault() -> str:
    kernel = build.load.__wrapped__()
    assert kernel.path is None
    assert "\n" not in kernel.fault
    return kernel.fault


def python(script: str, environment: dict[str, str]) -> subprocess.Popen:
    """A process of its own: one can load the kernel only once."""
    return subprocess.Popen(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(script)],
        env=os.environ | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.usefixtures("cache")
def test_without_a_compiler(monkeypatch):
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CXX", raising=False)
    assert fault() == "there is no C++ compiler (c++); install one, such as g++"
    assert os.environ["PATH"] == ""


@compiled
def test_a_failing_compiler_leaves_nothing_and_its_error_is_told(cache, monkeypatch, tmp_path, capfd):
    compiler = tmp_path / "c++"
    fails = "echo 'kernel.cpp:1:1: error: no such luck' >&2; exit 1"
    compiler.write_text(f'#!/bin/sh\ncase "$*" in *kernel.cpp*) {fails};; esac\nexec {get_cxx_compiler()} "$@"\n')
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", str(compiler))
    assert "no such luck" in fault()
    assert [path.suffix for path in cache.iterdir()] == [".lock"]
    assert capfd.readouterr().err == "unbraid: building the native attention kernel, once (about 15 s)\n"


@pytest.mark.usefixtures("cache")
def test_a_cache_that_cannot_be_written(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert fault().endswith("set XDG_CACHE_HOME to a folder that can")


@pytest.mark.usefixtures("cache")
def test_no_home(monkeypatch):
    def home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", home)
    assert fault() == "there is no home folder for its cache; set XDG_CACHE_HOME to a folder"


@pytest.mark.usefixtures("cache")
def test_a_disk_that_is_full(monkeypatch):
    def compile_nothing(target, _level):
        raise OSError(28, "No space left on device", str(target))

    monkeypatch.setattr(build, "_compile", compile_nothing)
    assert "No space left on device" in fault()


@pytest.mark.parametrize(
    ("flags", "levels"),
    [
        (build.LEVELS["x86-64-v4"] + " amx_tile", ["x86-64-v4", "x86-64-v3"]),
        (build.LEVELS["x86-64-v3"], ["x86-64-v3"]),
        (build.LEVELS["x86-64-v4"].replace("avx512dq", ""), ["x86-64-v3"]),
        ("sse2 avx2", []),
    ],
)
def test_levels_of_a_processor(flags, levels, monkeypatch):
    monkeypatch.setattr(build, "processor", lambda: {"flags": flags})
    assert build.levels() == levels


def test_the_name_of_a_build_says_what_it_depends_on(monkeypatch):
    before = {level: build._name(level) for level in ("native", "x86-64-v3")}
    monkeypatch.setattr(build, "processor", lambda: {"model name": "another"})
    assert build._name("native") != before["native"]
    assert build._name("x86-64-v3") == before["x86-64-v3"]
    monkeypatch.setattr(build.torch, "__version__", "2.99")
    assert build._name("x86-64-v3") != before["x86-64-v3"]


@compiled
def test_a_build_cut_short_is_made_again_and_others_stay(tmp_path):
    script = f"""
        import shutil
        from pathlib import Path
        import torch
        from unbraid.native import build

        compiled = []
        def compile(target, level):
            compiled.append(level)
            shutil.copy({str(build.load().path)!r}, target)
            torch.ops.load_library(target)

        build._compile, build.PREBUILT = compile, Path("nowhere")
        target = build.cache_folder() / build._name("native")
        target.write_bytes(target.read_bytes()[:100_000])
        print(build.unavailable(), build.load().path == target, compiled)
    """
    cache = tmp_path / "unbraid"
    cache.mkdir()
    target = cache / build._name("native")
    shutil.copy(build.load().path, target)
    target.with_suffix(".sha256").write_text(build._checksum(target))
    (cache / "kernel-native-old.so").write_text("of another torch")
    output, errors = python(script, {"XDG_CACHE_HOME": str(tmp_path)}).communicate(timeout=120)
    assert output == "None True ['native']\n", errors
    assert build._whole(target)
    assert (cache / "kernel-native-old.so").read_text() == "of another torch"


@compiled
def test_a_copy_in_the_package_needs_neither_compiler_nor_cache(tmp_path):
    script = f"""
        import shutil
        from pathlib import Path
        from unbraid.native import build

        build.PREBUILT = Path({str(tmp_path)!r})
        build.LEVELS = {{"better": "no-such-feature", "broken": "", "good": ""}}
        for level in ("better", "good"):
            shutil.copy({str(build.load().path)!r}, build.PREBUILT / build._name(level))
        (build.PREBUILT / build._name("broken")).write_text("made for another system")
        print(build.unavailable(), build.load().path.name.split("-")[1])
    """
    environment = {"PATH": "", "XDG_CACHE_HOME": str(tmp_path / "cache")}
    output, errors = python(script, environment).communicate(timeout=120)
    assert output == "None good\n", errors
    assert not (tmp_path / "cache").exists()


@compiled
def test_two_processes_build_it_once(tmp_path):
    script = """
        from pathlib import Path
        from unbraid.native import build

        build._FLAGS, build.PREBUILT = ["-O0", "-fopenmp", "-std=c++20"], Path("nowhere")
        print(build.unavailable())
    """
    environment = {"XDG_CACHE_HOME": str(tmp_path), "MAX_JOBS": "1"}
    said = [process.communicate(timeout=250) for process in [python(script, environment) for _ in range(2)]]
    assert [output for output, _ in said] == ["None\n", "None\n"], said
    assert "".join(sorted(errors for _, errors in said)) == (
        "unbraid: building the native attention kernel, once (about 15 s)\n"
        "unbraid: waiting for another process that is building the native attention kernel\n"
    )
    assert [path.suffix for path in sorted((tmp_path / "unbraid").iterdir())] == [".lock", ".sha256", ".so"]
