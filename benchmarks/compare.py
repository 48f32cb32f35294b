"""Whether a change made something slower: two results files of the suite, or this tree against another commit.

    python -m benchmarks.compare OLD.json NEW.json [--worse 1.1]
    python -m benchmarks.compare --against COMMIT [-k TEXT] [--worse 1.1]

A row has regressed where its speed over the fastest other implementation of the same run fell by more than the factor
--worse, and the quartiles do not overlap: a slower machine slows both. --against runs the quick rows in a throwaway
worktree of the commit, built there, and in this tree as it is built, twice each. Exit status: 1 for a regression, 2 for
an error.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.result_files import OURS, Row, identity, milliseconds, read, spread, title
from psp_fast.errors import PspFastError

ROOT = Path(__file__).resolve().parents[1]
_WORSE, _UNJUDGED = "WORSE", "not judged, for other peers"
_MACHINE = ("CPU", "CPUs", "GPU", "CUDA", "torch", "threads")  # first words of what may explain a difference


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="*", type=Path, metavar="FILE", help="results to compare: OLD NEW")
    parser.add_argument("--worse", type=float, default=1.1, help="smallest factor that counts (default: %(default)s)")
    parser.add_argument("--against", metavar="COMMIT", help="measure this commit and the present tree")
    parser.add_argument("-k", metavar="TEXT", default="", help="with --against: rows whose test's name matches")
    options = parser.parse_args(arguments)
    if len(options.files) != (2 if options.against is None else 0):
        parser.error("give two results files, or --against COMMIT and none")
    if options.k and options.against is None:
        parser.error("-k chooses what --against measures; files are compared as a whole")
    if not options.worse >= 1:
        parser.error("--worse is a factor of at least 1")
    try:
        if options.against is not None:
            old, new = measured(options.against, options.k)
        else:
            old, new = (read(path) for path in options.files)
        return report(old, new, options.worse)
    except (PspFastError, OSError) as error:
        print(f"compare: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("compare: interrupted", file=sys.stderr)
        return 130


def report(old: dict[str, Any], new: dict[str, Any], worse: float) -> int:
    """Print how the rows of `new` differ from those of `old`; 1 where one has regressed, else 0."""
    before, after = ({identity(row): row for row in content["rows"]} for content in (old, new))
    pairs = [(before[key], after[key]) for key in before if key in after]
    if not pairs:
        raise PspFastError("the two results have no row in common: measure the same ops on the same kind of device")
    for key, a, b in differences(old, new):
        print(f"warning: {key} differs: {a}, then {b}")
    verdicts = [verdict(a, b, worse) for a, b in pairs]
    _print_table(pairs, verdicts)
    _print_rows("only in the old results", [row for key, row in before.items() if key not in after])
    _print_rows("only in the new results", [row for key, row in after.items() if key not in before])
    counts = [f"{verdicts.count(found)} {found}" for found in ("better", _UNJUDGED) if found in verdicts]
    print(f"\n{len(pairs)} rows compared: {', '.join([f'{verdicts.count(_WORSE)} worse', *counts])}")
    return 1 if _WORSE in verdicts else 0


def verdict(old: Row, new: Row, worse: float) -> str:
    """WORSE or better where the ratio changed by more than `worse` and the quartiles are apart; else nothing."""
    if _peers(old) != _peers(new):
        return _UNJUDGED
    (old_low, old_high), (new_low, new_high) = old["quartiles"], new["quartiles"]
    if new_high < old_low and old["ratio"] > worse * new["ratio"]:
        return _WORSE
    if new_low > old_high and new["ratio"] > worse * old["ratio"]:
        return "better"
    return ""


def _peers(row: Row) -> set[str]:
    """The others, whose best decides the ratio: "eager nchw" and "eager channels_last" are both eager at its best."""
    return {other.split()[0] for other in row["seconds"] if other != OURS}


def differences(old: dict[str, Any], new: dict[str, Any]) -> list[tuple[str, str, str]]:
    """(what, old, new) of everything in the environments that timings depend on and that is not the same."""
    first, second = ({**content["environment"], "threads": str(content["threads"])} for content in (old, new))
    keys = [key for key in {**first, **second} if key.split()[0] in _MACHINE]
    pairs = [(key, first.get(key, "none"), second.get(key, "none")) for key in keys]
    return [(key, a, b) for key, a, b in pairs if a != b]


def _print_table(pairs: list[tuple[Row, Row]], verdicts: list[str]) -> None:
    lines = [["", "old ms", "new ms", "new/old", "old ratio (quartiles)", "new ratio (quartiles)", ""]]
    for (old, new), found in zip(pairs, verdicts, strict=True):
        a, b = old["seconds"][OURS], new["seconds"][OURS]
        ratios = [f"{spread(row)} {row['compared_with']}" for row in (old, new)]
        lines.append([_described(old), milliseconds(a), milliseconds(b), f"{b / a:.2f}", *ratios, found])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        cells = [f"{text:{side}{width}}" for text, side, width in zip(line, "<>>><<<", widths, strict=True)]
        print("  ".join(cells).rstrip())


def _described(row: Row) -> str:
    return f"{title(row)}, {row['device']} {row['dtype']}"


def _print_rows(heading: str, rows: list[Row]) -> None:
    if rows:
        print(f"\n{heading}:")
    for row in rows:
        print(f"  {_described(row)}")


def measured(commit: str, text: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Results of the quick rows at a commit and of the present tree, two runs of each."""
    with worktree(_full_name(commit)) as tree:
        print(f"building {commit}", flush=True)
        _run([sys.executable, "setup.py", "-q", "build_ext", "--inplace"], tree)
        runs: dict[Path, list[dict[str, Any]]] = {tree: [], ROOT: []}
        for place in (tree, ROOT, ROOT, tree):  # what changes steadily on the machine meets both alike
            print(f"measuring {commit if place == tree else 'the present tree'}", flush=True)
            runs[place].append(_measure(place, tree.parent / "results.json", text))
        return merged(*runs[tree]), merged(*runs[ROOT])


