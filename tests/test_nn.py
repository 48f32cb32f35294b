"""Batch norm, residual and ReLU in one call, in one process and in several."""

import copy

import pytest
import torch
import torch.distributed as dist
from torch import nn

from psp_fast import PSPNet
from psp_fast.nn import SyncBatchNorm2d, convert_sync_batch_norm, revert_sync_batch_norm
from psp_fast.nn.fused import conv_bn_relu
from psp_fast.nn.sync_batch_norm import normalise
from tests.processes import run_ranks


def lively(bn):
    with torch.no_grad():
        for value in (bn.weight, bn.bias, bn.running_mean):
            value.normal_()
        bn.running_var.uniform_(0.5, 2)
    return bn


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("relu", [True, False])
@pytest.mark.parametrize("residual", [True, False])
@pytest.mark.parametrize("momentum", [0.1, None])
def test_same_as_separate_modules(training, relu, residual, momentum):
    torch.manual_seed(0)
    bn = lively(nn.BatchNorm2d(7, momentum=momentum)).train(training)
    other = copy.deepcopy(bn)
    x, r = torch.randn(3, 7, 5, 4), torch.randn(3, 7, 5, 4) if residual else None
    for _ in range(2):
        ours = normalise(bn, x, r, relu=relu)
        theirs = other(x) if r is None else other(x) + r
        torch.testing.assert_close(ours, theirs.relu() if relu else theirs)
    for key, value in other.state_dict().items():
        torch.testing.assert_close(bn.state_dict()[key], value)


def test_pointwise_convolution_is_one_op_with_the_same_numbers():
    torch.manual_seed(0)
    conv, bn, x = nn.Conv2d(6, 9, 1, bias=False), lively(nn.BatchNorm2d(9)), torch.randn(2, 6, 5, 5)
    torch.testing.assert_close(conv_bn_relu(x, (conv, copy.deepcopy(bn), nn.ReLU())), bn(conv(x)).relu())


def test_a_padded_pointwise_convolution_is_padded():
    conv, bn, x = nn.Conv2d(6, 9, 1, padding=1, bias=False), lively(nn.BatchNorm2d(9)), torch.randn(2, 6, 5, 5)
    torch.testing.assert_close(conv_bn_relu(x, (conv, copy.deepcopy(bn), nn.ReLU())), bn(conv(x)).relu())


def test_other_normalisations_are_called_as_they_are():
    x, conv, norm = torch.randn(2, 4, 3, 3), nn.Conv2d(4, 4, 1, bias=False), nn.GroupNorm(2, 4)
    torch.testing.assert_close(conv_bn_relu(x, (conv, norm, nn.ReLU()), lambda: x), (norm(conv(x)) + x).relu())


def test_one_value_per_channel_is_refused_with_the_shape():
    with pytest.raises(ValueError, match=r"more than one value per channel.*\(1, 4, 1, 1\)"):
        normalise(nn.BatchNorm2d(4), torch.zeros(1, 4, 1, 1), relu=True)


def test_convert_keeps_parameters_statistics_and_keys():
    model = PSPNet(layers=18, classes=3, pretrained=False)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    converted = convert_sync_batch_norm(model)
    assert sum(isinstance(m, SyncBatchNorm2d) for m in converted.modules()) == 29
    assert converted.state_dict().keys() == before.keys()
    assert all(torch.equal(converted.state_dict()[key], value) for key, value in before.items())
    assert converted.layer1[0].bn1.weight is model.layer1[0].bn1.weight


@pytest.mark.parametrize("kind", [nn.BatchNorm2d, nn.SyncBatchNorm])
def test_revert_undoes_convert(kind):
    model = nn.Sequential(lively(nn.BatchNorm2d(5, eps=1e-3, momentum=0.2)), nn.Sequential(lively(nn.BatchNorm2d(5))))
    model[1].eval()
    weight, state = model[0].weight, copy.deepcopy(model.state_dict())
    back = revert_sync_batch_norm(convert_sync_batch_norm(model), kind)
    assert type(back[0]) is type(back[1][0]) is kind
    assert back[0].weight is weight and (back[0].eps, back[0].momentum) == (1e-3, 0.2)
    assert back[0].training and not back[1][0].training
    assert back.state_dict().keys() == state.keys()
    assert all(torch.equal(back.state_dict()[key], value) for key, value in state.items())


def test_revert_refuses_a_layer_with_relu():
    with pytest.raises(ValueError, match=r"SyncBatchNorm2d\(5.*applies ReLU, which BatchNorm2d does not"):
        revert_sync_batch_norm(nn.Sequential(SyncBatchNorm2d(5, relu=True)))


