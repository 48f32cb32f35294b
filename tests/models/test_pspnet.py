"""PSPNet's options, sizes and errors; its numbers are compared with semseg's in test_semseg_parity.py."""

import copy
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from psp_fast import PSPNet, ops
from psp_fast.errors import CheckpointError
from psp_fast.models.pyramid import Head, PyramidPooling, head_of_pyramid


def make(**options):
    torch.manual_seed(0)
    return PSPNet(**{"layers": 18, "classes": 5, "pretrained": False, "dropout": 0.0, **options})


def batch(height=57, width=73, classes=5, n=2):
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(n, 3, height, width, generator=generator)
    return images, torch.randint(0, classes, (n, height, width), generator=generator)


@pytest.mark.parametrize("layers", [18, 34, 50, 101, 152, 269])
def test_blocks_of_every_depth(layers):
    blocks = {18: 8, 34: 16, 50: 16, 101: 33, 152: 50, 269: 89}[layers]
    with torch.device("meta"):
        model = PSPNet(layers=layers, classes=3, pretrained=False)
    assert sum(len(getattr(model, f"layer{i}")) for i in range(1, 5)) == blocks
    convs = sum(isinstance(m, nn.Conv2d) for n, m in model.named_modules() if ".conv" in n)
    assert convs == blocks * (2 if layers < 50 else 3)


@pytest.mark.parametrize(("height", "width"), [(1, 1), (8, 31), (57, 73), (64, 50), (120, 17)])
@pytest.mark.parametrize("layers", [18, 50])
def test_any_size_gives_logits_and_label_map_of_that_size(height, width, layers):
    model = make(layers=layers).eval()
    images, _ = batch(height, width)
    with torch.no_grad():
        logits = model(images)
    labels = model.predict(images)
    assert logits.shape == (2, 5, height, width)
    assert labels.dtype == torch.uint8
    assert torch.equal(labels.long(), logits.argmax(1))