def merged(one: dict[str, Any], two: dict[str, Any]) -> dict[str, Any]:
    """Two runs as one, whose quartiles span those of both: what differs between runs is no regression."""
    found = {identity(row): row for row in two["rows"]}
    rows = [_merged_row(row, found[identity(row)]) for row in one["rows"] if identity(row) in found]
    return {**one, "rows": rows}


def _merged_row(a: Row, b: Row) -> Row:
    (a_low, a_high), (b_low, b_high) = a["quartiles"], b["quartiles"]
    return {
        **a,
        "seconds": {**a["seconds"], **b["seconds"], OURS: (a["seconds"][OURS] + b["seconds"][OURS]) / 2},
        "ratio": (a["ratio"] + b["ratio"]) / 2,
        "quartiles": [min(a_low, b_low), max(a_high, b_high)],
    }


def _full_name(commit: str) -> str:
    command = ["git", "rev-parse", "--verify", "--quiet", "--end-of-options", f"{commit}^{{commit}}"]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if found.returncode:
        raise PspFastError(f"no commit {commit!r} in {ROOT}: give a commit, tag or branch of this checkout")
    return found.stdout.strip()


@contextmanager
def worktree(commit: str) -> Iterator[Path]:
    """A checkout of a commit that is gone when the block ends, however it ends."""
    with tempfile.TemporaryDirectory(prefix="psp_fast-") as folder:
        tree = Path(folder) / "tree"
        try:
            _run(["git", "worktree", "add", "--quiet", "--detach", str(tree), commit], ROOT)
            yield tree
        finally:
            remove = ["git", "worktree", "remove", "--force", str(tree)]
            subprocess.run(remove, cwd=ROOT, capture_output=True, check=False)


def _measure(tree: Path, results: Path, text: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "pytest", "benchmarks", "--benchmark-only", "--quick", "--results", str(results)]
    _run([*command, "-q", *(["-k", text] if text else [])], tree)
    return read(results)


def _run(command: list[str], folder: Path) -> None:
    """Run a command there; its output is printed where it fails."""
    done = subprocess.run(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    if done.returncode:
        print(done.stdout, file=sys.stderr)
        raise PspFastError(f"`{' '.join(command)}` failed in {folder}: see above")


if __name__ == "__main__":
    sys.exit(main())
