"""From a trained run to label maps: arrays, files, volumes and folders, each on the grid of its input."""

from samsans.inference.loading import load
from samsans.inference.manifest import Manifest
from samsans.inference.segmenter import Segmenter
from samsans.inference.supports import read_support
from samsans.inference.video import VideoSegmenter
from samsans.inference.video_folders import predict_video

__all__ = ["Manifest", "Segmenter", "VideoSegmenter", "load", "predict_video", "read_support"]