MANY_SIZES = """
import re, torch
from pathlib import Path
from psp_fast import PSPNet
peak = lambda: int(re.search("VmHWM: *(.*) kB", Path("/proc/self/status").read_text())[1])
model, sizes = PSPNet(18, classes=5, pretrained=False).eval(), torch.Generator().manual_seed(0)
print(peak())
for i in range(13):
    height, width = torch.randint(200, 513, (2,), generator=sizes).tolist() if i else (512, 512)
    model.predict(torch.randn(1, 3, height, width))
print(peak())
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="no Linux")
def test_images_of_many_sizes_leave_no_holes_in_memory() -> None:
    grown = {}
    for setting in ("auto", "reference"):
        environment = {**os.environ, "PSP_FAST_OPS": setting}
        done = subprocess.run(
            [sys.executable, "-c", MANY_SIZES], capture_output=True, text=True, check=True, env=environment
        )
        before, after = map(int, done.stdout.split())
        grown[setting] = after - before
    assert grown["auto"] < 1.5 * grown["reference"]


@pytest.mark.parametrize("zoom_factor", [1, 2, 4, 8])
@pytest.mark.parametrize("size", [(57, 73), (60, 50)])
def test_zoom_factor_sets_the_size_of_the_output(zoom_factor, size):
    model = make(zoom_factor=zoom_factor)
    height, width = (57, 73) if size == (57, 73) else (60, 50)
    expected = size if zoom_factor == 8 else ((height - 1) // 8 * zoom_factor + 1, (width - 1) // 8 * zoom_factor + 1)
    images, _ = batch(*size)
    assert model.eval()(images).shape[2:] == expected
    argmax, main, aux = model.train()(images, torch.zeros(2, *expected, dtype=torch.int64))
    assert argmax.shape == (2, *expected)
    assert main.isfinite() and aux.isfinite()


def test_training_returns_semsegs_tuple():
    model = make().train()
    images, labels = batch()
    labels[0, :20] = 255
    argmax, main, aux = model(images, labels)
    assert argmax.dtype == torch.int64
    logits, aux_logits = model._logits(images)
    for loss, low in ((main, logits), (aux, aux_logits)):
        full = F.interpolate(low, labels.shape[1:], mode="bilinear", align_corners=True)
        torch.testing.assert_close(loss, F.cross_entropy(full, labels, ignore_index=255), rtol=1e-4, atol=1e-5)
    (main + 0.4 * aux).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize(("stem", "channels", "kernel"), [("deep", 128, 3), ("v1c", 64, 3), ("torchvision", 64, 7)])
def test_stems(stem, channels, kernel):
    model = make(stem=stem)
    images, _ = batch()
    assert model.layer0[0].kernel_size == (kernel, kernel)
    assert model.layer0(images).shape == (2, channels, 15, 19)
    torch.testing.assert_close(model.layer0(images), nn.Sequential(*make(stem=stem).layer0)(images))


@pytest.mark.parametrize(("dilation", "rates"), [("semseg", [[2, 2, 2], [4, 4, 4]]), ("mmseg", [[1, 2, 2], [2, 4, 4]])])
def test_dilation_styles_of_bottlenecks(dilation, rates):
    with torch.device("meta"):
        model = PSPNet(layers=50, classes=3, pretrained=False, dilation=dilation)
    found = [[block.conv2.dilation[0] for block in list(stage)[:3]] for stage in (model.layer3, model.layer4)]
    assert found == rates
    assert all(
        m.stride == (1, 1)
        for stage in (model.layer3, model.layer4)
        for m in stage.modules()
        if isinstance(m, nn.Conv2d)
    )


@pytest.mark.parametrize(
    ("dilation", "rates"),
    [
        ("semseg", [(2, 2), (2, 2), (4, 4), (4, 4)]),
        ("mmseg", [(1, 1), (2, 1), (2, 1), (4, 1)]),
        ("mit", [(1, 2), (2, 2), (2, 4), (4, 4)]),
    ],
)
def test_dilation_styles_of_basic_blocks(dilation, rates):
    with torch.device("meta"):
        model = PSPNet(layers=18, classes=3, pretrained=False, dilation=dilation)
    blocks = [*model.layer3, *model.layer4]
    assert [(block.conv1.dilation[0], block.conv2.dilation[0]) for block in blocks] == rates


def plain(block, x):
    """A bottleneck in eval mode, module by module."""
    out = block.bn1(block.conv1(x)).relu()
    out = block.bn3(block.conv3(block.bn2(block.conv2(out)).relu()))
    pooled = F.avg_pool2d(x, 2, ceil_mode=True) if block.pool is not None else x
    return (out + (x if block.downsample is None else block.downsample(pooled))).relu()


@pytest.mark.parametrize("options", [{"stride_in_1x1": True}, {"avg_down": True}])
def test_strides_of_other_projects(options):
    model = make(layers=50, **options)
    block = model.layer2[0]
    stride = {"conv1": block.conv1.stride[0], "conv2": block.conv2.stride[0], "shortcut": block.downsample[0].stride[0]}
    if "avg_down" in options:
        assert stride == {"conv1": 1, "conv2": 2, "shortcut": 1}
        assert [name for name, m in model.named_modules() if isinstance(m, nn.AvgPool2d)] == ["layer2.0.pool"]
    else:
        assert stride == {"conv1": 2, "conv2": 1, "shortcut": 2}
    x = torch.randn(2, 256, 9, 13)
    with torch.no_grad():
        torch.testing.assert_close(block.eval()(x), plain(block, x), rtol=1e-4, atol=1e-5)
    block.train()(x).square().mean().backward()
    assert all(p.grad.isfinite().all() and p.grad.abs().sum() > 0 for p in block.parameters())


def test_head_channels():
    model = make(head_channels=(16, 24, 8)).train()
    assert model.ppm.features[3][1].out_channels == 16
    assert model.cls[0].weight.shape[:2] == (24, 512 + 4 * 16) and model.aux[0].out_channels == 8
    _, main, aux = model(*batch())
    (main + aux).backward()
    with pytest.raises(ValueError, match="head_channels must be three positive integers"):
        make(head_channels=(16, 24))


@pytest.mark.parametrize(("output_stride", "side"), [(8, 13), (16, 7)])
@pytest.mark.parametrize("layers", [18, 50])
def test_output_stride(layers, output_stride, side):
    model = make(layers=layers, output_stride=output_stride).eval()
    with torch.no_grad():
        assert model._logits(batch(97, 97)[0])[0].shape[2:] == (side, side)


@pytest.mark.parametrize(
    ("options", "channels"),
    [
        ({}, 512 + 4 * 128),
        ({"bins": (1,)}, 512 + 512),
        ({"dim_reduction": False}, 512 * 5),
        ({"use_ppm": False}, 512),
        ({"pool": "max"}, 512 + 4 * 128),
        ({"bins": (1, 2, 3), "align_corners": False}, 512 + 3 * 170),
    ],
)
def test_pyramid_options(options, channels):
    model = make(**options).train()
    assert model.cls[0].weight.shape == (128, channels, 3, 3)
    _, main, _ = model(*batch())
    main.backward()
    assert model.cls[0].weight.grad.isfinite().all()


def test_pyramid_module_concatenates_as_semsegs():
    model = make(pool="max", align_corners=False).eval()
    x = torch.randn(2, 512, 9, 11)
    levels = [f(x) for f in model.ppm.features]
    upsampled = [F.interpolate(p, (9, 11), mode="bilinear", align_corners=False) for p in levels]
    torch.testing.assert_close(model.ppm(x), torch.cat([x, *upsampled], 1), rtol=1e-4, atol=1e-5)


def test_without_auxiliary_head_its_loss_is_zero():
    model = make(aux=False).train()
    _, main, aux = model(*batch())
    assert aux == 0
    assert not any(key.startswith("aux") for key in model.state_dict())
    (main + 0.4 * aux).backward()


def test_criterion_options_and_other_losses():
    images, labels = batch()
    weighted = nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2.0, 0.5, 1.0, 3.0]), ignore_index=0, label_smoothing=0.1)

    class Twice(nn.CrossEntropyLoss):
        def forward(self, logits, target):
            return 2 * super().forward(logits, target)

    twice = Twice(weight=weighted.weight, ignore_index=0, label_smoothing=0.1)
    _, fused, _ = make(criterion=weighted).train()(images, labels)
    _, plain, _ = make(criterion=twice).train()(images, labels)
    torch.testing.assert_close(2 * fused, plain, rtol=1e-4, atol=1e-5)


def test_class_weights_are_no_part_of_the_weights() -> None:
    weighted = make(criterion=nn.CrossEntropyLoss(weight=torch.arange(1.0, 6), ignore_index=255))
    plain = make()
    assert weighted.state_dict().keys() == plain.state_dict().keys()
    for source, target in ((weighted, plain), (plain, weighted)):
        target.load_state_dict(source.state_dict())
        target.load_state_dict({**source.state_dict(), "criterion.weight": torch.zeros(5)})  # as semseg's files have it
    assert torch.equal(weighted.criterion.weight, torch.arange(1.0, 6))
    wrapped = nn.Sequential(copy.deepcopy(weighted))
    assert not any("criterion" in key for key in wrapped.state_dict())
    wrapped.load_state_dict({f"0.{key}": value for key, value in plain.state_dict().items()})


def test_what_a_loss_learns_is_kept() -> None:
    class Learned(nn.CrossEntropyLoss):
        def __init__(self) -> None:
            super().__init__(weight=torch.ones(5), ignore_index=255)
            self.temperature = nn.Parameter(torch.ones(()))

        def forward(self, logits, target):
            return super().forward(logits / self.temperature, target)

    model = make(criterion=Learned())
    state = model.state_dict()
    assert "criterion.temperature" in state and "criterion.weight" not in state
    state["criterion.temperature"] = torch.tensor(3.0)
    model.load_state_dict(state)
    assert model.criterion.temperature == 3
    with pytest.raises(RuntimeError, match=r"Missing key.*criterion\.temperature"):
        model.load_state_dict(make().state_dict())


@pytest.mark.parametrize("criterion", [None, lambda logits, target: logits.sum()])
def test_a_network_without_a_loss_module_has_weights(criterion) -> None:
    model = make()
    del model.criterion
    model.criterion = criterion
    model.load_state_dict(make().state_dict())
    assert model.state_dict().keys() == make().state_dict().keys()


def test_the_loss_is_the_last_child() -> None:
    """Tools that run children one after another stop before it."""
    names = ["layer0", "layer1", "layer2", "layer3", "layer4", "ppm", "cls", "aux", "criterion"]
    assert [name for name, _ in make().named_children()] == names


def test_training_without_labels_gives_logits_and_updates_every_batch_norm() -> None:
    model, images = make().train(), batch()[0]
    before = {name: value.clone() for name, value in model.named_buffers() if name.endswith("running_mean")}
    logits = model(images)
    assert logits.shape == (2, 5, 57, 73) and logits.requires_grad
    assert not any(torch.equal(value, dict(model.named_buffers())[name]) for name, value in before.items())


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64])
@pytest.mark.parametrize("channel", [False, True])
@pytest.mark.parametrize("criterion", [None, nn.NLLLoss(ignore_index=4)])
def test_labels_of_any_integer_type(dtype: torch.dtype, channel: bool, criterion: nn.Module | None) -> None:
    model, (images, labels) = make(criterion=criterion).train(), batch()
    given = labels.to(dtype)[:, None] if channel else labels.to(dtype)
    found, expected = model(images, given), model(images, labels)
    assert torch.equal(found[0], expected[0])
    torch.testing.assert_close(found[1:], expected[1:])


@pytest.mark.parametrize("labels", [torch.zeros(2, 57, 73), torch.zeros(2, 57, 73).numpy()])
def test_labels_of_no_integer_type_are_refused(labels) -> None:
    with pytest.raises(TypeError, match=r"labels must be a tensor of an integer type, not (torch\.float32|ndarray)"):
        make().train()(batch()[0], labels)


def test_images_fit_the_first_convolution_whatever_it_is() -> None:
    model = make().eval()
    model.layer0[0] = nn.Conv2d(5, 64, 3, 2, padding=1, bias=False)
    assert model(torch.randn(1, 5, 33, 41)).shape == (1, 5, 33, 41)
    with pytest.raises(ValueError, match=r"images must have shape \(N, 5, H, W\), got \(1, 3, 33, 41\)"):
        model(torch.randn(1, 3, 33, 41))
    model.layer0[0] = nn.Sequential(nn.PixelUnshuffle(2), nn.Conv2d(12, 64, 3, 1, 1, bias=False))
    assert model(torch.randn(1, 3, 34, 42)).shape == (1, 5, 34, 42)
    for call in (make().eval(), make().eval().predict):
        with pytest.raises(ValueError, match=r"images must have shape \(N, 3, H, W\), got \(3, 33, 41\)"):
            call(torch.randn(3, 33, 41))


@pytest.mark.parametrize("images", [np.zeros((1, 3, 33, 41), np.float32), [[1.0]], "image.jpg", None])
def test_images_are_tensors(images: Any) -> None:
    for call in (make().eval(), make().train(), make().eval().predict):
        with pytest.raises(TypeError, match=rf"images must be a tensor \(N, C, H, W\), not {type(images).__name__}"):
            call(images)


def test_images_are_of_a_floating_point_type() -> None:
    model = make().eval()
    for call in (model, model.predict):
        with pytest.raises(TypeError, match=r"images must be of a floating-point type, normalised, not torch\.uint8"):
            call(torch.zeros(1, 3, 33, 33, dtype=torch.uint8))
    model.layer0[0].register_forward_pre_hook(lambda _, given: (given[0].float() / 255,))
    assert model.predict(torch.zeros(1, 3, 33, 33, dtype=torch.uint8)).shape == (1, 33, 33)


def test_predicted_labels_in_the_type_asked_for() -> None:
    model, images = make().eval(), batch()[0]
    labels = model.predict(images, dtype=torch.int64)
    assert labels.dtype == torch.int64 and torch.equal(labels, model.predict(images).long())


def test_predict_calls_a_network_that_is_hooked_or_derived() -> None:
    class Constant(PSPNet):
        def forward(self, x, y=None):
            return super().forward(x, y).flip(1)

    class Called(PSPNet):
        def __call__(self, *args):
            return super().__call__(*args).flip(1)

    class Implemented(PSPNet):
        def _call_impl(self, *args):
            return super()._call_impl(*args).flip(1)

    images, hooked = batch()[0], make().eval()
    plain = hooked.predict(images)
    hooked.register_forward_hook(lambda module, args, logits: logits.flip(1))
    assert torch.equal(hooked.predict(images), 4 - plain)
    patched = make().eval()
    forward = patched.forward
    patched.forward = lambda x: forward(x).flip(1)
    assert torch.equal(patched.predict(images), 4 - plain)
    patched = make().eval()
    call = patched._call_impl
    patched._call_impl = lambda x: call(x).flip(1)
    assert torch.equal(patched.predict(images), 4 - plain)
    for kind in (Constant, Called, Implemented):
        torch.manual_seed(0)
        derived = kind(18, classes=5, pretrained=False).eval()
        assert torch.equal(derived.predict(images), 4 - plain)


def test_all_pixels_ignored_gives_zero_loss_and_gradients():
    model = make().train()
    images, labels = batch()
    _, main, aux = model(images, torch.full_like(labels, 255))
    (main + aux).backward()
    assert main == 0 and aux == 0
    assert all(p.grad is None or (p.grad == 0).all() for p in model.parameters())


def test_batch_of_one_names_the_layer_and_the_way_out():
    with pytest.raises(ValueError, match=r"ppm\.features\.0\.2.*batch of 1.*SyncBatchNorm"):
        make().train()(*batch(n=1))
    model = make().train()
    model.ppm.eval()
    model(*batch(n=1))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: make(layers=20), "layers must be one of 18, 34, 50"),
        (lambda: make(pool="min"), "pool must be one of avg, max"),
        (lambda: make(zoom_factor=3), "zoom_factor must be one of"),
        (lambda: make(classes=1), "classes must be at least 2"),
        (lambda: make(bins=()), "bins must be one or more positive"),
        (lambda: make(output_stride=32), "output_stride must be one of 8, 16"),
        (lambda: make().train()(batch()[0], batch(9, 9)[1]), r"labels must have shape \(2, 57, 73\)"),
        (lambda: make().eval()(torch.zeros(2, 4, 9, 9)), r"images must have shape \(N, 3, H, W\)"),
    ],
)
def test_wrong_arguments_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_predict_refuses_training_mode():
    with pytest.raises(RuntimeError, match=r"model\.eval\(\)"):
        make().train().predict(batch()[0])


def test_missing_pretrained_weights_name_the_three_choices(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError, match=r"initmodel/resnet18_v2\.pth.*pretrained='path'.*pretrained=False"):
        make(pretrained=True)


@pytest.mark.parametrize("amp", [None, torch.bfloat16])
def test_channels_last_and_autocast_train(amp):
    model = make().to(memory_format=torch.channels_last).train()
    images, labels = batch()
    plain = make().train()(images, labels)[1].detach()
    with torch.autocast("cpu", amp, enabled=amp is not None):
        _, main, aux = model(images.contiguous(memory_format=torch.channels_last), labels)
    (main + aux).backward()
    assert main.dtype == torch.float32
    torch.testing.assert_close(main.detach(), plain, rtol=2e-2 if amp else 1e-4, atol=1e-4)


def one_step(model: PSPNet, setting: str, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """Losses, gradients and buffers of one training step from the model's present state, which is kept."""
    start = {name: value.clone() for name, value in model.state_dict().items()}
    model.zero_grad()
    images = torch.randn(2, 3, 33, 41, generator=torch.Generator().manual_seed(1)).to(dtype)
    labels = torch.randint(0, 5, (2, 33, 41), generator=torch.Generator().manual_seed(2))
    with ops.use(setting):
        _, main, aux = model(images, labels)
        (main + 0.4 * aux).backward()
    found = {"main": main.detach(), "aux": aux.detach()}
    found.update((name, p.grad.clone()) for name, p in model.named_parameters())
    found.update((name, buffer.clone()) for name, buffer in model.named_buffers())
    model.load_state_dict(start)
    return found


