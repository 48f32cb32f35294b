"""Damaged last.pth and files of a measured evaluation: refused by field, or measured again."""

import copy

import pytest
import torch
from torch import nn, optim

from psp_fast.checkpoints import save_checkpoint
from psp_fast.engine.progress import Progress
from psp_fast.engine.resumable import check_counters, check_optimizer
from psp_fast.engine.run import load_weights
from psp_fast.errors import CheckpointError

NAN = float("nan")


@pytest.fixture(scope="module")
def run():
    """A small run's optimiser, and its checkpoint after a step."""
    model = nn.Linear(3, 2)
    optimizer = optim.SGD(
        [{"params": [model.weight], "lr_factor": 1.0}, {"params": [model.bias], "lr_factor": 10.0}], 1
    )
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.param_groups[0]["momentum"] = optimizer.param_groups[1]["momentum"] = 0.9
    optimizer.step()
    content = {
        "step": 3,
        "best": -1.0,
        "seconds": 2.5,
        "validated": False,
        "history": [{"step": 3, "seconds": 2.5, "main_loss": NAN}],
        "scaler": {},
        "optimizer": optimizer.state_dict(),
    }
    return optimizer, content


def test_what_a_run_saves_is_accepted(run):
    check_counters(run[1], "last.pth")
    check_optimizer(run[1], run[0], "last.pth")


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("step", "3"),
        ("step", -1),
        ("step", 2.5),
        ("step", True),
        ("best", None),
        ("best", NAN),
        ("seconds", -1.0),
        ("validated", "no"),
        ("history", {}),
        ("history", [3]),
        ("history", [{"step": "3"}]),
        ("scaler", []),
        ("scaler", {"scale": "x"}),
        ("optimizer", 3),
        ("optimizer.state", []),
        ("optimizer.state", {9: {"momentum_buffer": torch.ones(2)}}),
        ("optimizer.state", {"a": {}}),
        ("optimizer.state.0", 3),
        ("optimizer.state.0.momentum_buffer", torch.ones(9)),
        ("optimizer.state.0.momentum_buffer", torch.full((2, 3), NAN)),
        ("optimizer.state.0.momentum_buffer", 3.0),
        ("optimizer.param_groups", []),
        ("optimizer.param_groups", [3, 4]),
        ("optimizer.param_groups.0.params", [5]),
        ("optimizer.param_groups.0.lr_factor", "much"),
        ("optimizer.param_groups.1.lr_factor", NAN),
    ],
)
def test_a_damaged_field_is_named(run, path, value):
    optimizer, content = run
    content = copy.deepcopy(content)
    *parents, last = (int(part) if part.isdigit() else part for part in path.split("."))
    owner = content
    for part in parents:
        owner = owner[part]
    owner[last] = value
    with pytest.raises(CheckpointError, match=rf"last\.pth.*{path.split('.')[min(1, len(parents))]}"):
        check_counters(content, "last.pth")
        check_optimizer(content, optimizer, "last.pth")


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ([], "'state_dict'"),
        ({"a": 3}, "'state_dict'"),
        ({"a": torch.tensor([NAN])}, "a has numbers that are not finite"),
    ],
)
def test_damaged_weights_of_a_run_are_named(state, message):
    with pytest.raises(CheckpointError, match=rf"last\.pth.*{message}"):
        load_weights(nn.Linear(3, 2), state, "last.pth")


def measured(tmp_path, **changes):
    """What is taken over from a file of two of three images in two classes."""
    file = tmp_path / "evaluation.measured.0"
    content = {
        "evaluation": "key",
        "images": torch.tensor([0, 2]),
        "stamps": ["0", "2"],
        "lengths": torch.tensor([1, 2]),
        "counts": torch.tensor([[0, 1, 3], [5, 6, 7]]),
    }
    save_checkpoint(content | changes, file)
    progress = Progress(file, "key")
    progress.load(file, images=3, classes=2)
    return progress


def test_a_measured_file_is_taken_over(tmp_path):
    matrices = dict(measured(tmp_path).matrices(2))
    assert {image: matrix.tolist() for image, matrix in matrices.items()} == {0: [[5, 0], [0, 0]], 2: [[0, 6], [0, 7]]}


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("images", [0, 2]),
        ("images", torch.tensor([0, 3])),
        ("images", torch.tensor([0])),
        ("images", torch.tensor([0.0, 2.0])),
        ("stamps", "02"),
        ("stamps", ["0", 2]),
        ("lengths", torch.tensor([1, 1])),
        ("lengths", torch.tensor([-1, 4])),
        ("lengths", 3),
        ("counts", torch.tensor([0, 1, 3])),
        ("counts", torch.tensor([[0, 1, 4], [5, 6, 7]])),
        ("counts", torch.tensor([[0, 1, 3], [5, 6, -7]])),
        ("counts", None),
    ],
)
def test_a_damaged_measured_file_is_reported_and_not_used(tmp_path, capsys, field, value):
    assert measured(tmp_path, **{field: value}).counts == {}
    told = capsys.readouterr().err
    assert "ignored, and its images are measured again" in told and f"'{field}'" in told
