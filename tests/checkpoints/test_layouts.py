"""Other projects' names and conventions; tests/models/test_peer_parity.py compares what their networks compute."""

import functools
import re

import numpy as np
import pytest
import torch

from psp_fast import PSPNet, load_checkpoint
from psp_fast.checkpoints import read_weights
from psp_fast.checkpoints.architecture import infer_options
from psp_fast.checkpoints.exporting import to_mmseg
from psp_fast.errors import CheckpointError
from psp_fast.normalisation import MEAN
from tests.checkpoints.files import write_pdparams

pytestmark = pytest.mark.usefixtures("two_threads")

MMSEG = {"stem": "v1c", "dilation": "mmseg", "align_corners": False}


def make(seed=0, **options):
    torch.manual_seed(seed)
    return PSPNet(**{"layers": 18, "classes": 3, "pretrained": False, **options})


def empty(**options):
    """A network that has yet to be loaded."""
    with torch.device("meta"):
        network = make(**options)
    return network.to_empty(device="cpu")


@functools.cache
def source_state(**options):
    return make(1, **options).state_dict()


def renamed(state, rules):
    """A backbone's tensors by the names that the first fitting rule makes, without batch norm's counters."""
    found = {}
    for key, value in state.items():
        if key.startswith("layer") and not key.endswith("tracked"):
            names = (re.sub(pattern, replacement, key) for pattern, replacement in rules)
            found[next((name for name in names if name != key), key)] = value
    return found


def assert_backbones_equal(model, source):
    assert all(torch.equal(v, model.state_dict()[k]) for k, v in source.items() if k.startswith("layer"))


TIMM = (
    (r"^layer0\.7\.", "bn1."),
    (r"^layer0\.", "conv1."),
    (r"\.downsample\.1\.", ".downsample.2."),
    (r"\.downsample\.0\.", ".downsample.1."),
)


@pytest.mark.parametrize(
    ("options", "rules"),
    [
        ({"stem": "torchvision"}, ((r"^layer0\.0\.", "conv1."), (r"^layer0\.1\.", "bn1."))),
        ({"stem": "v1c"}, ((r"^layer0\.", "stem."),)),
        ({"stem": "deep"}, TIMM[:2]),
        ({"stem": "v1c", "avg_down": True}, TIMM),
    ],
    ids=["torchvision", "OpenMMLab v1c", "timm s", "timm d"],
)
def test_imagenet_layouts(tmp_path, options, rules):
    source = source_state(**options)
    content = renamed(source, rules) | {"fc.weight": torch.zeros(10, 512), "fc.bias": torch.zeros(10)}
    torch.save(content, tmp_path / "a.pth")
    assert_backbones_equal(make(2, **options, pretrained=tmp_path / "a.pth"), source)


def test_paddles_imagenet_layout(tmp_path):
    options = {"stem": "v1c", "avg_down": True}
    source = source_state(**options)
    names = {}
    for key in renamed(source, ()):
        new = re.sub(r"^layer0\.([036])\.", lambda m: f"conv1_{int(m[1]) // 3 + 1}._conv.", key)
        new = re.sub(r"^layer0\.([147])\.", lambda m: f"conv1_{int(m[1]) // 3 + 1}._batch_norm.", new)
        new = re.sub(r"^layer([1-4])\.(\d+)\.", lambda m: f"bb_{int(m[1]) - 1}_{m[2]}.", new)
        new = re.sub(r"\.conv(\d)\.", lambda m: f".conv{int(m[1]) - 1}._conv.", new)
        new = re.sub(r"\.bn(\d)\.", lambda m: f".conv{int(m[1]) - 1}._batch_norm.", new)
        new = new.replace(".downsample.0.", ".short._conv.").replace(".downsample.1.", ".short._batch_norm.")
        names[new.replace("running_mean", "_mean").replace("running_var", "_variance")] = source[key].numpy()
    names |= {"out.weight": np.zeros((512, 10), np.float32), "out.bias": np.zeros(10, np.float32)}
    path = write_pdparams(tmp_path / "resnet18_vd.pdparams", names)
    assert_backbones_equal(make(2, **options, pretrained=path), source)


def test_average_pooled_shortcuts_are_another_network(tmp_path):
    source = source_state(stem="v1c", avg_down=True)
    torch.save(renamed(source, TIMM), tmp_path / "resnet18d.pth")
    with pytest.raises(CheckpointError, match=r"avg_down +True +False\n.*make the model with avg_down=True"):
        make(2, stem="v1c", pretrained=tmp_path / "resnet18d.pth")


