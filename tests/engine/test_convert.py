"""psp-fast convert: files that say all that is needed, and files for semseg and mmsegmentation."""

import json

import pytest
import torch

pytest.importorskip("jsonargparse")

from psp_fast import PSPNet
from psp_fast.checkpoints import read_checkpoint, read_weights
from psp_fast.checkpoints.exporting import to_mmseg, to_semseg
from psp_fast.cli import main
from psp_fast.engine.run import load_trained
from psp_fast.errors import CheckpointError

META = {"dataset_meta": {"classes": ("road", "sky", "car"), "palette": [[1, 2, 3], [4, 5, 6], [7, 8, 9]]}}


@pytest.fixture(scope="module")
def source():
    torch.manual_seed(1)
    return PSPNet(18, classes=3, stem="v1c", dilation="mmseg", align_corners=False, pretrained=False)


@pytest.fixture(scope="module")
def mmseg(tmp_path_factory, source):
    path = tmp_path_factory.mktemp("mmseg") / "mmseg.pth"
    torch.save({"meta": META, "state_dict": to_mmseg(source)[0]}, path)
    return str(path)


@pytest.mark.parametrize("name", ["out.pth", "out.safetensors"])
def test_a_converted_checkpoint_can_be_used(tmp_path, capsys, mmseg, source, name):
    out = tmp_path / name
    assert main(["convert", mmseg, str(out)]) == 0
    printed = capsys.readouterr().out
    assert f"{mmseg}: mmsegmentation's layout, PSPNet(" in printed and f"written to {out}" in printed
    for argument in ("layers=18", "stem='v1c'", "dilation='mmseg'", "align_corners=False", "classes=3"):
        assert argument in printed
    trained = load_trained(out, torch.device("cpu"))
    assert trained.classes == ("road", "sky", "car") and trained.palette.tolist() == META["dataset_meta"]["palette"]
    x = torch.randn(1, 3, 33, 41)
    with torch.no_grad():
        torch.testing.assert_close(trained.model(x), source.eval()(x))
    assert trained.model.options == source.options


def test_there_and_back_again(tmp_path, mmseg):
    out, back = tmp_path / "out.safetensors", tmp_path / "back.pth"
    assert main(["convert", mmseg, str(out)]) == 0
    assert main(["convert", str(out), str(back), "--to", "mmseg"]) == 0
    first, last = (read_checkpoint(path)["state_dict"] for path in (mmseg, back))
    assert first.keys() == last.keys() and all(torch.equal(value, last[key]) for key, value in first.items())
    assert read_weights(back).options == read_weights(mmseg).options | {"output_stride": 8, "bins": (1, 2, 3, 6)}


def test_options(tmp_path, capsys, mmseg):
    recipe = tmp_path / "mine.yaml"
    data = {"root": "somewhere", "classes": ["a", "b", "c"]}
    recipe.write_text(json.dumps({"data": data, "eval": {"mode": "slide", "crop": [97, 97]}}))
    files = [mmseg, str(tmp_path / "out.pth")]
    assert main(["convert", *files, "--align_corners", "true", "--recipe", str(recipe)]) == 0
    trained = load_trained(files[1], torch.device("cpu"))
    assert trained.model.align_corners is True
    assert trained.classes == ("a", "b", "c") and trained.config.data.root == "somewhere"
    assert trained.config.eval.crop == (97, 97) and trained.config.eval.mode == "slide"
    again = str(tmp_path / "again.safetensors")
    assert main(["convert", files[1], again]) == 0  # keeps what the first conversion named
    assert load_trained(again, torch.device("cpu")).config == trained.config
    recipe.write_text(json.dumps({"data": {"classes": ["a", "b"]}}))
    capsys.readouterr()
    files[1] = str(tmp_path / "other.pth")
    assert main(["convert", *files, "--recipe", str(recipe)]) == 2
    assert "has 3 classes, not 2" in capsys.readouterr().err
    recipe.write_text(json.dumps({"data": {"classes": ["sky", "road", "car"]}}))
    assert main(["convert", *files, "--recipe", str(recipe)]) == 2
    assert "classes in another order" in capsys.readouterr().err


