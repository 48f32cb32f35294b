"""Starting from another network's weights: what is loaded, what is new, what is refused, and that it is said."""

import functools
import re

import pytest
import torch
from torch import nn

from psp_fast import PSPNet, load_checkpoint
from psp_fast.checkpoints import read_weights, save_checkpoint
from psp_fast.checkpoints.exporting import to_mmseg
from psp_fast.engine.distributed import Ranks
from psp_fast.engine.run import check_normalisation
from psp_fast.engine.train import Trainer
from psp_fast.errors import CheckpointError, ConfigError
from psp_fast.normalisation import MEAN, STD
from tests.engine import small

pytestmark = pytest.mark.usefixtures("two_threads")

WHOLE = ["layer0", "layer1", "layer2", "layer3", "layer4", "ppm", "cls", "cls.4", "aux", "aux.4"]


def make(**options):
    return PSPNet(**{"layers": 18, "classes": 3, "pretrained": False, **options})


@pytest.fixture(autouse=True)
def uninitialised(monkeypatch):
    """Networks are made without drawing their weights, which takes longer than all else here."""
    for name in ("kaiming_normal_", "kaiming_uniform_"):
        monkeypatch.setattr(nn.init, name, lambda tensor, *_, **__: tensor.data.zero_())


@functools.cache
def source(**options):
    """A network's weights, no two alike."""
    generator = torch.Generator().manual_seed(1)
    state = make(**options).state_dict()
    return {k: v.uniform_(0.1, 1, generator=generator) if v.is_floating_point() else v for k, v in state.items()}


def save(path, state, **config):
    torch.save({"config": {"model": {}, **config}, "state_dict": state} if config else {"state_dict": state}, path)
    return path


def part(key):
    module, _, rest = key.partition(".")
    return f"{module}.4" if module in ("cls", "aux") and rest.startswith("4") else module


def loaded(model, state):
    """The parts of a model whose tensors are all those of state."""
    own = model.state_dict()
    equal = {key: key in state and torch.equal(value, state[key]) for key, value in own.items()}
    return [name for name in dict.fromkeys(map(part, own)) if all(equal[key] for key in own if part(key) == name)]


def said(caplog):
    """The rows of the table that was logged last."""
    lines = caplog.messages[-1].splitlines()[1:]
    return [(line[2:11].strip(), line[12:]) for line in lines]


def test_another_number_of_classes_makes_new_classifiers(tmp_path, caplog):
    state = source(classes=7)
    model = make(classes=3, pretrained=save(tmp_path / "a.pth", state))
    assert loaded(model, state) == [name for name in WHOLE if not name.endswith(".4")]
    assert model.cls[4].weight.shape[0] == model.aux[4].weight.shape[0] == 3
    assert caplog.messages[-1].startswith(f"weights of {tmp_path / 'a.pth'} (semseg's layout):\n")
    assert said(caplog)[:2] == [
        ("loaded", "layer0, layer1, layer2, layer3, layer4, ppm, cls, aux"),
        ("new", "cls.4, aux.4: 7 classes in the file, 3 here"),
    ]


def test_all_of_a_network_is_loaded(tmp_path, caplog):
    model = make(pretrained=save(tmp_path / "a.pth", source()))
    assert loaded(model, source()) == WHOLE
    assert [name for name, _ in said(caplog)] == ["loaded", "images"]


@pytest.mark.parametrize(
    ("there", "here", "new", "rows"),
    [
        (
            {"bins": (1, 2, 3, 6)},
            {"bins": (1, 2, 4, 8)},
            ["ppm", "cls", "cls.4"],
            [
                ("new", "ppm, cls: bins is (1, 2, 3, 6) in the file, (1, 2, 4, 8) here"),
                ("new", "cls.4: reads cls, which is new"),
            ],
        ),
        (
            {"pool": "avg"},
            {"pool": "max"},
            ["ppm", "cls", "cls.4"],
            [("new", "ppm, cls: pool is avg in the file, max")],
        ),
        ({"aux": False}, {}, ["aux", "aux.4"], [("new", "aux, aux.4: not in the file")]),
        ({}, {"aux": False}, [], [("left out", "aux, aux.4: not in the model")]),
        (
            {"head_channels": (32, 48, 64)},
            {"head_channels": (32, 48, 16)},
            ["aux", "aux.4"],
            [("new", "aux: aux.0.weight is (64, 256, 3, 3) in the file, (16, 256, 3, 3) here")],
        ),
        ({"use_ppm": False}, {}, ["ppm", "cls", "cls.4"], [("new", "cls: use_ppm is False in the file, True here")]),
    ],
    ids=["bins", "pool", "no aux in the file", "no aux in the model", "head_channels", "FCN"],
)
def test_heads_that_are_others_stay_new(tmp_path, caplog, there, here, new, rows):
    state = source(**{k: v for k, v in there.items() if k not in ("bins", "pool")})
    path = save(tmp_path / "a.pth", state, model=there)
    model = make(pretrained=path, **here)
    assert loaded(model, state) == [name for name in dict.fromkeys(map(part, model.state_dict())) if name not in new]
    table = said(caplog)
    for name, text in rows:
        assert any(row == name and told.startswith(text) for row, told in table), table


