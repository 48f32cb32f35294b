"""Settings for every benchmark: two threads on a CPU, the same numbers each time, one file of results.

pytest benchmarks/ --benchmark-only [--quick] [--minutes N] [--results FILE.json]
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from benchmarks.suite import Suite
from psp_fast.files import write_text
from psp_fast.info import environment

THREADS = 2


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("psp_fast")
    group.addoption("--quick", action="store_true", help="one input each, no torch.compile: under 2 minutes")
    group.addoption("--minutes", type=float, default=9, help="start no row later than that (default: %(default)s)")
    group.addoption("--results", type=Path, help="write the rows there, as JSON, with machine, versions and commit")


@pytest.fixture(autouse=True, scope="session")
def fixed_conditions() -> Iterator[None]:
    """Two threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(THREADS)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def fixed_seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def suite(request: pytest.FixtureRequest, fixed_conditions: None) -> Iterator[Suite]:
    """Measures rows; writes them when the session ends, those of a cut one as well."""
    quick = request.config.getoption("--quick")
    made = Suite(0.4, quick=quick, say=printer(request.config.pluginmanager))
    yield made
    path = request.config.getoption("--results")
    if path:
        content = {
            "environment": environment(),
            "threads": THREADS,
            "ceilings": made.ceilings()._asdict(),
            "rows": made.rows,
        }
        write_text(path, json.dumps(content, indent=1) + "\n")


def printer(plugins: pytest.PytestPluginManager) -> Callable[[str], None]:
    """Prints lines at once, though pytest keeps what a test prints for itself."""
    reporter, capture = plugins.get_plugin("terminalreporter"), plugins.get_plugin("capturemanager")

    def say(text: str) -> None:
        with capture.global_and_fixture_disabled():
            reporter.write_line(text)

    return say


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Ops on the main input first, then networks, then ops on other inputs; --quick leaves what is `full` out."""
    if config.getoption("--quick"):
        kept = [item for item in items if item.get_closest_marker("full") is None]
        config.hook.pytest_deselected(items=[item for item in items if item not in kept])
        items[:] = kept
    items.sort(key=_turn)


def _turn(item: pytest.Item) -> int:
    full, network = item.get_closest_marker("full") is not None, item.path.stem == "test_models"
    return 3 * full + (network != full)


@pytest.fixture(autouse=True)
def time_left(request: pytest.FixtureRequest, suite: Suite) -> None:
    """Skip a row for which there is no time left, and say so."""
    minutes = request.config.getoption("--minutes")
    if suite.elapsed() > 60 * minutes:
        pytest.skip(f"not measured: {minutes:g} minutes are over; --minutes gives more")
