"""`psp-fast info`: every fact is there, and a broken module is reported instead of raised."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from psp_fast import info
from psp_fast.cli import main
from psp_fast.ops import backend


def test_report_has_every_section_and_op() -> None:
    text = info.report()
    assert torch.__version__ in text
    assert backend.native().cpu_capability() in text
    assert backend.native().build_info()["compiler"] in text
    lines = [line.split() for line in text.splitlines()]
    for row in backend.explain():
        assert [row.op, f"({row.device})", f"{row.implementation}:"] in [words[:3] for words in lines]


def test_report_explains_a_missing_module(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend, "_native", None)
    monkeypatch.setattr(backend, "_native_error", "no such file")
    text = info.report()
    assert "no such file" in text and "pip install -e ." in text


def test_gpus_are_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: (9, 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: "A GPU")
    assert ("GPU 0", "A GPU, sm_90") in info.machine()


def test_versions_name_a_missing_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(info, "_PACKAGES", ("numpy", "no-such-package"))
    assert ("no-such-package", "not installed") in info.versions()


def test_a_folder_of_the_same_name_does_not_hide_the_package(tmp_path: Path) -> None:
    """As a clone does for who works beside it."""
    (tmp_path / "psp_fast").mkdir()
    subprocess.run([sys.executable, "-c", "import psp_fast; psp_fast.PSPNet"], cwd=tmp_path, check=True)


def test_only_what_reads_options_needs_jsonargparse(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "jsonargparse", None)
    assert main(["info"]) == 0
    assert torch.__version__ in capsys.readouterr().out
    for command in (["train"], ["evaluate", "run"], ["predict", "run", "photo.jpg"]):
        assert main(command) == 1
        said = capsys.readouterr().err
        assert "need the package jsonargparse, which is not installed: run `python -m pip install" in said
        assert len(said.splitlines()) == 1


def test_a_missing_package_of_a_command_is_one_sentence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(info, "report", lambda: importlib.import_module("no_such_package"))
    assert main(["info"]) == 1
    said = capsys.readouterr().err
    assert said.startswith("psp-fast: error: the Python module no_such_package is not installed: install")
    monkeypatch.setattr(info, "report", lambda: importlib.import_module("psp_fast.no_such_module"))
    with pytest.raises(ModuleNotFoundError):  # a mistake of ours keeps its traceback
        main(["info"])


@pytest.mark.parametrize(
    ("version", "wanted"),
    [
        ("2.11.0", "2.11 to 2.15"),
        ("2.15.3+cu132", "2.11 to 2.15"),
        ("2.16.0a0+git1", "2.11 to 2.15; warning: 2.16.0a0+git1 is newer: run psp_fast's tests before you rely on it"),
        ("2.9.1", "2.11 to 2.15; warning: 2.9.1 is older: install torch>=2.11"),
    ],
)
def test_an_untested_torch_is_named_once(monkeypatch: pytest.MonkeyPatch, version: str, wanted: str) -> None:
    monkeypatch.setattr(torch, "__version__", version)
    assert info.report().count(wanted) == 1
    assert info.report().count("warning") == wanted.count("warning")