@pytest.mark.parametrize(
    ("config", "here", "message"),
    [
        ({"dilation": "mmseg"}, {}, r"dilation +mmseg +semseg\n.*make the model with dilation='mmseg' \(--model\.dil"),
        ({"output_stride": 16}, {}, r"output_stride +16 +8\n"),
        ({"align_corners": False}, {}, r"align_corners +False +True\n.*\(--model\.align_corners false\)"),
        ({"stride_in_1x1": True}, {}, r"stride_in_1x1 +True +False\n"),
        ({}, {"stem": "torchvision"}, r"stem +deep +torchvision\n"),
        ({}, {"layers": 34}, r"layers +18 +34\n"),
    ],
)
def test_another_geometry_is_refused(tmp_path, config, here, message):
    path = save(tmp_path / "a.pth", source(), model=config)
    with pytest.raises(CheckpointError, match=message):
        make(pretrained=path, **here)


def test_a_whole_networks_backbone_has_its_dilation(tmp_path, caplog):
    """mmsegmentation's v1c in a network that is dilated as semseg's."""
    model = make(stem="v1c", dilation="mmseg", align_corners=False)
    model.load_state_dict(source(stem="v1c"))
    torch.save({"meta": {}, "state_dict": to_mmseg(model)[0]}, tmp_path / "a.pth")
    other = make(stem="v1c")
    with pytest.raises(CheckpointError, match=r"dilation +mmseg +semseg"):
        load_checkpoint(other, tmp_path / "a.pth", backbone_only=True)
    assert loaded(other, model.state_dict()) == []
    fits = make(stem="v1c", dilation="mmseg")
    load_checkpoint(fits, tmp_path / "a.pth", backbone_only=True)
    assert loaded(fits, model.state_dict()) == WHOLE[:5]
    assert ("kept", "ppm, cls, cls.4, aux, aux.4: only the backbone was wanted") in said(caplog)


def test_from_checkpoint_with_other_classes(tmp_path, caplog):
    path = save(
        tmp_path / "a.pth", source(), model={"dilation": "mmseg"}, augment={"mean": [1, 2, 3], "std": [4, 5, 6]}
    )
    model = PSPNet.from_checkpoint(path, classes=5)
    assert (model.options["classes"], model.options["dilation"]) == (5, "mmseg")
    assert loaded(model, source()) == [name for name in WHOLE if not name.endswith(".4")]
    assert ("new", "cls.4, aux.4: 3 classes in the file, 5 here") in said(caplog)
    assert ("images", "normalised by mean (1, 2, 3), std (4, 5, 6)") in said(caplog)
    caplog.clear()
    assert loaded(PSPNet.from_checkpoint(path), source()) == WHOLE
    assert not caplog.messages


def test_from_checkpoint_still_refuses_what_classes_do_not_explain(tmp_path):
    state = {key: value for key, value in source().items() if not key.startswith("ppm.features.2")}
    with pytest.raises(CheckpointError, match=r"missing in the file:\n +ppm\.features\.2\.1\.weight"):
        PSPNet.from_checkpoint(
            save(tmp_path / "a.pth", state), classes=5, bins=(1, 2, 3, 6), head_channels=(128, 128, 64)
        )


def test_an_auxiliary_head_can_be_added(tmp_path, caplog):
    state = source(aux=False)
    model = PSPNet.from_checkpoint(save(tmp_path / "a.pth", state), aux=True)
    assert loaded(model, state) == WHOLE[:8] and ("new", "aux, aux.4: not in the file") in said(caplog)


