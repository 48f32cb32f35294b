"""Exported files, run by the runtimes that they are for."""

import dataclasses
import json
import sys

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import torch.nn.functional as F

pytest.importorskip("jsonargparse")

from psp_fast import ops
from psp_fast.checkpoints import save_checkpoint
from psp_fast.cli import main
from psp_fast.engine.export import export, formats
from psp_fast.engine.export.network import ExportNetwork, average_pool, max_pool
from psp_fast.engine.run import Trained, build_model
from psp_fast.errors import ConfigError, PspFastError
from tests.engine import small

ODD, SQUARE = (57, 73), (64, 64)
PALETTE = np.array([[10, 20, 30], [40, 50, 60], [70, 80, 90], [1, 2, 3], [4, 5, 6]], np.uint8)
CLASSES = ("sky", "ground", "tree", "road", "house")


def trained(**options):
    """A network with weights and statistics in which nothing is 0 or 1."""
    torch.manual_seed(0)
    config = small.config(
        **{f"model__{name}": value for name, value in {"output_stride": 8, **options}.items()},
        augment__mean=(100.0, 110.0, 120.5),
    )
    model = build_model(config.model, len(CLASSES)).eval()
    for bn in model.modules():
        if isinstance(bn, torch.nn.BatchNorm2d):
            bn.running_mean.normal_(0, 0.1)
            bn.running_var.uniform_(0.5, 2)
            torch.nn.init.uniform_(bn.weight, 0.5, 1.5)
            torch.nn.init.normal_(bn.bias, 0, 0.1)
    return Trained(model, config, CLASSES, PALETTE)


def images(size, count=1):
    return torch.randn((count, 3, *size), generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def in_pytorch(model, x, output="logits"):
    with ops.use("reference"):
        return model(x) if output == "logits" else model.predict(x)


def run_program(path, x):
    return torch.export.load(path).module()(x)


def run_onnx(path, x):
    return torch.from_numpy(onnxruntime.InferenceSession(path).run(None, {"images": x.numpy()})[0])


def assert_agrees(found, expected):
    assert found.dtype == expected.dtype and found.shape == expected.shape
    if expected.is_floating_point():
        assert (found - expected).norm() <= 1e-5 * expected.norm()
        found, expected = found.argmax(1), expected.argmax(1)
    assert (found == expected).float().mean() >= 0.9999


def test_a_dynamic_program(tmp_path):
    made, path = trained(bins=[1, 6]), tmp_path / "net.pt2"
    agreements = export(made, path, ODD, dynamic=True)
    assert [agreement.size for agreement in agreements] == [ODD, (62, 84)]
    assert all(0 < agreement.error < 1e-5 and agreement.differing == 0 for agreement in agreements)
    description = {formats.METADATA_FILE: ""}
    program = torch.export.load(path, extra_files=description)
    for x in (images(ODD), images(SQUARE, 3), images((9, 130))):
        assert_agrees(program.module()(x), in_pytorch(made.model, x))
        with torch.no_grad():
            assert_agrees(program.module()(x), made.model(x))  # with the kernels
    assert json.loads(description[formats.METADATA_FILE]) == {
        "colours": "RGB",
        "mean": [100.0, 110.0, 120.5],
        "std": list(made.config.augment.std),
        "output": "logits",
        "classes": list(CLASSES),
        "palette": PALETTE.tolist(),
    }
    names = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
    assert "aten.conv2d.default" in names
    assert not any("batch_norm" in name or "psp_fast" in name for name in names)
    assert not any(name.startswith("model.aux") for name in program.state_dict)


@pytest.mark.parametrize("name", ["net.pt2", "net.onnx"])
def test_dynamic_files_of_other_projects_networks(tmp_path, name):
    """mmsegmentation's stem and dilation, and shortcuts that average before they convolve, of odd sides as well."""
    made = trained(stem="v1c", dilation="mmseg", avg_down=True, align_corners=False)
    export(made, tmp_path / name, SQUARE, dynamic=True)
    for x in (images(ODD), images(SQUARE, 2), images((65, 71))):
        found = (run_program if name == "net.pt2" else run_onnx)(tmp_path / name, x)
        assert_agrees(found, in_pytorch(made.model, x))


def test_a_dynamic_onnx_file(tmp_path):
    made, path = trained(), tmp_path / "net.onnx"
    export(made, path, SQUARE, dynamic=True)
    for x in (images(ODD), images(SQUARE, 3), images((7, 130))):
        assert_agrees(run_onnx(path, x), in_pytorch(made.model, x))
    model = onnx.load(path)
    [given], [found] = model.graph.input, model.graph.output
    assert [dim.dim_param or dim.dim_value for dim in given.type.tensor_type.shape.dim] == [
        "batch",
        3,
        "height",
        "width",
    ]
    assert found.name == "logits"
    assert "width" in found.type.tensor_type.shape.dim[3].dim_param
    kinds = [node.op_type for node in model.graph.node]
    convolutions = sum(isinstance(m, torch.nn.Conv2d) for name, m in made.model.named_modules() if name[:3] != "aux")
    assert kinds.count("Conv") == convolutions and "BatchNormalization" not in kinds
    assert {(i.key, i.value) for i in model.metadata_props} >= {
        ("classes", json.dumps(CLASSES)),
        ("mean", "[100.0, 110.0, 120.5]"),
        ("palette", json.dumps(PALETTE.tolist())),
        ("colours", '"RGB"'),
    }
    assert b"network.py" not in path.read_bytes()  # nothing of the source or its folders


def test_labels_of_a_fixed_size_in_onnx_with_max_pooling(tmp_path):
    made, path = trained(pool="max", align_corners=False, dim_reduction=False), tmp_path / "net.onnx"
    [agreement] = export(made, path, ODD, output="labels")
    assert agreement.error is None and agreement.differing == 0
    found = run_onnx(path, images(ODD))
    assert found.dtype == torch.uint8 and len(found.unique()) > 1
    assert_agrees(found, in_pytorch(made.model, images(ODD), "labels"))
    with pytest.raises(Exception, match="Got invalid dimensions"):
        run_onnx(path, images(SQUARE))


@pytest.mark.parametrize(
    ("options", "output"),
    [
        ({"align_corners": False, "zoom_factor": 4, "stem": "torchvision"}, "logits"),
        ({"align_corners": False, "zoom_factor": 4, "stem": "torchvision"}, "labels"),
        ({"use_ppm": False, "output_stride": 16, "aux": False}, "logits"),
        ({"layers": 50, "bins": [4, 1], "dilation": "mmseg"}, "logits"),
    ],
)
def test_the_folded_network_is_the_network(options, output):
    made = trained(**options)
    before = {name: value.clone() for name, value in made.model.state_dict().items()}
    network = ExportNetwork(made.model, output)
    with torch.no_grad():
        for x in (images((41, 50), 2), images((1, 1)), images((10, 33))):
            assert_agrees(network(x), in_pytorch(made.model, x, output))
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in network.modules())
    assert all(torch.equal(value, before[name]) for name, value in made.model.state_dict().items())


