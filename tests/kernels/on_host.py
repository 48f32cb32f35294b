"""Builds a module of CUDA C++ kernels that runs on the CPU (cuda_on_host.h)."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sysconfig
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from psp_fast.ops import backend

HERE = Path(__file__).parent
HEADERS = ("cuda_runtime.h", "cuda_bf16.h", "cuda_fp16.h", "cooperative_groups.h")
COMPILER = next((path for path in map(shutil.which, ("g++", "c++")) if path), None)

needs_compiler = pytest.mark.skipif(COMPILER is None, reason="needs a C++ compiler")


def emulated(name: str) -> Any:
    """A fixture: the module that <name>.cpp defines."""

    @pytest.fixture(scope="session")
    def module(tmp_path_factory: pytest.TempPathFactory) -> ModuleType:
        return build(name, tmp_path_factory.mktemp(name))

    return module


def run_ops_on(module: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let ops run the module's kernels."""
    monkeypatch.setattr(backend, "native", lambda: module)
    monkeypatch.setattr(backend, "choose", lambda op, x: "csrc/cuda")


def build(name: str, folder: Path) -> ModuleType:
    """The module that <name>.cpp defines, built in a folder."""
    for header in HEADERS:
        (folder / header).write_text('#include "cuda_on_host.h"\n')
    library = folder / f"{name}.so"
    torch_headers = Path(torch.__file__).parent / "include"  # pybind11's are among them
    folders = (HERE, folder, HERE.parents[1] / "csrc", torch_headers, sysconfig.get_path("include"))
    flags = ["-std=c++17", "-O1", "-shared", "-fPIC", "-pthread", "-Wall", "-Werror", "-Wno-unknown-pragmas"]
    flags += ["-fsanitize=alignment", "-fsanitize-undefined-trap-on-error"]  # a GPU refuses what a CPU lets pass
    includes = [f"-I{path}" for path in folders]
    subprocess.run([str(COMPILER), *flags, *includes, str(HERE / f"{name}.cpp"), "-o", str(library)], check=True)
    spec = importlib.util.spec_from_file_location(name, library)
    assert spec is not None and spec.loader is not None
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded
