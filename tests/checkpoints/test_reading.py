"""Files of every format: what is read, and that hostile, damaged and odd ones end in an error that names them."""

import base64
import functools
import os
import pickle
import struct
import sys
import types
import zlib

import numpy as np
import pytest
import safetensors.torch
import torch

from psp_fast import PSPNet, load_checkpoint
from psp_fast.checkpoints import read_checkpoint, save_checkpoint
from psp_fast.errors import CheckpointError
from tests.checkpoints.files import write_caffemodel, write_pdparams

# What PaddlePaddle 3.3's paddle.save wrote of nn.Conv2D(2, 1, 1).state_dict(), with its protocol 4 and with 2.
PADDLE = {
    4: (
        "eNprYJkqxMgABrVTNHrYylMz0zNKpvSI5ZXmFlTqxSfnF6Xq5ZbmlGQmFhUlVk7p4YkvSk3OzysuKSpNLpkyeUoPK1jllB72vBSIkslTvBla"
        "pzgzJk1pnxI0RcObEYi8mYCYsWRKBmsPa0pJZUEqSCdTmsmUzg6IIuYeRpspfn5+Xv+BAEx4M5RMSep05ljU9XjfG9OT+6YAuT0sSZmJxVMy"
        "WDLYQXZkcEJt8GYEcgQ7nVlA/gArlA4GO7C0KDUlJD8gsSgxN7UktcgPSDk4TAH6NIOxhwfojTKjlHgDvfJ4gykZYkgCSUCB0lI9AJiAbKQ="
    ),
    2: (
        "eNpVUMtOwkAUbctDraD4RMW3G1aNGJdGWdukMdVFd00fo9MECmeYSliQuEEkrvwQt3wAfJjeFjfezNyZ3HvOuSf3TRtCqTtFRVH6LHrhEmoQ"
        "J+3uwHCDjmBGO2nJyBPCG+iuYEEn7kmRBFKHtoDpcbjoImcqI+QDooUs6OksTj86Co5K2j6K2YyWJ6O4gaV3LNtYGUO3sVo3VTqmRleVKP3p"
        "hnLQJXrZ0Yj2fI21yccY6zYqdTOXSd5gw7Ks+x+KLJmKxKY/4QWnTN3ZdD5V72Zf88/Z9y22OE3ctrEjses7+dRQ5PVQ5RrPbO9x8rJv4yA1"
        "oo5Q45VUKAWmgcOUf2TjWOLEd2pUeszWkAgWPnUePOG1mWTCoqfZxOkQZ3WuOiXC0cZer0K3YfTdS5zz6v+iT8WLJDF+AVDLd0M="
    ),
}


@functools.cache
def state():
    torch.manual_seed(1)
    return PSPNet(layers=18, classes=3, pretrained=False).state_dict()


def few():
    """As many of the weights as the layout is known by."""
    return {key: state()[key] for key in ("layer0.0.weight", "cls.0.weight")}


def model():
    with torch.device("meta"):
        return PSPNet(layers=18, classes=3, pretrained=False)


class Hostile:
    def __reduce__(self):
        return os.system, ("touch hostile_was_here",)


@pytest.mark.parametrize("protocol", PADDLE)
def test_what_paddle_saves(tmp_path, protocol):
    (tmp_path / "a.pdparams").write_bytes(zlib.decompress(base64.b64decode(PADDLE[protocol])))
    tensors = read_checkpoint(tmp_path / "a.pdparams")["state_dict"]
    assert {key: (value.shape, value.dtype) for key, value in tensors.items()} == {
        "weight": ((1, 2, 1, 1), torch.float32),
        "bias": ((1,), torch.float32),
    }
    first = {4: -0.4443977, 2: 0.5077298}[protocol]
    assert tensors["weight"].flatten()[0].item() == pytest.approx(first, abs=1e-4)
    assert tensors["bias"].item() == 0


