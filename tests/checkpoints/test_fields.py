"""Damaged files: each ends in one sentence with the file and the field, and nothing a file says is taken for a name."""

import copy
import zipfile

import pytest
import torch

pytest.importorskip("jsonargparse")

from psp_fast.checkpoints import check_weights, read_checkpoint, read_weights
from psp_fast.configs import Config, config_from_dict
from psp_fast.engine.run import load_trained, saved_config
from psp_fast.errors import CheckpointError, ConfigError

NAN = float("nan")


def few():
    """As many weights as the layout is known by."""
    return {"layer0.0.weight": torch.ones(64, 3, 3, 3), "cls.0.weight": torch.ones(4, 8, 3, 3)}


def described(**changes):
    config = {"model": {"layers": 18}, "augment": {"mean": [1.0, 2.0, 3.0], "std": [4.0, 5.0, 6.0]}}
    content = {"config": config, "classes": ["a", "b"], "palette": [[0, 0, 0], [9, 9, 9]], "state_dict": few()}
    return content | changes


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"config": "/etc/passwd"}, "config"),
        ({"config": None}, "config"),
        ({"config": {1: 2}}, "config"),
        ({"classes": "ab"}, "classes"),
        ({"classes": ["a"]}, "classes"),
        ({"classes": ["a", 2]}, "classes"),
        ({"palette": 7}, "palette"),
        ({"palette": [[0, 0, 0], [0, 0, NAN]]}, "palette"),
        ({"palette": [[0, 0, 0], [0, 0, 256]]}, "palette"),
        ({"palette": [[0, 0, 0], [0, 0]]}, "palette"),
        ({"palette": [[0, 0, 0]]}, "2 classes and 1 colours"),
        ({"state_dict": 3}, "state_dict"),
        ({"state_dict": {"a": 3}}, "state_dict"),
        ({"state_dict": {1: torch.ones(1)}}, "state_dict"),
    ],
)
def test_damaged_descriptions_of_a_trained_model(tmp_path, changes, field):
    torch.save(described(**changes), tmp_path / "a.pth")
    for read in (saved_config, lambda path: load_trained(path, torch.device("cpu"))):
        with pytest.raises(CheckpointError, match=rf"a\.pth is damaged: .*{field}"):
            read(tmp_path / "a.pth")


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"config": "/etc/hostname"}, "has an unknown field 'config'"),
        ({"model": "/etc/hostname"}, "model must be a dictionary of fields, not str"),
        ({"data": {"scenes": "/etc/hostname"}}, "data: scenes must be a dictionary of fields, not str"),
        ({"model": None}, "model must be a dictionary of fields, not NoneType"),
        ({"model": {1: 2}}, "model has an unknown field 1"),
        ({"model": {"layers": []}}, r"model\.layers must be an integer, not \[\]"),
        ({"optim": {"lr": NAN}}, "optim.lr must be positive and finite, got nan"),
    ],
)
def test_damaged_configurations_name_the_file_and_the_field(tmp_path, config, message):
    torch.save(described(config=config), tmp_path / "a.pth")
    with pytest.raises(ConfigError, match=rf"a\.pth: its configuration.*[\s\S]*{message}"):
        saved_config(tmp_path / "a.pth")


def test_a_configuration_is_no_files_name(tmp_path):
    (tmp_path / "secret").write_text("model: {layers: 34}\n")
    for config in (str(tmp_path / "secret"), {"config": str(tmp_path / "secret")}, {"model": str(tmp_path / "secret")}):
        with pytest.raises(ConfigError) as caught:
            config_from_dict(config)
        assert "34" not in str(caught.value)
    assert config_from_dict({}) == Config()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"classes": [1, 2]}, "its field 'classes' must be two or more names, not list"),
        ({"palette": [[0, 0, float("inf")]] * 2}, "its field 'palette' must be RGB colours of 0 to 255"),
        ({"config": "pspnet.yaml"}, "its field 'config' must be a dictionary by names"),
        ({"config": {"model": 3}}, "its field 'config.model' must be a dictionary by names"),
        ({"config": {"model": {"layers": {}}}}, "its field 'config.model.layers' must be a plain value"),
        ({"config": {"model": {"bins": [torch.ones(2)]}}}, "its field 'config.model.bins' must be a plain value"),
        ({"config": {"model": {}, "augment": 3}}, "its field 'config.augment' must be a dictionary"),
        ({"config": {"model": {}, "augment": {"mean": [1, 2], "std": [1, 2, 3]}}}, "'mean of images' .* 3 finite"),
        ({"config": {"model": {}, "augment": {"mean": [1, 2, NAN]}}}, "'mean of images' must be a list of 3 finite"),
        ({"config": {"model": {}, "augment": {"std": [1, 2, 0]}}}, "'std of images' must be a list of 3 positive"),
    ],
)
def test_damaged_fields_of_weights(tmp_path, changes, message):
    torch.save(described(**changes), tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match=rf"a\.pth is damaged: .*{message}"):
        read_weights(tmp_path / "a.pth")


