"""Comparing results: what counts as slower, what is only noise, and which input is refused."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from benchmarks import compare
from benchmarks.compare import differences, main, merged, verdict
from tests.benchmarks.sample import model, op, results


@pytest.fixture
def files(tmp_path: Path) -> Any:
    """Writes two contents, and gives their paths as arguments."""

    def write(old: Any, new: Any) -> list[str]:
        paths = [tmp_path / "old.json", tmp_path / "new.json"]
        for path, content in zip(paths, (old, new), strict=True):
            path.write_text(json.dumps(content))
        return [str(path) for path in paths]

    return write


@pytest.mark.parametrize(
    ("old", "new", "found"),
    [
        (op(ratio=2), op(ratio=1.5), "WORSE"),
        (op(ratio=1.5), op(ratio=2), "better"),
        (op(ratio=2), op(ratio=2), ""),
        (op(ratio=2, spread=0.4), op(ratio=1.5, spread=0.4), ""),  # the quartiles overlap: noise
        (op(ratio=2, spread=0.01), op(ratio=1.9, spread=0.01), ""),  # real, but smaller than what counts
    ],
)
def test_verdict(old: Any, new: Any, found: str) -> None:
    assert verdict(old, new, worse=1.1) == found


def test_what_differs_between_runs_is_no_regression() -> None:
    quiet, busy = results(op(ratio=2)), results(op(ratio=1))
    (noisy,) = merged(quiet, busy)["rows"]
    assert noisy["ratio"] == 1.5 and noisy["quartiles"] == [0.9, 2.1]
    assert verdict(op(ratio=2), noisy, worse=1.1) == ""
    assert merged(quiet, results(model()))["rows"] == []


def test_slower_machine_is_no_regression(files: Any) -> None:
    slow = op(seconds={"psp_fast": 0.03, "eager nchw": 0.06})
    assert main(files(results(op()), results(slow))) == 0


def test_rows_against_other_peers_are_not_judged() -> None:
    compiled = op(ratio=1.2, seconds={"psp_fast": 0.01, "eager nchw": 0.02, "torch.compile": 0.012})
    assert verdict(op(ratio=2), compiled, worse=1.1) == "not judged, for other peers"
    other_layout = op(seconds={"psp_fast": 0.01, "eager channels_last": 0.02}, compared_with="eager channels_last")
    assert verdict(op(), other_layout, worse=1.1) == ""


def test_regression_is_printed_and_ends_with_1(files: Any, capsys: pytest.CaptureFixture[str]) -> None:
    paths = files(results(op(), op("upsample_argmax")), results(op(ratio=1), op("upsample_argmax")))
    assert main(paths) == 1
    worse, same = [line for line in capsys.readouterr().out.splitlines() if "1x473x473" in line]
    assert worse.startswith("pyramid_pool, 2048 channels, forward, 1x473x473, 150 classes, cpu float32")
    assert "10" in worse and "2.00 (1.90 to 2.10) eager nchw" in worse and "1.00 (0.90 to 1.10)" in worse
    assert worse.endswith("WORSE") and not same.endswith("WORSE")
    assert main([*paths, "--worse", "3"]) == 0


def test_rows_of_one_side_are_listed(files: Any, capsys: pytest.CaptureFixture[str]) -> None:
    old, new = results(op(), op(backward=True)), results(op(), op(channels=256), model())
    assert main(files(old, new)) == 0
    text = capsys.readouterr().out
    only_old, only_new = text.split("only in the old results:")[1].split("only in the new results:")
    assert "pyramid_pool, 2048 channels, forward + backward, 1x473x473" in only_old
    assert "pyramid_pool, 256 channels, forward, 1x473x473" in only_new and "PSPNet50 predict, 2x473x473" in only_new
    assert "1 rows compared: 0 worse" in text


def test_other_machines_are_named(files: Any, capsys: pytest.CaptureFixture[str]) -> None:
    old, new = results(op()), results(op(), CPU="Intel", torch="2.12.0", commit="fedcba", **{"GPU 0": "H200"})
    new["threads"] = 4
    expected = [("CPU", "AMD EPYC", "Intel"), ("torch", "2.13.0", "2.12.0"), ("GPU 0", "none", "H200")]
    assert sorted(differences(old, new)) == sorted([*expected, ("threads", "2", "4")])
    assert main(files(old, new)) == 0
    assert "warning: CPU differs: AMD EPYC, then Intel" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"environment": {', "not a whole results file"),
        ("[]", "not a whole results file"),
        (json.dumps({**results(op()), "threads": None}), "None where a number should be"),
        (json.dumps({k: v for k, v in results(op()).items() if k != "rows"}), "no 'rows'"),
        (json.dumps(results(op(ratio=float("nan")))), "nan where a positive number should be"),
        (json.dumps(results(op(compared_with="openvino"))), "no 'openvino'"),
        (json.dumps(results(op(input="large"))), "invalid literal"),
        (json.dumps(results(op(quartiles=[1]))), "not a whole results file"),
        (json.dumps(results(op(), op())), "two rows for pyramid_pool, 2048 channels, forward, 1x473x473"),
    ],
)
def test_damaged_file(tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str, message: str) -> None:
    path = tmp_path / "damaged.json"
    path.write_text(content)
    assert main([str(path), str(path)]) == 2
    error = capsys.readouterr().err
    assert message in error and str(path) in error and "--results FILE.json" in error
    assert len(error.splitlines()) == 1


def test_missing_file_and_nothing_in_common(files: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["nowhere.json", "nowhere.json"]) == 2
    assert "nowhere.json: cannot be read (No such file or directory)" in capsys.readouterr().err
    assert main(files(results(op()), results(model()))) == 2
    assert "no row in common" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", ["", "one.json", "a b --against HEAD", "a b -k x", "a b --worse nan"])
def test_usage(arguments: str) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(arguments.split())


# A tree whose "build" makes the file that its "suite" needs, and whose speed is in a file.
_SETUP = "import pathlib; pathlib.Path('built').write_text(pathlib.Path('speed').read_text())\n"
_CONFTEST = """
import json, pathlib
from tests.benchmarks.sample import op, results

