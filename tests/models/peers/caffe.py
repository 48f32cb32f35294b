"""The paper's own Caffe network: its prototxt, run layer by layer with the arithmetic of its Caffe's layers.

Needs a checkout of hszhao/PSPNet, grpcio-tools to compile its caffe.proto, and torch, which does the arithmetic. The
weights pass through a .caffemodel; a second argument has it written. The pooling windows, which the prototxt has for
473 x 473 pixels, are those of the same number of bins on the smaller map.
"""

from __future__ import annotations

import importlib
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from grpc_tools import protoc
from torch import Tensor

from tests.models.peers.common import image, sample, weights, write

SIZE, MAP = (41, 41), 6  # a side that all bins divide
BLOBS = {"Convolution": ("weight", "bias"), "BN": ("weight", "bias", "running_mean", "running_var")}


def compiled(checkout: Path, folder: str) -> Any:
    proto = checkout / "src/caffe/proto"
    if protoc.main(["protoc", f"-I{proto}", f"--python_out={folder}", "caffe.proto"]):
        raise SystemExit("caffe.proto does not compile")
    sys.path.insert(0, folder)
    return importlib.import_module("caffe_pb2")


def shapes_of(net: Any) -> dict[str, list[int]]:
    """Of all weights, found by following the channels through the layers."""
    channels, shapes = {"data": 3}, {}
    for layer in net.layer:
        inputs = [channels[name] for name in layer.bottom]
        out = sum(inputs) if layer.type == "Concat" else inputs[0]
        if layer.type == "Convolution":
            conv = layer.convolution_param
            out = conv.num_output
            shapes[f"{layer.name}.weight"] = [out, inputs[0], conv.kernel_size[0], conv.kernel_size[0]]
            if conv.bias_term:
                shapes[f"{layer.name}.bias"] = [out]
        if layer.type == "BN":
            shapes |= {f"{layer.name}.{blob}": [out] for blob in BLOBS["BN"]}
        channels[layer.top[0]] = out
    return shapes


def run(net: Any, x: Tensor) -> Tensor:
    """The last layer's result, in float64."""
    maps = {"data": x}
    for layer in net.layer:
        blobs = [torch.from_numpy(np.array(b.data, np.float64).reshape(tuple(b.shape.dim))) for b in layer.blobs]
        maps[layer.top[0]] = forward(layer, [maps[name] for name in layer.bottom], blobs)
    return maps[net.layer[-1].top[0]]


def forward(layer: Any, inputs: list[Tensor], blobs: list[Tensor]) -> Tensor:
    x, kind = inputs[0], layer.type
    if kind == "Convolution":
        p = layer.convolution_param
        options = [(list(field) or [default])[0] for field, default in ((p.stride, 1), (p.pad, 0), (p.dilation, 1))]
        return F.conv2d(x, blobs[0], blobs[1] if p.bias_term else None, *options)
    if kind == "BN":
        scale, shift, mean, var = (b.reshape(1, -1, 1, 1) for b in blobs)
        return (x - mean) * (var + layer.bn_param.eps) ** -0.5 * scale + shift
    if kind == "ReLU":
        return x.clamp(min=0)
    if kind == "Pooling" and layer.pooling_param.pool == layer.pooling_param.MAX:
        p = layer.pooling_param
        return F.max_pool2d(x, p.kernel_size, p.stride, p.pad, ceil_mode=True)
    if kind == "Pooling":
        window = x.shape[-1] * layer.pooling_param.kernel_size // 60
        return F.avg_pool2d(x, window, window)
    if kind == "Interp":
        p = layer.interp_param
        size = [side + (side - 1) * (p.zoom_factor - 1) for side in x.shape[-2:]] if p.HasField("zoom_factor") else MAP
        return F.interpolate(x, size, mode="bilinear", align_corners=True)
    if kind == "Eltwise":
        return inputs[0] + inputs[1]
    if kind == "Concat":
        return torch.cat(inputs, 1)
    assert kind == "Dropout", kind
    return x


def main(checkout: str, out: str | None = None) -> None:
    with tempfile.TemporaryDirectory() as folder:
        caffe = compiled(Path(checkout), folder)
    from google.protobuf import text_format

    prototxt = Path(checkout) / "evaluation/prototxt/pspnet50_ADE20K_473.prototxt"
    net = text_format.Parse(prototxt.read_text(), caffe.NetParameter())
    shapes = shapes_of(net)
    values = weights(shapes)
    for layer in net.layer:
        for name in BLOBS.get(layer.type, ()):
            if (key := f"{layer.name}.{name}") in values:
                blob = layer.blobs.add()
                blob.shape.dim.extend(shapes[key] if layer.type == "Convolution" else [1, *shapes[key], 1, 1])
                blob.data.extend(values[key].ravel().tolist())
    if out:
        Path(out).write_bytes(net.SerializeToString())
    with torch.no_grad():
        logits = run(net, torch.from_numpy(image(*SIZE)[:, ::-1].copy()))  # Caffe reads blue, green, red
    write("caffe", {"shapes": shapes, "size": SIZE, "logits": sample(logits.numpy())})


if __name__ == "__main__":
    main(*sys.argv[1:])
