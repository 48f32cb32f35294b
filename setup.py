"""Builds psp_fast._native with CMake and Ninja. Project metadata is in pyproject.toml."""

from __future__ import annotations

import hashlib
import os
import platform
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
READ_ONCE = (
    "CC",
    "CXX",
    "CFLAGS",
    "CXXFLAGS",
    "CPPFLAGS",
    "LDFLAGS",
    "CUDACXX",
    "CUDAFLAGS",
    "CUDAHOSTCXX",
    "CUDA_PATH",
)
COMPILERS = ("c++", "g++", "clang++")


def long_description() -> str:
    """README.md for an index: without pictures and links to files, which only the source tree has."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    text = re.sub(r"!\[[^]]*\]\((?![a-z]+://)[^)]*\)\n*", "", text)
    return re.sub(r"\[([^]]*)\]\((?![a-z]+://)[^)]*\)", r"\1", text)


def find_program(name: str) -> str | None:
    """The path of a program on PATH or among this interpreter's scripts; None when there is none."""
    return shutil.which(name) or shutil.which(name, path=sysconfig.get_path("scripts"))


def find_compiler() -> str | None:
    """The C++ compiler: $CXX where set, else the first of the usual names on PATH."""
    names = (os.environ["CXX"].split()[0],) if os.environ.get("CXX", "").strip() else COMPILERS
    return next((path for path in map(shutil.which, names) if path), None)


def missing_compiler_message() -> str:
    """What to install where no C++ compiler was found."""
    if os.environ.get("CXX", "").strip():
        return f"psp_fast needs a C++17 compiler, but CXX={os.environ['CXX']} cannot be found: correct or unset CXX."
    if platform.system() == "Darwin":
        return "psp_fast needs a C++17 compiler and found none: run `xcode-select --install`, then install again."
    return (
        "psp_fast needs a C++17 compiler and found none: install one with `apt install g++` (Debian, Ubuntu) or "
        "`dnf install gcc-c++` (Fedora, RHEL), or set CXX to yours, then install again."
    )


def missing_headers_message() -> str:
    """What to install where Python's C headers are missing."""
    return (
        f"psp_fast needs Python's C headers and found none in {sysconfig.get_paths()['include']}: install them with "
        "`apt install python3-dev` (Debian, Ubuntu) or `dnf install python3-devel` (Fedora, RHEL), then install again."
    )


def missing_tool_message(name: str) -> str:
    """What to install where a build tool is missing (only possible without build isolation)."""
    return f"psp_fast needs {name} to build and found none: run `pip install cmake ninja pybind11`, then install again."


class CMakeBuild(build_ext):
    """Configures and builds CMakeLists.txt in a folder and leaves the module where setuptools expects it."""

    def build_extension(self, ext: Extension) -> None:
        """Build `ext` and print one line that says what was built."""
        if find_compiler() is None:
            raise SystemExit(f"error: {missing_compiler_message()}")
        if not (Path(sysconfig.get_paths()["include"]) / "Python.h").exists():
            raise SystemExit(f"error: {missing_headers_message()}")
        cmake, ninja = self.tool("cmake"), self.tool("ninja")
        module = Path(self.get_ext_fullpath(ext.name)).resolve()
        build = self.folder().resolve()
        build.mkdir(parents=True, exist_ok=True)
        self.cmake(cmake, "-S", str(ROOT), "-B", str(build), "-G", "Ninja", *self.definitions(ninja, module))
        self.cmake(cmake, "--build", str(build))
        print((build / "summary.txt").read_text(encoding="utf-8"), flush=True)

    def folder(self) -> Path:
        """Where to build. Editable installs keep it, so that the next one compiles what has changed alone.

        What CMake reads once, when it first configures a folder, is part of its name.
        """
        if not self.editable_mode:
            return Path(self.build_temp)
        given = [sys.version, find_compiler(), shutil.which("nvcc"), *map(os.environ.get, READ_ONCE)]
        return ROOT / "build" / f"editable-{hashlib.sha256(repr(given).encode()).hexdigest()[:12]}"

    def tool(self, name: str) -> str:
        """The path of a build tool; ends the build with what to install when it is missing."""
        path = find_program(name)
        if path is None:
            raise SystemExit(f"error: {missing_tool_message(name)}")
        return path

    def definitions(self, ninja: str, module: Path) -> list[str]:
        """CMake's cache entries for this interpreter, output folder and the user's environment."""
        import pybind11

        values = {
            "CMAKE_BUILD_TYPE": "Debug" if self.debug else "Release",
            "CMAKE_MAKE_PROGRAM": ninja,
            "CMAKE_LIBRARY_OUTPUT_DIRECTORY": str(module.parent),
            "Python_EXECUTABLE": sys.executable,
            "pybind11_DIR": pybind11.get_cmake_dir(),
            "PSP_FAST_CUDA": os.environ.get("PSP_FAST_CUDA", "1"),
            "PSP_FAST_CUDA_ARCHS": os.environ.get("PSP_FAST_CUDA_ARCHS", ""),
        }
        return [f"-D{name}={value}" for name, value in values.items()]

    def cmake(self, *command: str) -> None:
        """Run CMake; its own output is the explanation when it fails."""
        result = subprocess.run(command, check=False)
        if result.returncode:
            raise SystemExit(f"error: building psp_fast._native failed (`{' '.join(command[:3])} ...`): see above")


if __name__ == "__main__":
    setup(
        long_description=long_description(),
        long_description_content_type="text/markdown",
        ext_modules=[Extension("psp_fast._native", sources=[])],
        cmdclass={"build_ext": CMakeBuild},
    )
