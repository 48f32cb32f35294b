"""PaddleSeg's PSPNet on ResNet50_vd, as configs/pspnet has it, but for a narrower head; needs PaddlePaddle.

PaddlePaddle keeps the weights of bilinear upsampling in float32, whatever the maps are in: results agree in float64
where those are exact, on maps of 4 x 8.
"""

from __future__ import annotations

import sys

import paddle

from tests.models.peers.common import CLASSES, image, sample, weights, write

EXACT = (32, 64)
ODD = (33, 50)  # average pooling starts on a map of 9 x 13


def main(checkout: str) -> None:
    sys.path.insert(0, checkout)
    from paddleseg.models import PSPNet
    from paddleseg.models.backbones import ResNet50_vd

    paddle.set_default_dtype("float64")
    model = PSPNet(CLASSES, ResNet50_vd(output_stride=8), pp_out_channels=128, align_corners=False)
    model.eval()
    shapes = {key: list(value.shape) for key, value in model.state_dict().items()}
    missing, unexpected = model.set_state_dict(
        {key: paddle.to_tensor(v).astype("float64") for key, v in weights(shapes).items()}
    )
    assert not missing and not unexpected
    results = []
    for size in (EXACT, ODD):
        with paddle.no_grad():
            logits, aux_logits = model(paddle.to_tensor(image(*size)))
        results.append({"size": size, "logits": sample(logits.numpy()), "aux_logits": sample(aux_logits.numpy())})
    write("paddleseg", {"shapes": shapes, **results[0], "odd": results[1]})


if __name__ == "__main__":
    main(sys.argv[1])
