"""Generated phantoms: small data sets with exact truth, so that tests and demos need no download.

    from samsans.data.phantoms import make, write

    case = next(make("fundus", 1))              # case.image (1, 128, 128, 3) uint8, case.labels[0] (1, 128, 128)
    write("torso", "demo", n=4, layout="nnunet", test=2)
    write("lesions", "doubt", n=400)            # four annotators, labels_a/ to labels_d/, of whom 0 to 3 see nothing

They resemble the modalities they are named after in what makes segmentation hard (texture, speckle, shadows, partial
contrast, distractors); they are not simulations of physics and say nothing about patients.
"""

from __future__ import annotations

from samsans.data.phantoms.base import Phantom
from samsans.data.phantoms.disk import LAYOUTS, write
from samsans.data.phantoms.generate import FAMILIES, make

__all__ = ["FAMILIES", "LAYOUTS", "Phantom", "make", "write"]