def save_mmseg(path, meta=None, **options):
    state = source_state(**{**MMSEG, **options})
    model = empty(**{**MMSEG, **options})
    model.load_state_dict(state)
    torch.save({"meta": meta or {}, "state_dict": to_mmseg(model)[0]}, path)
    return state


def test_mmsegmentations_conventions_are_set_on_the_model(tmp_path):
    state = save_mmseg(tmp_path / "a.pth")
    model = empty(stem="v1c", dilation="mmseg")
    load_checkpoint(model, tmp_path / "a.pth")
    flags = [model.align_corners, model.ppm.align_corners]
    assert flags == [False] * 2 and model.options["align_corners"] is False
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    load_checkpoint(model, tmp_path / "a.pth", align_corners=True)
    assert model.align_corners and model.ppm.align_corners


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("decode_head=dict(align_corners=True, x=1), auxiliary_head=dict(align_corners=True)", {"align_corners": True}),
        ("{'align_corners': True, 'style': 'caffe'}", {"align_corners": True, "stride_in_1x1": True}),
        ("decode_head=dict(align_corners=True), auxiliary_head=dict(align_corners=False)", {"align_corners": False}),
        ("dilations=(1, 1, 1, 2), contract_dilation=False", {"output_stride": 16, "dilation": "semseg"}),
        ("dilations=(\n        1,\n        1,\n        1,\n        2,\n    ),", {"output_stride": 16}),
        ("{'dilations': [1, 1, 1, 2], 'pool_scales': [1, 2, 4, 8]}", {"output_stride": 16, "bins": (1, 2, 4, 8)}),
        ("style='pytorch', contract_dilation=True", {"stride_in_1x1": False, "dilation": "mmseg"}),
        ("", {"align_corners": False, "stride_in_1x1": False, "dilation": "mmseg"}),
    ],
)
def test_mmsegmentations_configuration_in_the_file(tmp_path, text, expected):
    few = {f"decode_head.{name}.conv.weight": torch.zeros(1) for name in ("psp_modules.0.1", "bottleneck")}
    torch.save({"meta": {"cfg": text}, "state_dict": few}, tmp_path / "a.pth")
    options = read_weights(tmp_path / "a.pth").options
    assert {name: options[name] for name in expected} == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("backbone=dict(dilations=(1, 1, 1, 1), strides=(1, 2, 2, 2))", "output_stride must be .* got 32"),
        ("backbone=dict(dilations=(1, 2, 2, 4))", r"output_stride must be .* got 'that of dila"),
        (
            "backbone=dict(depth=18, contract_dilation=False)",
            "dilation must be .* got 'mmseg with c",
        ),
    ],
)
def test_networks_of_mmsegmentation_that_pspnet_cannot_be(tmp_path, text, message):
    save_mmseg(tmp_path / "a.pth", {"config": text})
    with pytest.raises(CheckpointError, match=rf"a\.pth \(mmsegmentation's layout\): .*{message}"):
        PSPNet.from_checkpoint(tmp_path / "a.pth")


@pytest.mark.parametrize("said", ["bgr_to_rgb=False", "'to_rgb': False"])
def test_mmsegmentations_normalisation_in_the_file(tmp_path, said):
    """A network of BGR images becomes one of RGB images."""
    text = f"data_preprocessor=dict(mean=[103.53, 116.28, 123.675], std=[1.0, 2.0, 3.0], {said})"
    state = save_mmseg(tmp_path / "a.pth", {"cfg": text})
    weights = read_weights(tmp_path / "a.pth")
    assert (weights.mean, weights.std) == ((123.675, 116.28, 103.53), (3, 2, 1))
    assert torch.equal(weights.state["layer0.0.weight"], state["layer0.0.weight"][:, [2, 1, 0]])
    assert torch.equal(weights.state["layer0.3.weight"], state["layer0.3.weight"])


def test_mmsegmentations_text_without_colours_keeps_imagenets(tmp_path):
    save_mmseg(tmp_path / "a.pth", {"cfg": "mean=[1.0, 2.0, 3.0], other=dict(mean=[4.0, 5.0, 6.0], bgr_to_rgb=True)"})
    assert read_weights(tmp_path / "a.pth").mean == MEAN


def test_another_dilation_is_explained_and_can_be_chosen(tmp_path):
    save_mmseg(tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match=r"dilation +mmseg +semseg\n.*from_checkpoint\(path\) makes"):
        load_checkpoint(empty(stem="v1c"), tmp_path / "a.pth")
    chosen = PSPNet.from_checkpoint(tmp_path / "a.pth", dilation="semseg", align_corners=True)
    assert chosen.options["dilation"] == "semseg" and chosen.ppm.align_corners is True


