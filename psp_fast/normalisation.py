"""The normalisation of images: ImageNet's, which nearly all pretrained weights expect."""

Colour = tuple[float, float, float]

MEAN: Colour = (0.485 * 255, 0.456 * 255, 0.406 * 255)  # RGB, 0..255
STD: Colour = (0.229 * 255, 0.224 * 255, 0.225 * 255)