def test_kernels_train_like_the_reference() -> None:
    model = PSPNet(50, classes=5, pretrained=False, dropout=0.0).double().train()
    got, want = (one_step(model, setting, torch.float64) for setting in ("auto", "reference"))
    for name in want:
        torch.testing.assert_close(got[name], want[name], rtol=1e-8, atol=1e-10, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.usefixtures("needs_triton")
def test_triton_trains_the_pyramid_and_head_like_the_reference() -> None:
    """In the interpreter, so on a small map."""
    torch.manual_seed(0)
    pyramid = PyramidPooling(8, 4, (1, 3), "avg", True)
    head = Head(pyramid.out_channels, 4, 5, 0.0)
    x = torch.randn(2, 8, 5, 6, requires_grad=True)
    labels = torch.randint(0, 5, (2, 10, 13))
    parameters = [x, *pyramid.parameters(), *head.parameters()]
    results = []
    for setting in ("triton", "reference"):
        with ops.use(setting):
            loss = ops.upsample_cross_entropy(head_of_pyramid(head, pyramid, x), labels)
            results.append([loss.detach(), *torch.autograd.grad(loss, parameters)])
    torch.testing.assert_close(*results, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(("backend", "layers", "tolerance"), [("aot_eager", 50, None), ("inductor", 18, 1e-3)])
def test_compiles_whole(backend: str, layers: int, tolerance: float | None) -> None:
    """torch.compile without a graph break: prediction logits and a training step."""
    torch.manual_seed(0)
    model = PSPNet(layers, classes=5, pretrained=False, dropout=0.0)
    for i in range(1, 5):  # blocks that project their shortcut, and blocks that do not: the rest are alike
        setattr(model, f"layer{i}", getattr(model, f"layer{i}")[: 2 if (layers, i) == (50, 1) else 1])
    images, labels = torch.randn(2, 3, 33, 33), torch.randint(0, 5, (2, 33, 33))
    compiled = torch.compile(model, fullgraph=True, backend=backend)
    model.train()
    start = {name: value.clone() for name, value in model.state_dict().items()}
    results = []
    for run in (compiled, model):
        model.load_state_dict(start)
        model.zero_grad()
        _, main, aux = run(images, labels)
        (main + 0.4 * aux).backward()
        kept = (model.cls[4].weight.grad, model.cls[1].running_var)
        results.append((main.detach(), aux.detach(), *(value.clone() for value in kept)))
    torch.testing.assert_close(*results, rtol=tolerance, atol=tolerance)
    model.eval()
    with torch.no_grad():
        torch.testing.assert_close(compiled(images), model(images), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("sizes", [[(57, 65)], [(57, 65), (33, 90)]])
def test_exports(sizes: list[tuple[int, int]]) -> None:
    model = make(layers=50).eval()
    free = None if len(sizes) == 1 else ({2: torch.export.Dim.AUTO, 3: torch.export.Dim.AUTO},)
    with torch.no_grad():
        program = torch.export.export(model, (torch.randn(1, 3, *sizes[0]),), dynamic_shapes=free)
        assert not any("psp_fast" in str(node.target) for node in program.graph.nodes)
        for size in sizes:
            images = torch.randn(1, 3, *size)
            torch.testing.assert_close(program.module()(images), model(images), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("layers", [18, 50])
@torch.no_grad()
def test_evaluation_after_statistics_were_measured_again(layers: int) -> None:
    """The usual recalibration: forward in training mode without a gradient."""
    torch.manual_seed(0)
    model = PSPNet(layers, classes=5, pretrained=False).eval()
    x, y = torch.randn(2, 3, 33, 41), torch.zeros(2, 33, 41, dtype=torch.long)
    before = model(x)
    model.train()(3 * x + 1, y)
    after = model.eval()(x)
    with ops.use("reference"):
        torch.testing.assert_close(after, model(x), rtol=1e-3, atol=1e-3)
    assert not torch.allclose(before, after, rtol=1e-2, atol=1e-2)


def test_nan_reaches_the_logits() -> None:
    """As in plain PyTorch, in inference too: a label map would hide it."""
    torch.manual_seed(0)
    model = PSPNet(layers=50, classes=5, pretrained=False, use_ppm=False).eval()
    image = torch.randn(1, 3, 65, 65)
    image[0, 1, 20, 30] = float("nan")
    with torch.no_grad():
        got = model(image).isnan()
        with ops.use("reference"):
            want = model(image).isnan()
    assert want.any() and bool((got | ~want).all())
