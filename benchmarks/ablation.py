"""The paper's Tables 1 and 2 and its multi-scale test in miniature, on the built-in scenes.

    python -m benchmarks.ablation

trains a short scenes recipe for every row of ablation_rows.py with 3 seeds, a process a core, and evaluates two rows at
several scales besides. A killed call goes on where it was. Writes docs/results/scenes_ablation.json, a plot beside the
paper's numbers, one of the IoU of every class, and a picture of what networks with and without the pyramid see.
"""

from __future__ import annotations

import argparse
import json
import os
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

from tqdm import tqdm

from benchmarks import ablation_plots
from benchmarks.ablation_rows import BASELINE, DEFAULT_WEIGHT, MULTI_SCALE, PSPNET, ROWS, SEVERAL_SCALES, SHORT, summary
from benchmarks.trainings import psp_fast, same_environment, train
from psp_fast.files import write_text


def run_all(folder: Path, seeds: int) -> dict[str, Any]:
    """Measures of every row and seed; all rows of a seed see the same scenes in the same order."""
    records: dict[tuple[str, int], tuple[dict[str, Any], dict[str, Any] | None]] = {}
    wanted = [(name, seed) for seed in range(seeds) for name in ROWS]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        runs = {pool.submit(run, folder, name, seed): (name, seed) for name, seed in wanted}
        try:
            for done in tqdm(as_completed(runs), "trainings", total=len(runs), unit="run"):
                records[runs[done]] = done.result()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    trained = {name: [records[name, seed][0] for seed in range(seeds)] for name in ROWS}
    measured = {name: [_measures(run) for run in rows] for name, rows in trained.items()}
    measured[DEFAULT_WEIGHT] = measured[BASELINE]
    for name, other in SEVERAL_SCALES.items():
        measured[other] = [records[name, seed][1] for seed in range(seeds)]  # type: ignore[misc]
    environment = same_environment([run for rows in trained.values() for run in rows], folder)
    return {"environment": environment, "config": trained[PSPNET][0]["config"], "runs": measured}


def run(folder: Path, name: str, seed: int) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """The record of one training on one thread, and the measures at several scales of the rows that have them."""
    target, alone = place(folder, name, seed), {"OMP_NUM_THREADS": "1"}
    found = train(target, [*SHORT, *ROWS[name]], seed, alone)
    if name not in SEVERAL_SCALES:
        return found, None
    result = target / "multi_scale" / "evaluation.json"
    if not result.exists():
        options = [*MULTI_SCALE, f"--out={result.parent}"]
        psp_fast(["evaluate", str(target / "last.pth"), *options], Path(f"{target}.multi_scale.log"), alone)
    return found, json.loads(result.read_text(encoding="utf-8"))


def place(folder: Path, name: str, seed: int) -> Path:
    """The folder of a row's run."""
    return folder / f"{name.replace(' ', '-')}-{seed}"


def _measures(run: dict[str, Any]) -> dict[str, Any]:
    return {**run["metrics"], "seconds": run["history"][-1]["seconds"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--runs", type=Path, default=Path("runs/ablation"), help="folder of the runs")
    parser.add_argument("--out", type=Path, default=Path("docs/results"), help="folder of the results")
    arguments = parser.parse_args()
    results = run_all(arguments.runs, arguments.seeds)
    write_text(arguments.out / "scenes_ablation.json", json.dumps(results, indent=1) + "\n")
    ablation_plots.beside_the_paper(results["runs"], arguments.out / "scenes_ablation.png")
    ablation_plots.classes(results["runs"], arguments.out / "scenes_classes.png")
    seen = {
        title: place(arguments.runs, name, 0) / "last.pth" for title, name in (("FCN", BASELINE), ("PSPNet", PSPNET))
    }
    ablation_plots.draw_examples(seen, arguments.out / "scenes_examples.png")
    for name, rows in results["runs"].items():
        row = summary(rows)
        print(
            f"{name:18} mIoU {row['miou']:.2f} +- {row['spread']:.2f} %, pixel accuracy {row['pixel_accuracy']:.2f} %"
        )


if __name__ == "__main__":
    main()