def test_an_argument_against_the_file_wins_and_is_said(tmp_path, caplog):
    path = save(tmp_path / "a.pth", source(), model={"dilation": "mmseg", "align_corners": False})
    model = PSPNet.from_checkpoint(path, dilation="semseg", align_corners=False)
    assert model.options["dilation"] == "semseg"
    assert caplog.messages == [f"{path}: dilation='semseg' as given, 'mmseg' in the file"]
    PSPNet.from_checkpoint(path, dilation="semseg", classes=4)
    assert ("given", "dilation='semseg' as given, 'mmseg' in the file") in said(caplog)


def test_training_normalises_as_the_file_says(tmp_path):
    options = {"output_stride": 16}
    state = source(classes=7)
    told = {"mean": [123.68, 116.779, 103.939], "std": [1.0, 1.0, 1.0]}
    path = str(save(tmp_path / "a.pth", state, model=options, augment=told))
    ranks = Ranks(0, 1, torch.device("cpu"))
    with pytest.raises(ConfigError) as caught:
        Trainer(small.config(model__pretrained=path), ranks)
    message = str(caught.value)
    assert f"{path} is of images normalised by mean [123.68, 116.779, 103.939] and std [1.0, 1.0, 1.0]" in message
    assert "--augment.mean '[123.68, 116.779, 103.939]' --augment.std '[1.0, 1.0, 1.0]'" in message
    agreeing = {"augment__mean": tuple(told["mean"]), "augment__std": tuple(told["std"])}
    trainer = Trainer(small.config(model__pretrained=path, **agreeing), ranks)
    assert torch.equal(trainer.model.layer4[0].conv1.weight, state["layer4.0.conv1.weight"])
    trainer.model.normalised_by = None  # as of a file that tells nothing
    check_normalisation(trainer.model, small.config().augment)


def imagenet(path, state):
    names = {"layer0.0": "conv1", "layer0.1": "bn1"}
    content = {re.sub(r"^layer0\.\d", lambda m: names[m[0]], k): v for k, v in state.items() if k.startswith("layer")}
    torch.save(content | {"fc.weight": torch.zeros(10, 512), "fc.bias": torch.zeros(10)}, path)
    return path


@pytest.mark.parametrize("channels", [1, 2, 4, 6])
def test_rgb_weights_for_images_of_other_channels(tmp_path, caplog, channels):
    state = source(stem="torchvision")
    first = state["layer0.0.weight"]
    model = make(stem="torchvision", in_channels=channels, pretrained=imagenet(tmp_path / "a.pth", state))
    # By hand what timm does: the sum for grey images, else the colours in turn, scaled so that the sum stays the same.
    turns = torch.stack([first[:, i % 3] for i in range(channels)], 1) * (3 / channels)
    expected = first.sum(1, keepdim=True) if channels == 1 else turns
    torch.testing.assert_close(model.layer0[0].weight, expected)
    assert torch.equal(model.layer4[0].conv1.weight, state["layer4.0.conv1.weight"])
    assert model.options["in_channels"] == channels and len(model.mean) == len(model.std) == channels
    (text,) = (text for name, text in said(caplog) if name == "adapted")
    assert f"for {channels} channel" in text
    assert model.layer0(torch.randn(1, channels, 33, 33)).shape == (1, 64, 9, 9)


def test_in_channels_of_a_whole_network(tmp_path, caplog):
    path = save(tmp_path / "rgb.pth", source())
    model = PSPNet.from_checkpoint(path, in_channels=1)
    assert loaded(model, source()) == WHOLE[1:]
    assert torch.equal(model.layer0[0].weight, source()["layer0.0.weight"].sum(1, keepdim=True))
    grey = save(tmp_path / "grey.pth", model.state_dict())
    again = PSPNet.from_checkpoint(grey)
    assert again.options["in_channels"] == 1 and loaded(again, model.state_dict()) == WHOLE
    assert again.mean == pytest.approx((sum(MEAN) / 3,)) and again.std == pytest.approx((sum(STD) / 3,))
    for build in (lambda: load_checkpoint(make(in_channels=1), path), lambda: make(pretrained=grey)):
        with pytest.raises(CheckpointError, match=r"in_channels +(3 +1|1 +3)\n"):
            build()


def test_weights_of_the_loss_are_no_weights_of_the_network(tmp_path):
    path = tmp_path / "a.pth"
    save_checkpoint({"state_dict": source() | {"criterion.weight": torch.ones(3)}}, path)
    model = make()
    load_checkpoint(model, path)
    assert loaded(model, source()) == WHOLE
    assert "criterion.weight" not in read_weights(path).state
