"""CSAILVision/semantic-segmentation-pytorch's dilated ResNets and PPMDeepsup; a checkout and torch are enough."""

from __future__ import annotations

import sys

import torch

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
        with torch.no_grad():
            maps = encoder(torch.from_numpy(image(*SIZE)), return_feature_maps=True)
            probabilities = decoder(maps, segSize=SIZE)
        write(f"mit{layers}", {"shapes": shapes, "size": SIZE, "probabilities": sample(probabilities.numpy())})


if __name__ == "__main__":
    main(sys.argv[1])