def test_a_recipe_of_a_data_set_with_classes_of_its_own(tmp_path, capsys):
    path = str(tmp_path / "city.pth")
    model = PSPNet(18, classes=19, pretrained=False)
    torch.save({"state_dict": {f"module.{key}": value for key, value in model.state_dict().items()}}, path)
    out = str(tmp_path / "out.pth")
    assert main(["convert", path, out, "--recipe", "cityscapes"]) == 0
    trained = load_trained(out, torch.device("cpu"))
    assert (trained.classes[0], trained.config.data.dataset) == ("road", "cityscapes")
    assert trained.palette[0].tolist() == [128, 64, 128] and trained.config.eval.crop == (713, 713)
    assert main(["convert", path, str(tmp_path / "other.pth"), "--recipe", "voc"]) == 2
    assert "has 19 classes, not 21" in capsys.readouterr().err


def test_a_backbone(tmp_path, capsys):
    torch.manual_seed(1)
    source = PSPNet(18, stem="torchvision", pretrained=False).state_dict()
    names = {"layer0.0": "conv1", "layer0.1": "bn1"}
    backbone = {key: value for key, value in source.items() if key.startswith("layer")}
    renamed = {key.replace(key[:8], names.get(key[:8], key[:8]), 1): value for key, value in backbone.items()}
    torch.save(renamed, tmp_path / "resnet18.pth")
    out = str(tmp_path / "out.safetensors")
    assert main(["convert", str(tmp_path / "resnet18.pth"), out]) == 0
    assert "a backbone" in capsys.readouterr().out
    model = PSPNet(18, stem="torchvision", pretrained=out)
    assert all(torch.equal(value, model.state_dict()[key]) for key, value in backbone.items())
    with pytest.raises(CheckpointError, match=r"stem +torchvision +deep"):
        PSPNet(18, pretrained=out)
    assert main(["convert", out, str(tmp_path / "x.pth"), "--to", "semseg"]) == 1
    assert "backbone alone" in capsys.readouterr().err


def test_semsegs_own_network_has_its_names(tmp_path):
    with torch.device("meta"):
        state = to_semseg(PSPNet(50, classes=21, pretrained=False))
    assert "module.layer0.0.weight" in state and all(key.startswith("module.") for key in state)


@pytest.mark.parametrize(
    ("write", "options", "message"),
    [
        (to_semseg, {"dilation": "mmseg"}, "semseg cannot compute this network: it needs dilation=semseg"),
        (to_semseg, {"align_corners": False}, "needs align_corners=True"),
        (to_semseg, {"layers": 18}, "no PSPNet of 18 layers"),
        (to_semseg, {"head_channels": (512, 1024, 256)}, r"needs head_channels=\(512, 512, 256\)"),
        (to_mmseg, {"pool": "max"}, "mmsegmentation cannot compute this network: it needs pool=avg"),
        (to_mmseg, {"layers": 18}, "dilation='mmseg'"),
        (to_mmseg, {"head_channels": (512, 1024, 256)}, "512 and 1024 differ"),
        (to_mmseg, {"stem": "torchvision", "avg_down": True}, "with a deep stem alone"),
    ],
)
def test_networks_the_others_do_not_have(write, options, message):
    with torch.device("meta"):
        model = PSPNet(**{"layers": 50, "pretrained": False, **options})
    with pytest.raises(CheckpointError, match=message):
        write(model)


def test_mmsegmentations_configuration_is_told():
    with torch.device("meta"):
        model = PSPNet(50, classes=19, stride_in_1x1=True, pretrained=False)
    _, told = to_mmseg(model)
    assert "type='ResNetV1c', depth=50, stem_channels=128" in told and "style='caffe', contract_dilation=False" in told
    assert "type='PSPHead', in_channels=2048, channels=512, pool_scales=(1, 2, 3, 6), num_classes=19" in told
    assert "type='FCNHead', in_channels=1024, channels=256" in told


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ([], 2, "give the file to read and the file to write"),
        (["a.pth", "b.pth", "--to", "caffe"], 2, "invalid choice: 'caffe'"),
        (["a.pth", "b.txt"], 1, "must end in .pth or .safetensors"),
        (["missing.pth", "b.pth"], 1, "no checkpoint at missing.pth"),
    ],
)
def test_mistakes(capsys, arguments, code, message):
    assert main(["convert", *arguments]) == code
    assert message in capsys.readouterr().err
