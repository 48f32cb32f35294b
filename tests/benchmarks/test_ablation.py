"""The ablation in miniature: its rows are the paper's, and its statements follow from the measures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("jsonargparse")

from benchmarks import ablation, ablation_plots, ablation_rows, results, trainings
from benchmarks.ablation_rows import BASELINE, PAPER_1, PAPER_2, PAPER_SCALES, PSPNET, ROWS, SHORT, comparisons, summary
from psp_fast.configs import config_parser, parse_config, recipe_file
from psp_fast.data.scenes import CLASSES
from psp_fast.engine.run import build_model
from psp_fast.errors import PspFastError
from psp_fast.files import write_text


def measures(miou: float) -> dict[str, Any]:
    classes = {name: {"iou": miou, "accuracy": miou} for name in CLASSES}
    return {"miou": miou, "pixel_accuracy": 0.9, "classes": classes, "seconds": 1.0}


def made_up(**given: list[float]) -> dict[str, list[dict[str, Any]]]:
    """Runs of all rows; those not given have 50, 50, 50 %."""
    named = {name.replace("_", " "): values for name, values in given.items()}
    rows = [*ROWS, *PAPER_2, *PAPER_SCALES, *ablation_rows.SEVERAL_SCALES.values()]
    return {name: [measures(v) for v in named.get(name, [0.5, 0.5, 0.5])] for name in rows}


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (BASELINE, (False, "avg", [1, 2, 3, 6], True, 0.4)),
        ("B1 MAX", (True, "max", [1], False, 0.4)),
        ("B1 AVE DR", (True, "avg", [1], True, 0.4)),
        ("B1236 MAX DR", (True, "max", [1, 2, 3, 6], True, 0.4)),
        (PSPNET, (True, "avg", [1, 2, 3, 6], True, 0.4)),
        ("no auxiliary loss", (False, "avg", [1, 2, 3, 6], True, 0.0)),
        ("weight 0.9", (False, "avg", [1, 2, 3, 6], True, 0.9)),
    ],
)
def test_rows_are_the_papers(name: str, expected: tuple[Any, ...]) -> None:
    options = ["--config", str(recipe_file("scenes")), *SHORT, *ROWS[name]]
    config = parse_config(config_parser("test", "", ""), options)
    model = config.model
    assert (model.use_ppm, model.pool, model.bins, model.dim_reduction, config.train.aux_weight) == expected
    net = build_model(model, len(CLASSES))
    levels = len(model.bins) if model.use_ppm else 0
    width = 512 // max(len(model.bins), 1) if model.dim_reduction else 512
    assert net.cls[0].in_channels == 512 + levels * width


def test_every_row_of_the_tables_is_trained() -> None:
    assert len(ablation_rows.TABLE_1) == 9 and set(PAPER_1) <= set(ROWS)
    assert set(PAPER_2) - {ablation_rows.DEFAULT_WEIGHT} <= set(ROWS)


def test_comparisons() -> None:
    runs = made_up(baseline=[0.4, 0.41, 0.42], B1_MAX=[0.43, 0.43, 0.43], B1236_AVE_DR=[0.30, 0.31, 0.32])
    assert summary(runs[BASELINE])["miou"] == pytest.approx(41) and summary(runs[BASELINE])["spread"] == pytest.approx(
        1
    )
    found = {(pair.first, pair.second): pair for pair in comparisons(runs, PAPER_1)}
    assert len(found) == 21
    ahead = found[BASELINE, "B1 MAX"]
    assert ahead.here == pytest.approx(2) and ahead.paper == pytest.approx(2.71)
    assert ahead.noise == pytest.approx(1 / np.sqrt(3)) and ahead.agrees and ahead.clear
    behind = found[BASELINE, PSPNET]
    assert behind.here == pytest.approx(-10) and not behind.agrees and behind.clear
    same = found["B1 AVE", "B1236 MAX"]
    assert same.here == 0 and not same.clear


def test_page_says_where_the_order_differs() -> None:
    runs = made_up(baseline=[0.4, 0.41, 0.42], B1236_AVE_DR=[0.30, 0.31, 0.32])
    text = results._order(comparisons(runs, PAPER_1))
    opposite = next(line for line in text.splitlines() if line.startswith("- The opposite order, clearly"))
    assert f"{BASELINE} to {PSPNET} -10.00 +- 0.82 (+4.45 in the paper)" in opposite
    table = results._table(runs, [BASELINE, "B1 MAX DR"], PAPER_1).splitlines()
    assert "| 41.00 +- 1.00 | 90.00 |" in table[2] and "37.23, 78.01" in table[2]
    assert "|  | `--model.bins=[1]`" in table[3]


def test_pictures(tmp_path: Path) -> None:
    ablation_plots.beside_the_paper(made_up(), tmp_path / "tables.png")
    ablation_plots.classes(made_up(), tmp_path / "classes.png")
    for name in ("tables", "classes"):
        with Image.open(tmp_path / f"{name}.png") as picture:
            assert np.asarray(picture).std() > 10


def test_runs_are_trained_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second call takes the finished run's record, one after a kill resumes; other options are refused."""
    calls: list[list[str]] = []

    def command(arguments: list[str], log: Path, variables: object) -> None:
        calls.append(arguments)
        contents = {"config.yaml": trainings._config(wanted), "history.json": "[]", "environment.json": "{}"}
        for name, content in {**contents, "metrics.json": f"[{len(calls)}]"}.items():
            write_text(tmp_path / "run" / name, content)

    wanted = [f"--out={tmp_path / 'run'}", "--train.seed=0", "--train.steps=3"]
    monkeypatch.setattr(trainings, "psp_fast", command)
    first = trainings.train(tmp_path / "run", wanted[2:], 0)
    assert first["metrics"] == [1] and first["config"]["train"]["steps"] == 3
    assert trainings.train(tmp_path / "run", wanted[2:], 0) == first
    assert calls == [["train", "scenes", *wanted]]
    (tmp_path / "run.json").unlink()
    assert trainings.train(tmp_path / "run", wanted[2:], 0)["metrics"] == [2]
    assert calls[1:] == [["train", "--resume", str(tmp_path / "run")]]
    with pytest.raises(PspFastError, match="holds a run with another configuration"):
        trainings.train(tmp_path / "run", wanted[2:], 1)


def test_a_failing_run_says_why(tmp_path: Path) -> None:
    with pytest.raises(PspFastError, match=r"failed; .*run.log ends with:\n.*optim.lr"):
        trainings.train(tmp_path / "run", ["--optim.lr=-1"], 0)


def test_a_seed_has_its_own_folder() -> None:
    assert ablation.place(Path("runs"), PSPNET, 2) == Path("runs/B1236-AVE-DR-2")
