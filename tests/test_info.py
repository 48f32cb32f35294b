"""`psp-fast info`: every fact is there, and a broken module is reported instead of raised."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from psp_fast import info
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
    monkeypatch.setattr(info, "_PACKAGES", ("psp_fast", "no-such-package"))
    assert ("no-such-package", "not installed") in info.versions()


def test_a_folder_of_the_same_name_does_not_hide_the_package(tmp_path: Path) -> None:
    """As a clone does for who works beside it."""
    (tmp_path / "psp_fast").mkdir()
    subprocess.run([sys.executable, "-c", "import psp_fast; psp_fast.PSPNet"], cwd=tmp_path, check=True)
