"""The colours of the objects: the same in label map files, overlays, reports and training snapshots."""

from __future__ import annotations

# Index 0 is the background.  The first eight keep apart under the common colour vision deficiencies and on grey
# images (after Okabe and Ito, 2008, brightened); the rest fill the gaps between them in hue and lightness.
PALETTE: tuple[tuple[int, int, int], ...] = (
    (0, 0, 0),
    (46, 196, 255),  # sky, first because it stands out on grey, on blood and on fundus alike
    (255, 159, 28),  # orange
    (0, 200, 140),  # emerald
    (255, 84, 112),  # coral
    (250, 226, 60),  # yellow
    (64, 110, 255),  # blue
    (226, 120, 220),  # orchid
    (196, 86, 0),  # rust
    (150, 230, 80),  # lime
    (140, 82, 255),  # violet
    (0, 150, 160),  # teal
    (255, 180, 200),  # pink
    (170, 120, 60),  # ochre
    (150, 220, 230),  # ice
    (200, 0, 90),  # crimson
    (0, 120, 60),  # forest
    (190, 180, 255),  # lavender
    (255, 220, 170),  # cream
    (120, 120, 40),  # olive
    (255, 40, 255),  # magenta
)


def color(label: int) -> tuple[int, int, int]:
    """RGB of a label, each in 0-255; labels above the last colour start again at the first (0 stays background)."""
    return PALETTE[0] if label <= 0 else PALETTE[1 + (label - 1) % (len(PALETTE) - 1)]
