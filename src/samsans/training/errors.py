"""What can end a training before its time."""

from samsans.errors import SamsansError


class TrainingError(SamsansError):
    """The training cannot go on, e.g. because the loss is no longer a number; the last checkpoint is untouched."""


class TrainingStopped(SamsansError):
    """The training was asked to stop (Ctrl-C, SIGTERM) and has saved everything that is needed to go on."""
