"""Images, volumes and DICOM in and out, geometry kept.

World coordinates are RAS+ mm; array axes are the reverse of the file's own order, never reoriented.
"""

from samsans.io.atomic import atomic_path, suffix, sweep, write_json, write_text
from samsans.io.files import (
    IMAGE_SUFFIXES,
    PACKED_SUFFIXES,
    VIDEO_SUFFIXES,
    VOLUME_SUFFIXES,
    file_hash,
    find_images,
    is_image,
    output_suffix,
    stem,
)
from samsans.io.orientation import Orientation
from samsans.io.points import read_points, write_points
from samsans.io.read import content_hash, read_image, read_labels
from samsans.io.samples import read_samples, write_samples
from samsans.io.video import Frame, Video, is_video, open_video
from samsans.io.write import write_image, write_labels

__all__ = [
    "IMAGE_SUFFIXES",
    "PACKED_SUFFIXES",
    "VIDEO_SUFFIXES",
    "VOLUME_SUFFIXES",
    "Frame",
    "Orientation",
    "Video",
    "atomic_path",
    "content_hash",
    "file_hash",
    "find_images",
    "is_image",
    "is_video",
    "open_video",
    "output_suffix",
    "read_image",
    "read_labels",
    "read_points",
    "read_samples",
    "stem",
    "suffix",
    "sweep",
    "write_image",
    "write_json",
    "write_labels",
    "write_points",
    "write_samples",
    "write_text",
]
