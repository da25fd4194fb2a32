"""A stand-in for nnU-Net's package: the same entry points and folders, a U-Net that is a threshold.

``environment`` makes a real virtual environment around it, so that the child processes, their variables and our trainer
are tested as they are.
"""

from __future__ import annotations

import sys
import sysconfig
import venv
from pathlib import Path

PATHS = """\
nnUNet_extTrainer = None
"""
BASE = """\
import json, time
from os import environ, makedirs

class Optimizer:
    def __init__(self):
        self.param_groups = [{"lr": None}]

class nnUNetTrainer:
    def __init__(self, plans, configuration, fold, dataset_json, device):
        name = f"{type(self).__name__}__nnUNetPlans__{configuration}/fold_{fold}"
        self.output_folder = environ["nnUNet_results"] + "/Dataset001_samsans/" + name
        makedirs(self.output_folder, exist_ok=True)
        self.initial_lr, self.current_epoch, self.rates, self.saved = 0.01, 0, [], []
        self.num_val_iterations_per_epoch = 50
        self.dataloader_train = self.dataloader_val = iter(lambda: {}, 0)

    def configure_optimizers(self):
        return Optimizer(), None

    def on_train_start(self):
        self.optimizer, self.lr_scheduler = self.configure_optimizers()

    def train_step(self, batch):
        self.rates.append(self.optimizer.param_groups[0]["lr"])
        time.sleep(0.005)
        return {"loss": 0.0}

    def on_epoch_start(self): pass
    def on_train_epoch_start(self): self.lr_scheduler.step(self.current_epoch)
    def on_train_epoch_end(self, losses): assert losses
    def on_validation_epoch_start(self): pass
    def validation_step(self, batch): return {}
    def on_validation_epoch_end(self, found): assert len(found) == self.num_val_iterations_per_epoch

    def on_epoch_end(self):
        self.save_checkpoint(self.output_folder + "/checkpoint_best.pth")
        self.current_epoch += 1

    def on_train_end(self):
        self.save_checkpoint(self.output_folder + "/checkpoint_final.pth")

    def save_checkpoint(self, filename):
        self.saved.append(filename)
        with open(filename, "w") as file:
            json.dump(self.rates, file)

    def perform_actual_validation(self, save_probabilities=False):
        raise RuntimeError("nnU-Net's own validation")
"""
PLAN = """\
import json, sys
from os import environ, makedirs

def plan_and_preprocess_entry():
    with open(environ["nnUNet_raw"] + "/Dataset001_samsans/dataset.json") as file:
        print("planning for", json.load(file)["labels"])
    makedirs(environ["nnUNet_preprocessed"] + "/Dataset001_samsans")
"""
TRAIN = """\
import argparse, importlib, json, sys
from os import environ

def run_training_entry():
    parser = argparse.ArgumentParser()
    for name in ("dataset", "configuration", "fold", "-tr", "-device"):
        parser.add_argument(name)
    args = parser.parse_args()
    with open(environ["nnUNet_preprocessed"] + "/Dataset001_samsans/splits_final.json") as file:
        assert json.load(file)[int(args.fold)]["val"]
    sys.path.insert(0, environ["nnUNet_extTrainer"])
    trainer = getattr(importlib.import_module("samsans_minutes"), args.tr)({}, args.configuration, 0, {}, args.device)
    trainer.run_training()
    trainer.perform_actual_validation()
    assert [name.rpartition("/")[2] for name in trainer.saved] == ["checkpoint_final.pth"]
    import torch
    print("threads", torch.threads, "loader processes", environ.get("nnUNet_n_proc_DA"))
"""
PREDICT = """\
import argparse
from pathlib import Path
import nibabel
import numpy as np

def predict_entry_point():
    parser = argparse.ArgumentParser()
    for name in ("-i", "-o", "-d", "-f", "-c", "-tr", "-npp", "-nps", "-device"):
        parser.add_argument(name, required=True)
    parser.add_argument("--disable_tta", action="store_true")
    parser.add_argument("--disable_progress_bar", action="store_true")
    args = parser.parse_args()
    Path(args.o).mkdir()
    for path in sorted(Path(args.i).glob("*_0000.nii.gz")):
        image = nibabel.load(path)
        bright = (np.asarray(image.dataobj) > 100).astype(np.uint8)
        if not args.disable_tta:
            bright[:] = 0
        nibabel.save(nibabel.Nifti1Image(bright, image.affine), Path(args.o) / path.name.replace("_0000", ""))
"""
TORCH = """\
import contextlib
__version__ = "0"
no_grad = contextlib.nullcontext
threads = None
def set_num_threads(count):
    global threads
    threads = count
class cuda:
    is_available = staticmethod(lambda: False)
"""


def environment(folder: Path, *, changed: dict[str, str] | None = None) -> Path:
    """A virtual environment with the stand-in; returns its Python.  changed: other contents of its files."""
    venv.create(folder, with_pip=False)
    site = Path(sysconfig.get_path("purelib", vars={"base": str(folder)}))
    files = {
        "torch.py": TORCH,
        "nnunetv2/paths.py": PATHS,
        "nnunetv2/training/nnUNetTrainer/nnUNetTrainer.py": BASE,
        "nnunetv2/experiment_planning/plan_and_preprocess_entrypoints.py": PLAN,
        "nnunetv2/run/run_training.py": TRAIN,
        "nnunetv2/inference/predict_from_raw_data.py": PREDICT,
        "nnunetv2-2.8.1.dist-info/METADATA": "Metadata-Version: 2.1\nName: nnunetv2\nVersion: 2.8.1\n",
        "ours.pth": "\n".join(path for path in sys.path if path.endswith("site-packages")) + "\n",  # nibabel, numpy
    }
    for name, text in (files | (changed or {})).items():
        path = site / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        if name.startswith("nnunetv2/"):
            for parent in [p for p in path.parents if p.is_relative_to(site / "nnunetv2")]:
                (parent / "__init__.py").touch()
    return folder / "bin" / "python"