def test_fields_of_other_projects_may_be_anything(tmp_path):
    """A bare network with what some trainer keeps beside it."""
    torch.save({"state_dict": few(), "config": "pspnet.yaml", "classes": 21, "palette": "voc"}, tmp_path / "a.pth")
    weights = read_weights(tmp_path / "a.pth")
    assert (weights.layout, weights.classes, weights.palette, weights.config) == ("semseg", None, None, None)


@pytest.mark.parametrize(
    ("text", "name"), [("mean=[1e999, 1, 1]", "mean"), ("pool_scales=(1e, 2)", "pool_scales"), ("std=[1-1]", "std")]
)
def test_damaged_numbers_in_mmsegmentations_configuration(tmp_path, text, name):
    few = {f"decode_head.{part}.conv.weight": torch.zeros(1) for part in ("psp_modules.0.1", "bottleneck")}
    torch.save({"meta": {"cfg": text}, "state_dict": few}, tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match=rf"a\.pth is damaged: {name} in its configuration"):
        read_weights(tmp_path / "a.pth")


def changed(value):
    tensor = torch.ones(4, 8, 3, 3)
    tensor[3, 6, 1, 2] = value
    return tensor


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("cls.0.weight", changed(NAN), "cls.0.weight has numbers that are not finite"),
        ("cls.0.weight", changed(-float("inf")), "cls.0.weight has numbers that are not finite"),
        ("cls.0.weight", changed(1).double() * 1e300, "cls.0.weight has numbers that are not finite"),
        ("cls.1.running_var", torch.tensor([1.0, -0.5]), "cls.1.running_var has a negative variance, -0.5"),
        ("cls.0.weight", changed(1).int(), "cls.0.weight holds torch.int32, not floating-point numbers"),
        ("cls.0.weight", changed(1).to(torch.complex64), "cls.0.weight holds torch.complex64, not floating-point"),
        ("cls.0.weight", torch.ones(1).expand(4, 8, 3, 3), "cls.0.weight has not the numbers of its shape"),
    ],
)
def test_weights_that_compute_nothing_are_refused_at_reading(tmp_path, key, value, message):
    torch.save(described(state_dict=few() | {key: value}), tmp_path / "a.pth")
    for read in (read_weights, lambda path: load_trained(path, torch.device("cpu"))):
        with pytest.raises(CheckpointError, match=rf"a\.pth.* {message}"):
            read(tmp_path / "a.pth")


def test_counters_and_empty_tensors_are_no_mistakes():
    check_weights({"a.num_batches_tracked": torch.tensor(3), "b": torch.ones(0, 3), "c": torch.ones(2).half()}, "a.pth")


def test_an_archive_that_unpacks_to_more_than_it_is(tmp_path):
    """Megabytes of zeros in place of the pickle: read, they would cost a multiple of what they unpack to."""
    torch.save({"state_dict": few()}, tmp_path / "a.pth")
    with zipfile.ZipFile(tmp_path / "a.pth") as good, zipfile.ZipFile(tmp_path / "b.pth", "w") as bad:
        for part in good.infolist():
            content = bytes(20_000_000) if part.filename.endswith("data.pkl") else good.read(part)
            bad.writestr(copy.copy(part), content, zipfile.ZIP_DEFLATED)
    with pytest.raises(CheckpointError, match=r"b\.pth is no checkpoint as torch\.save writes it: it is compressed"):
        read_checkpoint(tmp_path / "b.pth")
