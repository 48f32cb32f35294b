"""The normalisation of images: ImageNet's, which nearly all pretrained weights expect."""

Colour = tuple[float, ...]  # one number per channel

MEAN: Colour = (123.675, 116.28, 103.53)  # RGB, 0..255
STD: Colour = (58.395, 57.12, 57.375)
