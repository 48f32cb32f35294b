"""The build: what the module says about itself, what it is linked to, what a user is told when a tool is missing."""

from __future__ import annotations

import importlib.util
import os
import platform
import re
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from email import message_from_bytes
from pathlib import Path
from types import ModuleType

import pytest

import psp_fast
from psp_fast.ops import backend

SETUP = Path(__file__).resolve().parents[1] / "setup.py"


@pytest.fixture
def setup_module() -> ModuleType:
    spec = importlib.util.spec_from_file_location("psp_fast_setup", SETUP)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_build_info_agrees_with_itself() -> None:
    native = backend.native()
    info = native.build_info()
    built = info["cpu"].split(", ")
    assert built[0] == "baseline"
    assert set(native.cpu_capabilities()) <= set(built)
    assert native.cpu_capability() in native.cpu_capabilities()
    assert info["summary"].startswith(f"psp_fast: built CPU kernels ({info['cpu']}; {info['openmp']}) and ")
    assert info["cuda"] == hasattr(native, "pyramid_pool_forward_cuda")
    if info["cuda"]:
        assert f"({info['cuda_architectures']}; nvcc {info['nvcc']})" in info["summary"]
    else:
        assert info["cuda_reason"] and info["cuda_reason"] in info["summary"]


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="x86-64 only")
def test_one_build_has_every_instruction_set() -> None:
    assert backend.native().build_info()["cpu"] == "baseline, avx2, avx512"


@pytest.mark.skipif(shutil.which("ldd") is None, reason="needs ldd")
def test_module_is_linked_to_neither_torch_nor_cuda() -> None:
    listing = subprocess.run(["ldd", str(backend.native().__file__)], capture_output=True, text=True, check=True).stdout
    assert "libc.so" in listing
    assert not [line for line in listing.splitlines() if "torch" in line or "c10" in line or "cuda" in line]


def test_process_has_one_openmp() -> None:
    maps = Path("/proc/self/maps")
    if not maps.exists() or backend.native().build_info()["openmp"] != "OpenMP":
        pytest.skip("needs Linux and a build with OpenMP")
    code = "import psp_fast.ops.backend as b; b.native(); print(open('/proc/self/maps').read())"
    listing = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    libraries = {line.split()[-1] for line in listing.splitlines() if "libgomp" in line or "libomp" in line}
    assert len(libraries) == 1


@pytest.mark.parametrize(("value", "wanted"), [("baseline", "baseline"), ("sse9", "error")])
def test_environment_chooses_the_instruction_set(value: str, wanted: str) -> None:
    code = (
        "from psp_fast.errors import ConfigError\n"
        "from psp_fast.ops import backend\n"
        "try: print(backend.native().cpu_capability())\n"
        "except ConfigError as error: print('error', error)"
    )
    environment = {**os.environ, "PSP_FAST_CPU": value}
    output = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    ).stdout
    assert output.split()[0] == wanted
    if wanted == "error":
        assert "PSP_FAST_CPU" in output and "baseline" in output and "'sse9'" in output


def test_missing_compiler_ends_the_build_with_what_to_install(tmp_path: Path) -> None:
    environment = {key: value for key, value in os.environ.items() if key != "CXX"} | {"PATH": str(tmp_path)}
    command = [sys.executable, str(SETUP), "build_ext", "--build-lib", str(tmp_path), "--build-temp", str(tmp_path)]
    result = subprocess.run(command, cwd=SETUP.parent, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode != 0
    assert "needs a C++17 compiler and found none" in result.stderr
    assert "CMake" not in result.stdout + result.stderr


@pytest.mark.parametrize(("system", "command"), [("Darwin", "xcode-select --install"), ("Linux", "apt install g++")])
def test_missing_compiler_message_fits_the_system(
    setup_module: ModuleType, monkeypatch: pytest.MonkeyPatch, system: str, command: str
) -> None:
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr(platform, "system", lambda: system)
    assert command in setup_module.missing_compiler_message()


def test_a_wrong_cxx_is_named(setup_module: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler -O2")
    assert setup_module.find_compiler() is None
    assert "CXX=no-such-compiler -O2 cannot be found" in setup_module.missing_compiler_message()


def test_other_missing_tools_are_named(setup_module: ModuleType) -> None:
    assert "needs cmake" in setup_module.missing_tool_message("cmake")
    assert "python3-dev" in setup_module.missing_headers_message()


@pytest.fixture
def source_distribution(tmp_path: Path) -> Iterator[tarfile.TarFile]:
    pytest.importorskip("setuptools", minversion="77")
    if not (SETUP.parent / "README.md").exists():
        pytest.skip("needs the source tree")
    command = [sys.executable, str(SETUP), "-q", "egg_info", "--egg-base", str(tmp_path)]
    command += ["sdist", "--dist-dir", str(tmp_path)]
    subprocess.run(command, cwd=SETUP.parent, capture_output=True, check=True)
    with tarfile.open(next(tmp_path.glob("*.tar.gz"))) as archive:
        yield archive


def test_source_distribution_has_all_that_it_needs(source_distribution: tarfile.TarFile) -> None:
    """To build, to run every test and benchmark, to read the README with its links and pictures."""
    held = {name.partition("/")[2] for name in source_distribution.getnames()}
    folders = ("benchmarks", "cmake", "csrc", "docs", "psp_fast", "tests")
    paths = [path for folder in folders for path in (SETUP.parent / folder).rglob("*") if path.is_file()]
    made = {".so", ".pyc"}
    wanted = {path.relative_to(SETUP.parent).as_posix() for path in paths if path.suffix not in made}
    assert wanted | {"CMakeLists.txt", "CONTRIBUTING.md", "LICENSE", "README.md", "pyproject.toml"} <= held
    assert not [name for name in held if Path(name).suffix in made]


def test_metadata_has_the_version_and_no_link_to_a_file(source_distribution: tarfile.TarFile) -> None:
    name = next(name for name in source_distribution.getnames() if name.count("/") == 1 and name.endswith("PKG-INFO"))
    content = source_distribution.extractfile(name)
    assert content is not None
    metadata = message_from_bytes(content.read())
    assert metadata["Version"] == psp_fast.__version__
    assert "Typing :: Typed" in metadata.get_all("Classifier", [])
    assert "torch>=2.11" in metadata.get_all("Requires-Dist", [])
    text = metadata.get_payload()
    assert text.startswith("# psp_fast\n") and "Licence: Apache-2.0." in text
    assert re.findall(r"\]\((?!https://)[^)]*\)", text) == []
