"""Files of mmsegmentation, mit-semseg, PaddleSeg and Caffe against the numbers of those projects' networks (peers/)."""

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.numpy import save_file

from psp_fast import PSPNet, load_checkpoint
from psp_fast.checkpoints import read_weights
from psp_fast.checkpoints.exporting import to_mmseg
from psp_fast.checkpoints.translating import recognise, translate
from tests.checkpoints.files import write_caffemodel, write_pdparams
from tests.models.peers import common
from tests.models.semseg_numbers import relative_error

FLOAT64, FLOAT32 = 1e-10, 1e-5  # largest relative error

OPTIONS = {
    "mmseg": {"layers": 18, "stem": "v1c", "dilation": "mmseg", "align_corners": False},
    "mit18": {"layers": 18, "dilation": "mit", "align_corners": False, "head_channels": (512, 512, 128)},
    "mit50": {"layers": 50, "dilation": "mmseg", "align_corners": False, "head_channels": (512, 512, 512)},
    "paddleseg": {
        "layers": 50,
        "stem": "v1c",
        "avg_down": True,
        "align_corners": False,
        "head_channels": (512, 128, 256),
    },
    "caffe": {"layers": 50, "classes": 150, "stride_in_1x1": True, "aux": False},
}


def numbers(project):
    return json.loads(common.path(project).read_text())


def write(project, shapes, folder):
    """The project's file, or files, with the weights its numbers were made with."""
    if project.startswith("mit"):
        paths = [folder / f"{part}.safetensors" for part in shapes]
        for path, part in zip(paths, shapes.values(), strict=True):
            save_file(common.weights(part), path)
        return paths
    arrays = common.weights(shapes)
    if project == "paddleseg":
        return write_pdparams(folder / "model.pdparams", arrays)
    if project == "caffe":
        return write_caffemodel(folder / "pspnet.caffemodel", {key: arrays[key] for key in shapes})
    path = folder / "iter_80000.pth"
    torch.save({"meta": {}, "state_dict": {key: torch.from_numpy(value) for key, value in arrays.items()}}, path)
    return path


def results(model, found, dtype):
    """Samples of what the project's numbers have, of our model."""
    x = torch.from_numpy(common.image(*found["size"])).to(dtype)
    with torch.no_grad():
        logits = model.eval()(x)
        aux = model.aux(model.layer3(model.layer2(model.layer1(model.layer0(x))))) if "aux_logits" in found else None
    ours = {"logits": logits, "probabilities": logits.softmax(1)}
    if aux is not None:
        ours["aux_logits"] = F.interpolate(aux, found["size"], mode="bilinear", align_corners=False)
    return {name: common.sample(values.numpy()) for name, values in ours.items() if name in found}


def assert_equal(model, found, dtype, tolerance):
    ours = results(model, found, dtype)
    assert ours
    for name, values in ours.items():
        assert relative_error(values, found[name]) <= tolerance, name


@pytest.mark.parametrize("project", OPTIONS)
def test_results_are_the_projects_own(tmp_path, project):
    found = numbers(project)
    path = write(project, found["shapes"], tmp_path)
    weights = read_weights(path)
    expected = {"classes": common.CLASSES, **OPTIONS[project]}
    assert {key: weights.options[key] for key in expected} == expected
    with torch.device("meta"):  # nothing to initialise
        model = PSPNet(**weights.options, pretrained=False)
    model = model.double().to_empty(device="cpu")
    load_checkpoint(model, path)
    assert_equal(model, found, torch.float64, FLOAT64)
    if "odd" in found:  # where PaddlePaddle interpolates with float32 weights
        assert_equal(model.float(), found["odd"], torch.float32, FLOAT32)


def test_from_checkpoint_makes_a_network_of_float32(tmp_path):
    found = numbers("mmseg")
    model = PSPNet.from_checkpoint(write("mmseg", found["shapes"], tmp_path))
    assert_equal(model, found, torch.float32, FLOAT32)


@pytest.mark.parametrize("layers", [18, 50, 101])
def test_names_and_shapes_are_mmsegmentations(layers):
    with torch.device("meta"):
        model = PSPNet(layers, classes=common.CLASSES, stem="v1c", dilation="mmseg", pretrained=False)
    state, _ = to_mmseg(model)
    shapes = {key: list(value.shape) for key, value in state.items() if not key.endswith("tracked")}
    assert common.digest(shapes) == numbers("mmseg")["structure"][str(layers)]
    back, options = translate(recognise(state, "file"), state, "file")
    ours = {key: value.shape for key, value in model.state_dict().items()}
    assert {key: value.shape for key, value in back.items()} == ours
    assert options == {"align_corners": False, "dilation": "mmseg", "stride_in_1x1": False, "avg_down": False}


def test_the_samples_are_not_trivial():
    for project in OPTIONS:
        found = numbers(project)
        values = np.array(found["logits"])
        assert len(values) == 400 and values.std() > 1e-3
