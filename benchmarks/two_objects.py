"""Does the support mask decide the answer?  The two-object toy of decision D-35, trained from nothing in several seeds.

    python benchmarks/two_objects.py --seeds 0 1 2 --steps 1500

Every image shows a disc and a square.  With the mask of a disc as support the disc must be segmented, with that of a
square the square.  Passed where, on the training images and with 8 *other* ones as supports, the wanted object scores
above 0.7 and the other one below 0.2; a model that ignores the masks scores alike on both.  Scores on new images are
printed beside: they say how far 16 images carry.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np

from samsans import api
from samsans.data.phantoms import Phantom, make, write

NAMES = ("disc", "square")
WANTED, OTHER, SUPPORTS = 0.7, 0.2, 8


def dice(found: np.ndarray, truth: np.ndarray) -> float:
    return 2 * (found & truth).sum() / max(1, found.sum() + truth.sum())


def scores(run: Path, images: list[Phantom], supports: list[Phantom]) -> np.ndarray:
    """``(2, 2)`` mean Dice: row, the object shown as support; column, the object scored."""
    segmenter = api.load(run)
    table = np.zeros((2, 2))
    for row in range(2):
        pairs = [(p.image[0], (p.labels[0][0] == row + 1).astype(np.uint8) * (row + 1)) for p in supports]
        bank = segmenter.encode_support(pairs)
        for phantom in images:
            others = [i for i, p in enumerate(supports) if p.id != phantom.id][:SUPPORTS]
            found = segmenter.predict(phantom.image[0], support=bank.select(others)).labels[0] > 0
            for column in range(2):
                table[row, column] += dice(found, phantom.labels[0][0] == column + 1) / len(images)
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--images", type=int, default=16, help="training images")
    parser.add_argument("--difficulty", type=float, default=0.2)
    parser.add_argument("--preset", default="scratch")
    args = parser.parse_args()
    options = {"size": 64, "difficulty": args.difficulty, "seed": 7}
    seen = list(make("two_objects", args.images, **options))
    unseen = list(make("two_objects", 16, start=1000, **options))
    passed = 0
    for seed in args.seeds:
        with tempfile.TemporaryDirectory() as folder:
            data = write("two_objects", Path(folder) / "data", n=args.images, **options)
            settings = {"data.classes": {"disc": [1], "square": [2]}, "train.pictures_every": 0}
            run = api.train(
                "proxy_prompt",
                data,
                out=Path(folder) / "run",
                preset=args.preset,
                backbone="scratch",
                input_size=64,
                steps=args.steps,
                seed=seed,
                **settings,
            )
            tables = {"training images": scores(run, seen, seen), "new images": scores(run, unseen, seen)}
        own = tables["training images"]
        passed += bool(own.diagonal().min() > WANTED and own[[0, 1], [1, 0]].max() < OTHER)
        for name, table in tables.items():
            cells = "   ".join(f"{NAMES[i]} shown: disc {table[i, 0]:.2f} square {table[i, 1]:.2f}" for i in range(2))
            print(f"seed {seed}  {name:16}{cells}", flush=True)
    print(f"passed in {passed} of {len(args.seeds)} seeds")


if __name__ == "__main__":
    main()
