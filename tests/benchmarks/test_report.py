"""The performance page: all that the results files say, and nothing else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from benchmarks import report
from benchmarks.plots import scaling
from tests.benchmarks.sample import model, op, results

DOCS = Path(__file__).parents[2] / "docs"
CPU_TABLE = {
    **results(
        {
            "name": "pyramid_pool forward",
            "seconds": {"psp_fast": 0.001, "eager nchw": 0.0055},
            "compared_with": "eager nchw",
            "ratio": 5.5,
            "quartiles": [5.1, 5.9],
            "target": 4,
            "at_most": False,
            "met": True,
        },
        {"name": "upsample_concat forward", "met": False, "error": "relative difference 1.0e-01"},
        {
            "name": "training step: peak memory",
            "bytes": {"auto": 4e8, "reference": 5e8},
            "ratio": 0.8,
            "target": 0.6,
            "at_most": True,
            "met": False,
        },
    )
}


def full_run() -> dict[str, Any]:
    """Rows that every picture of a suite's results needs."""
    rows = [op(backward=backward, input=given) for backward in (False, True) for given in ("1x473x473", "1x713x713")]
    conv = op("conv3x3", channels=256, flops=10**9, share_of_ceiling=1.25)
    return results(*rows, conv, op("upsample_argmax", channels=150, layout="nchw"), model())


def write(folder: Path, **files: Any) -> str:
    """The page of these results files."""
    (folder / "results").mkdir()
    for name, content in files.items():
        (folder / "results" / f"{name}.json").write_text(json.dumps(content))
    report.write(folder)
    return (folder / "performance.md").read_text()


def test_page_has_every_row(tmp_path: Path) -> None:
    page = write(tmp_path, suite_cpu=full_run(), cpu_table=CPU_TABLE)
    for line in (
        "| pyramid_pool, 2048 channels, forward | 1x473x473, 150 classes | float32 | 10 | eager nchw, 20 | "
        "2.00 (1.90 to 2.10) | 50 % |",
        "| pyramid_pool, 2048 channels, forward + backward | 1x713x713, 150 classes |",
        "| conv3x3, 256 channels, forward | 1x473x473, 150 classes | float32 | 10 | eager nchw, 20 | "
        "2.00 (1.90 to 2.10) | 125 % |",
        "| upsample_argmax, forward, NCHW |",
        "| PSPNet50 predict | 2x473x473, 150 classes | float32 | 500 | 4 | openvino, 2 | 2.00 (1.90 to 2.10) | "
        "eager nchw 1500, openvino 1000 | 1000 MB of 2000 MB |",
        "AMD EPYC, 2 threads; torch 2.13.0, Python 3.11.7; commit 0123456789",
        "Copying 10 GB/s, multiplying 100 GFLOP/s. Compared with: eager nchw, openvino.",
        "| pyramid_pool forward | 1 | eager nchw, 5.5 | 5.50 (5.10 to 5.90) | >= 4, met |",
        "upsample_concat forward: wrong numbers, no speed.",
        "| training step: peak memory | 400 MB | 500 MB | 0.800 | <= 0.6, missed |",
    ):
        assert line in page


def test_pictures_are_written_and_shown(tmp_path: Path) -> None:
    page = write(tmp_path, suite_cpu=full_run(), cpu_table=CPU_TABLE)
    written = sorted(path.name for path in (tmp_path / "results").glob("*.png"))
    stems = ["cpu_memory", "cpu_ratios", "cpu_roofline", "cpu_scaling", "cpu_shares", "cpu_table_memory"]
    assert written == [f"performance_{stem}.png" for stem in stems]
    assert page.count("![") == len(written)
    for name in written:
        assert f"](results/{name})" in page
        with Image.open(tmp_path / "results" / name) as image:
            image.load()
            assert image.format == "PNG" and image.width > 400 and image.convert("L").getextrema() != (255, 255)


def test_what_was_not_measured_is_not_shown(tmp_path: Path) -> None:
    page = write(tmp_path)
    assert "Nothing was measured on a CPU with the suite: there is no `docs/results/suite_cpu.json`." in page
    assert "Nothing was measured on a GPU with the suite: there is no `docs/results/suite_gpu.json`." in page
    assert "###" not in page and "![" not in page and "GB/s" not in page
    assert not list((tmp_path / "results").iterdir())