def pytest_addoption(parser):
    parser.addoption("--benchmark-only", action="store_true")
    parser.addoption("--quick", action="store_true")
    parser.addoption("--results", type=pathlib.Path)

def pytest_sessionfinish(session):
    rows = results(op(ratio=float(pathlib.Path("built").read_text())))
    session.config.getoption("--results").write_text(json.dumps(rows))
"""


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A git checkout with such a tree at one commit, the same built in place; compare works on it."""
    if shutil.which("git") is None:
        pytest.skip("needs git")
    root = tmp_path / "checkout"
    (root / "benchmarks").mkdir(parents=True)
    (root / "speed").write_text("2")
    (root / "setup.py").write_text(_SETUP)
    (root / "benchmarks" / "conftest.py").write_text(_CONFTEST)
    (root / "benchmarks" / "test_row.py").write_text("def test_row(): pass\n")
    (root / ".gitignore").write_text("built\n__pycache__\n.pytest_cache\n")
    git(root, "init", "--quiet")
    commit(root)
    (root / "built").write_text("2")
    monkeypatch.setattr(compare, "ROOT", root)
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    monkeypatch.setenv("PYTEST_ADDOPTS", "-p no:cacheprovider")
    return root


def git(root: Path, *command: str) -> str:
    options = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "core.hooksPath=/dev/null"]
    return subprocess.run(["git", *options, *command], cwd=root, capture_output=True, text=True, check=True).stdout


def commit(root: Path) -> None:
    git(root, "add", ".")
    git(root, "commit", "--quiet", "-m", "Change")


def worktrees(root: Path) -> int:
    return len(git(root, "worktree", "list").splitlines())


def test_against_a_commit(checkout: Path) -> None:
    assert main(["--against", "HEAD"]) == 0
    (checkout / "built").write_text("1")
    assert main(["--against", "HEAD", "-k", "row"]) == 1
    assert worktrees(checkout) == 1


def test_against_a_commit_that_does_not_build(checkout: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (checkout / "setup.py").write_text("raise SystemExit('no compiler')\n")
    commit(checkout)
    assert main(["--against", "HEAD"]) == 2
    error = capsys.readouterr().err
    assert "no compiler" in error and "setup.py -q build_ext --inplace` failed" in error
    assert worktrees(checkout) == 1


def test_interrupted(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(tree: Path, results: Path, text: str) -> Any:
        assert (tree / "built").exists() and worktrees(checkout) == 2
        raise KeyboardInterrupt

    monkeypatch.setattr(compare, "_measure", interrupt)
    assert main(["--against", "HEAD"]) == 130
    assert worktrees(checkout) == 1


@pytest.mark.parametrize("name", ["no-such-commit", "--help", ""])
def test_unknown_commit(checkout: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    assert main([f"--against={name}"]) == 2
    error = capsys.readouterr().err
    assert f"no commit {name!r}" in error and len(error.splitlines()) == 1