def test_mmsegmentations_7x7_stem(tmp_path):
    source = save_mmseg(tmp_path / "a.pth", stem="torchvision")
    model = PSPNet.from_checkpoint(tmp_path / "a.pth")
    assert model.options["stem"] == "torchvision"
    assert torch.equal(model.layer0[0].weight, source["layer0.0.weight"])


MIT_DECODER = ((r"^ppm\.features\.", "ppm."), (r"^cls\.", "conv_last."), (r"^aux\.4\.", "conv_last_deepsup."))


def save_mit(folder, state):
    decoder = {}
    for key, value in state.items():
        new = key
        for pattern, replacement in (*MIT_DECODER, (r"^aux\.", "cbr_deepsup.")):
            new = re.sub(pattern, replacement, new)
        if not key.startswith("layer"):
            decoder[new] = value
    stem = [(rf"^layer0\.{3 * i + j}\.", f"{kind}{i + 1}.") for i in range(3) for j, kind in enumerate(("conv", "bn"))]
    encoder = renamed(state, stem)
    encoder |= {"bn1._tmp_running_mean": torch.zeros(64), "bn1._running_iter": torch.ones(1)}
    torch.save(encoder, folder / "encoder.pth")
    torch.save(decoder, folder / "decoder.pth")
    return folder / "encoder.pth", folder / "decoder.pth"


def test_mits_two_files_make_one_network(tmp_path):
    source = source_state(dilation="mit")
    encoder, decoder = save_mit(tmp_path, source)
    model = PSPNet.from_checkpoint((decoder, encoder))
    assert model.options["dilation"] == "mit" and model.align_corners is False
    assert all(torch.equal(value, source[key]) for key, value in model.state_dict().items())
    with pytest.raises(CheckpointError, match=r"decoder\.pth.*\n.*missing in the file:\n.*layer0\.0\.weight"):
        load_checkpoint(empty(dilation="mit"), decoder)
    with pytest.raises(CheckpointError, match=r"both hold .*: give the files of one network"):
        load_checkpoint(empty(), (encoder, encoder))
    with pytest.raises(CheckpointError, match="holds a backbone alone"):
        PSPNet.from_checkpoint(encoder)


@pytest.mark.parametrize(
    ("key", "reason"),
    [
        ("decoder.psp.blocks.0.pool.1.0.weight", "segmentation_models_pytorch's PSPNet, which is not the paper's"),
        ("decode_head.conv_seg.weight", "other than PSPNet"),
        ("encoder.stages.0.weight", r"no known layout \(its keys: encoder\.stages\.0\.weight"),
    ],
)
def test_other_networks_are_refused(tmp_path, key, reason):
    torch.save({key: torch.zeros(2, 2, 1, 1)}, tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match=rf"a\.pth is .*{reason}"):
        load_checkpoint(empty(), tmp_path / "a.pth")


@pytest.mark.parametrize(
    "options",
    [
        {"stem": "torchvision", "classes": 9, "bins": (1,), "aux": False, "layers": 34},
        {"layers": 269, "stem": "v1c", "aux": False},
        {"use_ppm": False},
        {"dim_reduction": False},
        {"head_channels": (32, 48, 16), "layers": 101},
    ],
)
def test_shapes_tell_the_arguments(options):
    with torch.device("meta"):
        source = make(**options)
        again = PSPNet(**infer_options(source.state_dict()), pretrained=False)
    assert again.options == source.options


def test_the_auxiliary_head_may_be_left_out(tmp_path):
    source = source_state()
    torch.save(source, tmp_path / "a.pth")
    model = PSPNet.from_checkpoint(tmp_path / "a.pth", aux=False)
    assert not hasattr(model, "aux")
    assert torch.equal(model.cls[4].weight, source["cls.4.weight"])


def test_another_depth_is_a_table_and_its_keys(tmp_path):
    state = empty(layers=34, classes=7).state_dict()
    torch.save({key: torch.zeros_like(value) for key, value in state.items()}, tmp_path / "a.pth")
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(empty(), tmp_path / "a.pth")
    lines = str(caught.value).splitlines()
    assert [line.split() for line in lines[1:4]] == [["file", "model"], ["layers", "34", "18"], ["classes", "7", "3"]]
    assert "not in the model" in lines[4]
    assert lines[-1] == "  PSPNet.from_checkpoint(path) makes the network that the file is of"