@pytest.mark.parametrize("protocol", [2, 3, 4])
def test_arrays_of_a_pdparams_file(tmp_path, protocol):
    random = np.random.default_rng(0)
    arrays = {
        "a": random.standard_normal((3, 4)).astype(np.float32),
        "fortran": np.asfortranarray(random.standard_normal((3, 4))),
        "big": random.standard_normal(5).astype(">f4"),
        "half": random.standard_normal(3).astype(np.float16),
        "step": np.array(7),
        "empty": np.zeros((0, 2), np.float32),
    }
    found = read_checkpoint(write_pdparams(tmp_path / "a.pdparams", arrays, protocol))["state_dict"]
    assert found.keys() == arrays.keys()
    for key, value in arrays.items():
        np.testing.assert_array_equal(found[key].numpy(), value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (pickle.dumps({"a": Hostile()}), r"calls (posix|nt)\.system"),
        (pickle.dumps({"a": np.array([Hostile()], object)}), r"calls (posix|nt)\.system"),
        (pickle.dumps({"a": np.array([None, 1], object)}, 4), "a is damaged: an array of something other than numbers"),
        (pickle.dumps({"a": np.array(["text"])}, 4), "a is damaged: an array of something other than numbers"),
        (pickle.dumps({"a": 1}), "a is a int, not an array"),
        (pickle.dumps([1]), "holds a list"),
        (pickle.dumps({"a": np.arange(9)}, 4).replace(b"K\x09\x85", b"K\x0a\x85"), r"shape \(10,\) with 72 bytes"),
        (b"\x80\x04cbuiltins\neval\n(X\x01\x00\x00\x001tR.", r"calls builtins\.eval"),
        (pickle.dumps({"a": np.arange(99)}, 4)[:-90], "truncated or not a checkpoint|not a checkpoint of tensors"),
        (b"\x80\x04}r\xff\xff\xff\x7f.", "memo jumps to 2147483647"),
        (b"\x80\x04\x8e\xff\xff\xff\xff\xff\xff\xff\x00.", "truncated or not a checkpoint"),
        (b"", "truncated or not a checkpoint"),
    ],
)
def test_hostile_and_damaged_pdparams(tmp_path, monkeypatch, content, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.pdparams").write_bytes(content)
    with pytest.raises(CheckpointError, match=rf"a\.pdparams.*({message})"):
        load_checkpoint(model(), tmp_path / "a.pdparams")
    assert not (tmp_path / "hostile_was_here").exists()


def test_blobs_of_a_caffemodel(tmp_path):
    arrays = {
        "conv6.weight": np.arange(12, dtype=np.float32).reshape(2, 3, 2, 1),
        "conv6.bias": np.arange(2, dtype=np.float32).reshape(1, 1, 1, 2),
        "conv5_4/bn.weight": np.arange(4, dtype=np.float32).reshape(1, 4, 1, 1),
        "conv5_4/bn.bias": np.ones(4, np.float32),
        "conv5_4/bn.running_mean": np.zeros(4, np.float32),
        "conv5_4/bn.running_var": np.full(4, 300.0, np.float32),
    }
    found = read_checkpoint(write_caffemodel(tmp_path / "a.caffemodel", arrays))["state_dict"]
    assert found.keys() == arrays.keys()
    for key, value in arrays.items():
        expected = value if key == "conv6.weight" else value.ravel()
        np.testing.assert_array_equal(found[key].numpy(), expected)


def test_damaged_caffemodels(tmp_path):
    path = write_caffemodel(tmp_path / "a.caffemodel", {"conv6.weight": np.ones((2, 300, 1, 1))})
    good = path.read_bytes()
    for content, message in (
        (good[:-3], "truncated or no .caffemodel"),
        (good.replace(b"\x02\xac\x02\x01\x01", b"\x02\xad\x02\x01\x01"), r"shape \(2, 301, 1, 1\), 2400 bytes"),
        (b"\x12\x03abc", "old format.*upgrade_net_proto_binary"),
        (b"", "holds no state_dict"),
    ):
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match=rf"a\.caffemodel.*{message}"):
            load_checkpoint(model(), path)


def test_safetensors_hold_the_same_as_pth(tmp_path):
    content = {"state_dict": state(), "config": {"model": {"layers": 18, "bins": [1, 2, 3, 6]}}, "classes": ["a", "b"]}
    for name in ("a.pth", "a.safetensors"):
        save_checkpoint(content, tmp_path / name)
    first, second = (read_checkpoint(tmp_path / name) for name in ("a.pth", "a.safetensors"))
    assert first.keys() == second.keys() and first["config"] == second["config"]
    assert all(torch.equal(value, second["state_dict"][key]) for key, value in first["state_dict"].items())
    network = PSPNet.from_checkpoint(tmp_path / "a.safetensors")
    assert torch.equal(network.cls[4].weight, content["state_dict"]["cls.4.weight"])


