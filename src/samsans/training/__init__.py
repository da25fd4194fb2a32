"""Training: the loop over a method's stages, what it writes, and how it goes on after an interruption."""

from samsans.training.errors import TrainingError, TrainingStopped
from samsans.training.run import train

__all__ = ["TrainingError", "TrainingStopped", "train"]