def test_gpu_has_its_own_section(tmp_path: Path) -> None:
    content = results(op(device="cuda", dtype="bfloat16"), **{"GPU 0": "NVIDIA H200, sm_90"})
    page = write(tmp_path, suite_gpu=content)
    section = page.split("## GPU\n")[1]
    assert (
        "`docs/results/suite_gpu.json`: NVIDIA H200, sm_90; AMD EPYC, 2 threads;" in section
        and "| bfloat16 |" in section
    )
    assert "Nothing was measured on a CPU with the suite" in page and "Nothing was measured on a GPU" not in page
    assert "### Models" not in page and "roofline.png" not in page and "scaling.png" not in page


def test_machines_have_sections_and_pictures_of_their_own(tmp_path: Path) -> None:
    other = CPU_TABLE | {"environment": CPU_TABLE["environment"] | {"CPU": "Intel Xeon"}}
    content = results(op(), CPU="Intel Xeon")
    files = {"suite_cpu_epyc": results(op(ratio=3.0)), "cpu_table_epyc": CPU_TABLE}
    page = write(tmp_path, **files, suite_cpu_xeon=content, cpu_table_xeon=other)
    sections = dict(part.split("\n", 1) for part in page.split("\n## ")[1:])
    table = "The CPU kernels against eager PyTorch"
    assert list(sections) == ["CPU, epyc", "CPU, xeon", "GPU", f"{table}, epyc", f"{table}, xeon"]
    for machine, processor, ratio in (("epyc", "AMD EPYC", "3.00"), ("xeon", "Intel Xeon", "2.00")):
        suite, cpu_table = sections[f"CPU, {machine}"], sections[f"{table}, {machine}"]
        assert processor in suite and processor in cpu_table and f"| {ratio} (" in suite
        assert f"results/performance_cpu_{machine}_ratios.png" in suite
        assert f"results/performance_cpu_table_{machine}_memory.png" in cpu_table


def test_what_scales_with_what() -> None:
    def loss(given: str, classes: int) -> dict[str, Any]:
        return op("upsample_cross_entropy", input=given, classes=classes, channels=classes, backward=True)

    inputs = (("1x473x473", 150), ("1x473x473", 21), ("2x473x473", 21), ("1x713x713", 19))
    pool = [op(input=given, classes=None) for given in ("1x473x473", "16x473x473")]
    nchw = op(input="2x473x473", classes=None, layout="nchw")
    found = scaling([*(loss(*given) for given in inputs), *pool, nchw])
    places = {axis: {name: [p[0] for p in points] for name, points in lines.items()} for axis, lines in found.items()}
    assert places == {
        "pixels of all images": {
            "upsample_cross_entropy": [473**2, 2 * 473**2, 713**2],
            "pyramid_pool": [473**2, 16 * 473**2],
        },
        "images": {"upsample_cross_entropy": [1, 2], "pyramid_pool": [1, 16]},
        "classes": {"upsample_cross_entropy": [21, 150]},
    }
    assert found["images"]["pyramid_pool"][0][1:] == pytest.approx((1e7 / 473**2, 2e7 / 473**2))


def test_row_without_a_floor_has_no_share(tmp_path: Path) -> None:
    row = {key: value for key, value in op().items() if key not in ("floor", "bytes", "flops", "share_of_ceiling")}
    page = write(tmp_path, suite_cpu=results(row))
    assert "2.00 (1.90 to 2.10) |  |" in page and "shares.png" not in page


@pytest.mark.parametrize("name", ["suite_cpu", "cpu_table"])
def test_damaged_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / f"{name}.json").write_text('{"rows": [')
    monkeypatch.setattr(report, "DOCS", tmp_path)
    assert report.main([]) == 2
    error = capsys.readouterr().err
    assert f"{name}.json" in error and len(error.splitlines()) == 1
    assert not (tmp_path / "performance.md").exists()


def test_committed_page_is_that_of_the_committed_results() -> None:
    assert (DOCS / "performance.md").read_text() == report.page(DOCS), "run `python -m benchmarks.report`"