def _data():
    torch.manual_seed(3)
    x = torch.randn(5, 6, 4, 3, dtype=torch.float64) * torch.linspace(1, 9, 6).view(1, -1, 1, 1).double() + 4
    return x, torch.randn_like(x), torch.randn_like(x)


def _check_against_whole_batch(rank, bn, module_call):
    x, residual, grad = _data()
    share = [slice(0, 2), slice(2, 5)][rank]  # unequal local batches
    whole = copy.deepcopy(bn)
    reference = nn.BatchNorm2d(6).double()
    reference.load_state_dict(whole.state_dict())
    xs = x.clone().requires_grad_()
    expected = (reference(xs) + residual).relu()
    expected.backward(grad)
    local = x[share].clone().requires_grad_()
    out = module_call(bn, local, residual[share])
    out.backward(grad[share])
    torch.testing.assert_close(out, expected[share], rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(local.grad, xs.grad[share], rtol=1e-9, atol=1e-9)
    for parameter, theirs in ((bn.weight, reference.weight), (bn.bias, reference.bias)):
        total = parameter.grad.clone()
        dist.all_reduce(total)
        torch.testing.assert_close(total, theirs.grad, rtol=1e-9, atol=1e-9)
    for key, value in reference.state_dict().items():
        torch.testing.assert_close(bn.state_dict()[key], value, rtol=1e-9, atol=1e-9)


def _sync_modules(rank, world):
    torch.manual_seed(0)
    ours = SyncBatchNorm2d(6, relu=True).double()
    theirs = nn.SyncBatchNorm(6).double()  # torch's own module runs on CPU through our op
    for bn in (lively(ours), lively(theirs)):
        _check_against_whole_batch(rank, bn, lambda bn, x, r: normalise(bn, x, r, relu=True))
    alone = [dist.new_group([k]) for k in range(world)][rank]
    assert convert_sync_batch_norm(nn.SyncBatchNorm(6, process_group=alone)).process_group is alone
    assert convert_sync_batch_norm(nn.SyncBatchNorm(6), alone).process_group is alone
    frozen = lively(SyncBatchNorm2d(6)).double().eval()
    x = torch.randn(2, 6, 3, 3).double()
    torch.testing.assert_close(
        frozen(x), nn.functional.batch_norm(x, frozen.running_mean, frozen.running_var, frozen.weight, frozen.bias)
    )


def test_two_processes_normalise_as_one_batch():
    run_ranks(_sync_modules, 2)


def _semsegs_flow(rank, world, folder):
    """What semseg's train.py does with the model, on two processes."""
    torch.manual_seed(0)
    model = PSPNet(layers=18, classes=4, dropout=0.0, pretrained=False, criterion=nn.CrossEntropyLoss(ignore_index=255))
    groups = [
        {"params": m.parameters(), "lr": 0.01}
        for m in (model.layer0, model.layer1, model.layer2, model.layer3, model.layer4)
    ]
    groups += [{"params": m.parameters(), "lr": 0.1} for m in (model.ppm, model.cls, model.aux)]
    optimizer = torch.optim.SGD(groups, lr=0.01, momentum=0.9, weight_decay=1e-4)
    model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    model = convert_sync_batch_norm(model)  # DistributedDataParallel refuses torch's own SyncBatchNorm on CPU
    wrapped = nn.parallel.DistributedDataParallel(model)
    generator = torch.Generator().manual_seed(rank)
    x, y = torch.randn(1, 3, 33, 41, generator=generator), torch.randint(0, 4, (1, 33, 41), generator=generator)
    losses = []
    for _ in range(3):
        output, main_loss, aux_loss = wrapped(x, y)
        loss = main_loss + 0.4 * aux_loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert output.shape == y.shape
    assert losses[-1] < losses[0]
    state = {"epoch": 1, "state_dict": wrapped.state_dict(), "optimizer": optimizer.state_dict()}
    reference = {key: value.clone() for key, value in wrapped.state_dict().items()}
    for value in reference.values():
        dist.broadcast(value, src=0)
    assert all(torch.allclose(value, reference[key]) for key, value in wrapped.state_dict().items())
    if rank == 0:
        torch.save(state, folder / "train_epoch_1.pth")


def test_semsegs_training_flow_and_its_checkpoint(tmp_path):
    from psp_fast import load_checkpoint

    run_ranks(_semsegs_flow, 2, tmp_path)
    path = tmp_path / "train_epoch_1.pth"
    state = torch.load(path, weights_only=True)["state_dict"]
    assert all(key.startswith("module.") for key in state)
    model = PSPNet(layers=18, classes=4, pretrained=False)
    load_checkpoint(model, path)
    assert all(torch.equal(value, state[f"module.{key}"]) for key, value in model.state_dict().items())
