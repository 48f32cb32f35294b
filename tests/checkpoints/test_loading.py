"""Reading and writing checkpoints: layouts, messages, and what survives a failed write."""

import os
import pickle
import resource
import signal
import subprocess
import sys

import pytest
import torch

from psp_fast import PSPNet, load_checkpoint
from psp_fast.checkpoints import read_checkpoint, save_checkpoint
from psp_fast.errors import CheckpointError

DEEP = {
    "layer0.0": "conv1",
    "layer0.1": "bn1",
    "layer0.3": "conv2",
    "layer0.4": "bn2",
    "layer0.6": "conv3",
    "layer0.7": "bn3",
}


def make(seed=0, **options):
    torch.manual_seed(seed)
    return PSPNet(**{"layers": 18, "classes": 3, "pretrained": False, **options})


def assert_same(model, state):
    assert all(
        torch.equal(value, state[key]) for key, value in model.state_dict().items() if not key.endswith("tracked")
    )


@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("wrapped", [True, False])
def test_semsegs_layout(tmp_path, prefix, wrapped):
    state = make(1).state_dict()
    content = {prefix + key: value for key, value in state.items() if not key.endswith("tracked")}
    torch.save({"epoch": 3, "state_dict": content, "optimizer": {}} if wrapped else content, tmp_path / "a.pth")
    model = make(2)
    load_checkpoint(model, tmp_path / "a.pth")
    assert_same(model, state)


@pytest.mark.parametrize("stem", ["deep", "torchvision"])
def test_imagenet_weights_fill_the_backbone_alone(tmp_path, stem):
    names = DEEP if stem == "deep" else {"layer0.0": "conv1", "layer0.1": "bn1"}
    source = make(1, stem=stem).state_dict()
    imagenet = {"fc.weight": torch.zeros(1000, 512), "fc.bias": torch.zeros(1000)}
    for key, value in source.items():
        if key.startswith("layer"):
            module = ".".join(key.split(".")[:2])
            imagenet[key.replace(module, names[module], 1) if module in names else key] = value
    torch.save(imagenet, tmp_path / "resnet.pth")
    model = make(2, stem=stem, pretrained=tmp_path / "resnet.pth")
    heads = make(2, stem=stem).state_dict()
    assert_same(model, {key: source[key] if key.startswith("layer") else heads[key] for key in heads})


def test_another_model_is_described_and_changes_nothing(tmp_path):
    torch.save(make(1, classes=7, aux=False).state_dict(), tmp_path / "a.pth")
    model = make(2)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(model, tmp_path / "a.pth")
    message = str(caught.value)
    assert "missing in the file" in message and "aux.0.weight" in message
    assert "cls.4.weight: file (7, 128, 1, 1), model (3, 128, 1, 1)" in message
    assert_same(model, before)


def test_wrong_kind_of_numbers(tmp_path):
    state = make(1).state_dict()
    state["cls.4.bias"] = state["cls.4.bias"].long()
    torch.save(state, tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match=r"a\.pth: cls\.4\.bias holds torch\.int64, not floating-point numbers"):
        load_checkpoint(make(2), tmp_path / "a.pth")


class Hostile:
    def __reduce__(self):
        return os.system, ("touch hostile_was_here",)


def test_unusable_files_are_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    good = tmp_path / "good.pth"
    torch.save(make(1).state_dict(), good)
    (tmp_path / "cut.pth").write_bytes(good.read_bytes()[:5000])
    (tmp_path / "text.pth").write_text("not a checkpoint")
    (tmp_path / "empty.pth").write_bytes(b"")
    torch.save([1, 2], tmp_path / "list.pth")
    torch.save({"a": 1}, tmp_path / "numbers.pth")
    torch.save({"a": Hostile()}, tmp_path / "hostile.pth")
    (tmp_path / "pickle.pth").write_bytes(pickle.dumps({"a": Hostile()}, protocol=2))
    for name in ("missing", "cut", "text", "empty", "list", "numbers", "hostile", "pickle"):
        with pytest.raises(CheckpointError, match=rf"{name}\.pth"):
            load_checkpoint(make(2), tmp_path / f"{name}.pth")
    assert not (tmp_path / "hostile_was_here").exists()


def test_a_flipped_bit_is_noticed(tmp_path):
    torch.save(make(1).state_dict(), tmp_path / "a.pth")
    data = bytearray((tmp_path / "a.pth").read_bytes())
    data[len(data) // 2] ^= 4
    (tmp_path / "a.pth").write_bytes(data)
    with pytest.raises(CheckpointError, match=r"a\.pth is damaged: the checksum"):
        load_checkpoint(make(2), tmp_path / "a.pth")


def test_written_whole_with_the_users_permissions(tmp_path):
    save_checkpoint({"step": 1, "state_dict": {"a": torch.ones(3)}}, tmp_path / "new" / "a.pth")
    assert read_checkpoint(tmp_path / "new" / "a.pth")["step"] == 1
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["a.pth"]
    plain = tmp_path / "plain"
    plain.touch()
    assert (tmp_path / "new" / "a.pth").stat().st_mode == plain.stat().st_mode


FULL_DISK = """
import resource, signal, sys, torch
from psp_fast.checkpoints import save_checkpoint
from psp_fast.errors import CheckpointError
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
save_checkpoint({"step": 1, "w": torch.ones(10)}, sys.argv[1])
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))  # the kernel refuses to write more, as a full disk does
try:
    save_checkpoint({"step": 2, "w": torch.ones(1_000_000)}, sys.argv[1])
except CheckpointError as error:
    print(error)
"""


@pytest.mark.skipif(not hasattr(signal, "SIGXFSZ"), reason="the limit on file sizes is POSIX's")
def test_a_full_disk_leaves_the_previous_checkpoint(tmp_path):
    path = tmp_path / "last.pth"
    done = subprocess.run(
        [sys.executable, "-c", FULL_DISK, str(path)], capture_output=True, text=True, timeout=120, check=True
    )
    assert f"cannot write checkpoint {path} (the previous checkpoint there is untouched)" in done.stdout
    assert "free disk space" in done.stdout
    assert read_checkpoint(path)["step"] == 1
    assert [p.name for p in tmp_path.iterdir()] == ["last.pth"]
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] != 100_000


def test_an_unwritable_folder_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match=r"cannot write checkpoint .*file/a\.pth"):
        save_checkpoint({}, tmp_path / "file" / "a.pth")