def test_damaged_safetensors(tmp_path):
    path = tmp_path / "a.safetensors"
    safetensors.torch.save_file({"layer0.0.weight": torch.ones(4, 4)}, path)
    good = path.read_bytes()
    described = safetensors.torch.save({"a": torch.ones(1)}, {"psp_fast": "{not json"})
    for content in (good[:-5], good[:6], b"", struct.pack("<Q", 1 << 60) + good[8:], b"pickle?", described):
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match=r"a\.safetensors is truncated or"):
            load_checkpoint(model(), path)


def test_a_hostile_pth_names_what_it_calls(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": few(), "extra": Hostile()}, tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match=r"a\.pth is not a checkpoint of tensors and plain types: .*(posix|nt)"):
        load_checkpoint(model(), tmp_path / "a.pth")
    assert not (tmp_path / "hostile_was_here").exists()


def test_mmengines_message_hub_is_left_unread(tmp_path, monkeypatch):
    module = types.ModuleType("mmengine.logging.history_buffer")
    buffer = type("HistoryBuffer", (), {"__module__": module.__name__})
    module.HistoryBuffer = buffer
    names = ("mmengine", "mmengine.logging", module.__name__)
    with monkeypatch.context() as patch:
        for name in names:
            patch.setitem(sys.modules, name, module)
        history = buffer()
        history.losses, history.methods = np.ones(3), [np.float64(2.0)]
        torch.save({"state_dict": few(), "message_hub": {"loss": history}}, tmp_path / "a.pth")
    assert "mmengine" not in sys.modules
    content = read_checkpoint(tmp_path / "a.pth")
    assert vars(content["message_hub"]["loss"]) == {}
    assert torch.equal(content["state_dict"]["cls.0.weight"], few()["cls.0.weight"])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_floating_point_types_are_converted(tmp_path, dtype):
    found = {key: value.to(dtype) if value.is_floating_point() else value for key, value in state().items()}
    torch.save(found, tmp_path / "a.pth")
    network = PSPNet.from_checkpoint(tmp_path / "a.pth")
    assert network.cls[4].weight.dtype == torch.float32
    assert torch.equal(network.cls[4].weight, found["cls.4.weight"].float())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w.to(torch.int32), r"cls\.0\.weight holds torch\.int32, not floating-point numbers"),
        (lambda w: w.to(torch.complex64), r"cls\.0\.weight holds torch\.complex64, not floating-point numbers"),
        (lambda w: w.to_sparse(), r"cls\.0\.weight is not a plain array: torch\.float32, torch\.sparse_coo, cpu"),
        (lambda w: w.to("meta"), r"cls\.0\.weight is not a plain array: torch\.float32, torch\.strided, meta"),
        (lambda w: w[0, 0, 0, 0], r"of another shape:\n +cls\.0\.weight: file \(\)"),
    ],
)
def test_odd_tensors(tmp_path, change, message):
    found = few()
    found["cls.0.weight"] = change(found["cls.0.weight"])
    torch.save(found, tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match=rf"a\.pth[^\0]*{message}"):
        load_checkpoint(model(), tmp_path / "a.pth")


@pytest.mark.parametrize(
    ("described", "message"),
    [
        ({"config": {"model": {"layers": "many"}}}, "layers must be one of"),
        ({"config": {"model": {"wings": 2}}}, "unexpected keyword argument 'wings'"),
        ({"config": {"model": {"bins": "abc"}}}, r"a\.pth"),
        ({"config": {"model": {"dilation": 3}}}, "dilation must be one of"),
        ({"config": {"model": {}, "augment": {"mean": 1, "std": 2}}}, "its field 'mean of images' must be a list of 3"),
        ({"config": {"model": {"layers": 18}}, "palette": [[1, "b", 3]]}, "its field 'palette' must be RGB colours"),
    ],
)
def test_damaged_descriptions(tmp_path, described, message):
    torch.save({"state_dict": few(), **described}, tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match=message):
        PSPNet.from_checkpoint(tmp_path / "a.pth")