@pytest.mark.parametrize("size", [(1, 1), (1, 7), (5, 3), (8, 10), (60, 60), (64, 90), (13, 17)])
@pytest.mark.parametrize("bins", [1, 2, 3, 6, 7])
def test_pooling(size, bins):
    x = torch.randn((2, 3, *size), generator=torch.Generator().manual_seed(0)) - 5
    average = F.adaptive_avg_pool2d(x.double(), bins)
    assert (average_pool(x, bins) - average).abs().max() <= 2e-6 * average.abs().max()
    assert torch.equal(max_pool(x, bins), F.adaptive_max_pool2d(x, bins))


def test_from_a_run_on_the_command_line(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    made = trained(output_stride=16)
    described = {"config": dataclasses.asdict(made.config), "classes": list(CLASSES), "palette": PALETTE.tolist()}
    save_checkpoint({**described, "state_dict": made.model.state_dict()}, "run/last.pth")
    assert main(["export", "run", "nets/net.pt2", "--size", "[33,41]", "--output", "labels"]) == 0
    printed = capsys.readouterr().out
    assert "as the network, on a random image of 33 x 41 pixels: the same label on 100.000 % of the pixels" in printed
    assert "written to nets/net.pt2: labels of images of (1, 3, 33, 41)" in printed
    x = images((33, 41))
    assert_agrees(run_program("nets/net.pt2", x), in_pytorch(made.model, x, "labels"))
    assert main(["export", "run", "net.tflite"]) == 2
    assert "net.tflite: the name must end in .pt2 or .onnx" in capsys.readouterr().err
    assert main(["export", "run"]) == 2
    assert "out" in capsys.readouterr().err
    assert main(["export", "nowhere.pth", "net.onnx"]) == 1
    assert "no checkpoint at nowhere.pth" in capsys.readouterr().err
    assert sorted(file.name for file in tmp_path.iterdir()) == ["nets", "run"]


def test_a_size_that_is_too_small(tmp_path):
    with pytest.raises(ConfigError, match="at least 9 x 9 pixels, not 8 x 64"):
        export(trained(), tmp_path / "net.onnx", (8, 64), dynamic=True)


@pytest.mark.parametrize("name", ["onnx", "onnxscript", "onnxruntime"])
def test_a_missing_extra_is_named(tmp_path, monkeypatch, name):
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(PspFastError, match=rf"needs the package {name}, .* pip install 'psp_fast\[export\]'"):
        export(trained(), tmp_path / "net.onnx", ODD)


def wrong(change):
    """A format whose file's results are changed by `change`; nothing but the network itself is behind it."""
    saved = []

    def serialise(program, metadata):
        saved.append(program.module())
        return b"new"

    return formats.Format((), serialise, lambda content: lambda x: change(saved[0](x)))


@pytest.mark.parametrize("change", [lambda y: y * 1.0001, lambda y: y * torch.nan, lambda y: y[..., 1:]])
def test_a_file_that_disagrees_is_not_written(tmp_path, monkeypatch, change):
    path = tmp_path / "net.pt2"
    path.write_bytes(b"old")
    monkeypatch.setitem(formats.FORMATS, ".pt2", wrong(change))
    with pytest.raises(PspFastError, match=r"net\.pt2 is not written: its results are not the network's; 33 x 33"):
        export(trained(output_stride=16), path, (33, 33))
    assert [file.name for file in tmp_path.iterdir()] == ["net.pt2"] and path.read_bytes() == b"old"
