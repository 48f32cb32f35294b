"""The errors a user can cause. Messages say what was wrong, where, and what to do."""


class PspFastError(Exception):
    """Base of every error that bad input, bad files or bad options cause."""


class DataError(PspFastError):
    """An image, label or list file cannot be used."""


class CheckpointError(PspFastError):
    """A checkpoint cannot be read, written, or does not fit the model."""


class ConfigError(PspFastError):
    """A recipe or an option is wrong."""


class TrainingError(PspFastError):
    """Training cannot go on (a loss that is not finite, say)."""
