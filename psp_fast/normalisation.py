"""The normalisation of images: ImageNet's, which nearly all pretrained weights expect."""

Colour = tuple[float, ...]  # one number per channel

MEAN: Colour = (123.675, 116.28, 103.53)  # RGB, 0..255
STD: Colour = (58.395, 57.12, 57.375)


def for_channels(values: tuple[float, ...], channels: int) -> tuple[float, ...]:
    """values for images of so many channels: themselves where they are as many, else their mean for every channel."""
    return values if len(values) == channels else (sum(values) / len(values),) * channels
