"""CSAILVision/semantic-segmentation-pytorch's dilated ResNets and PPMDeepsup; a checkout and torch are enough.

Its results are probabilities, most of which random weights make 0 or 1: the logits inside are noted as well.
"""

from __future__ import annotations

import sys

import torch
import torch.nn.functional as F

from tests.models.peers.common import CLASSES, image, sample, weights, write

SIZE = (41, 57)


def main(checkout: str) -> None:
    sys.path.insert(0, checkout)
    from mit_semseg.models import models, resnet

    for layers, width in ((18, 512), (50, 2048)):
        original = getattr(resnet, f"resnet{layers}")(pretrained=False)
        encoder = models.ResnetDilated(original, dilate_scale=8).double().eval()
        decoder = models.PPMDeepsup(num_class=CLASSES, fc_dim=width, use_softmax=True).double().eval()
        shapes = {}
        for name, part in (("encoder", encoder), ("decoder", decoder)):
            state = part.state_dict()
            shapes[name] = {key: list(value.shape) for key, value in state.items() if not key.endswith("tracked")}
            new = weights(shapes[name])
            part.load_state_dict({key: torch.from_numpy(v) for key, v in new.items()}, strict=False)
        inside: list[torch.Tensor] = []
        for classifier in (decoder.conv_last, decoder.conv_last_deepsup):
            classifier.register_forward_hook(lambda _, __, out, inside=inside: inside.append(out))
        with torch.no_grad():
            maps = encoder(torch.from_numpy(image(*SIZE)), return_feature_maps=True)
            probabilities = decoder(maps, segSize=SIZE)
            decoder.use_softmax = False
            decoder(maps)
        logits, aux_logits = (F.interpolate(out, SIZE, mode="bilinear", align_corners=False) for out in inside[-2:])
        numbers = {"probabilities": probabilities, "logits": logits, "aux_logits": aux_logits}
        samples = {name: sample(values.numpy()) for name, values in numbers.items()}
        write(f"mit{layers}", {"shapes": shapes, "size": SIZE, **samples})


if __name__ == "__main__":
    main(sys.argv[1])
