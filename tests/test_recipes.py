"""The recipes: strict, complete, true to the numbers they cite, and the same after a round through YAML."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from samsans import api, cli, config, recipes, zoo
from samsans.data.protocols import protocols
from samsans.errors import InputError
from samsans.metrics.conventions import CONVENTIONS

WRONG_MEANS = {("AutoSAM", 0.6208): 0.6984, ("AutoSAM", 0.5569): 0.6227}  # printed -> mean of the eight organs
PUBLISHED = {
    "autosam_synapse": (0.6208, 27.56),
    "hsam_la": (0.8922, None),
    "hsam_promise12": (0.8727, None),
    "hsam_synapse": (0.8649, 8.18),
    "hsam_synapse_fewshot": (0.8035, 15.54),
    "hsam_synapse_semi5": (0.7936, None),
    "masksam_acdc": (0.9339, None),
    "masksam_amos": (0.9052, None),
    "masksam_synapse": (0.8723, None),
    "samed_synapse": (0.8188, 20.64),
    "samed_synapse_fewshot": (0.7557, 23.02),
}

SETS = {"p2sam_brats": (0.238, 0.593, 0.881, 0.494), "p2sam_lidc": (0.218, 0.216, 0.679, 0.933)}


def test_the_list_is_complete() -> None:
    assert recipes.names() == tuple(sorted((*PUBLISHED, *SETS)))


@pytest.mark.parametrize("name", SETS)
def test_recipe_of_several_answers(name: str) -> None:
    made = config.load(name)
    about = made.recipe
    assert (about.name, made.method, made.preset) == (name, "p2sam", "paper")
    assert (made.split.test, made.split.val, made.model.stage2_images) == (0.2, 0.2, None)
    assert all(len(text) > 20 for text in (about.dataset, about.source, about.terms, about.layout))
    assert about.published == []
    first = about.sets[0]
    assert (first.method, *first.scores.values()) == ("P2SAM", *SETS[name])
    assert all(0 < score < 1 for row in about.sets for score in row.scores.values())
    assert config.from_dict(yaml.safe_load(config.dump(made))) == made
    assert recipes.departures(made) == ()
    few = api.resolve(None, config=name, options={"model.stage2_images": 500})
    assert recipes.departures(few) == ("model.stage2_images: None -> 500",)
    shown = recipes.show(name)
    assert f"P2SAM: {', '.join(f'{k} {v:.3f}' for k, v in first.scores.items())} (Table" in shown


def test_nested_readings_of_one_mask() -> None:
    assert config.load("p2sam_brats").data.annotators == {"core": [1], "oedema": [1, 2], "whole": [1, 2, 4]}


@pytest.mark.parametrize("name", PUBLISHED)
def test_recipe(name: str) -> None:
    made = config.load(name)
    about = made.recipe
    assert about.name == name
    assert made.method in zoo.METHODS
    assert all(row.note for row in about.published if not row.comparable)
    incomparable = ("autosam_synapse", "hsam_synapse_semi5", "masksam_amos")
    assert about.published[0].comparable is (name not in incomparable)
    assert yaml.safe_load(recipes.locate(name).read_text("utf-8"))["preset"] == made.preset
    if name == "masksam_amos":
        assert (made.split.protocol, made.split.test) == (None, 0.2)
    else:
        assert made.split.protocol in protocols.names()
    assert all(len(text) > 20 for text in (about.dataset, about.source, about.terms, about.layout))
    assert about.tolerance == 0.02
    first = about.published[0]
    assert (first.dice, first.hd95) == PUBLISHED[name]
    assert made.data.classes is not None
    for row in about.published:
        assert row.convention in CONVENTIONS
        assert 0 < row.dice < 1
        if row.classes:
            assert list(row.classes) == list(made.data.classes)
            mean = sum(row.classes.values()) / len(row.classes)
            assert row.comparable is ((row.method, row.dice) not in WRONG_MEANS)
            assert mean == pytest.approx(WRONG_MEANS.get((row.method, row.dice), row.dice), abs=1.5e-4)
    assert config.from_dict(yaml.safe_load(config.dump(made))) == made
    assert recipes.departures(made) == ()


def test_settings_that_differ_from_the_presets() -> None:
    full, la, prostate = (config.load(name) for name in ("hsam_synapse", "hsam_la", "hsam_promise12"))
    assert (full.backbone.name, full.backbone.input_size, full.train.lr) == ("sam-vit-l", 224, 2.6e-3)
    assert (la.train.epochs, la.train.lr, la.data.window) == (250, 2.8e-3, [-3.0, 3.0])
    assert (prostate.train.epochs, prostate.train.lr, prostate.data.levels) == (250, 2.6e-3, "slice")
    samed, few = config.load("samed_synapse"), config.load("samed_synapse_fewshot")
    assert (samed.train.epochs, samed.train.stop_epoch, samed.backbone.via) == (200, 160, 224)
    assert (few.train.epochs, few.train.stop_epoch, few.augment.policy, few.backbone.via) == (300, None, "hsam", None)
    assert list(full.data.classes or ()) == [
        *("spleen", "right kidney", "left kidney", "gallbladder", "liver", "stomach", "aorta", "pancreas")
    ]


def test_masksam_settings() -> None:
    """Tables 5 and section 6 of the supplement; rates, epochs and sizes."""
    cardiac, synapse, amos = (config.load(f"masksam_{name}") for name in ("acdc", "synapse", "amos"))
    found = [
        (c.backbone.name, c.backbone.input_size, c.patches.size, c.model.queries) for c in (cardiac, synapse, amos)
    ]
    assert found == [
        ("sam-vit-b", 1024, [4, 256, 256], 8),
        ("sam-vit-h", 256, [26, 256, 256], 24),
        ("sam-vit-h", 512, [9, 512, 512], 24),
    ]
    assert [
        (c.train.epochs, c.train.optimizer, c.model.matching.mask, c.model.matching.points)
        for c in (cardiac, synapse, amos)
    ] == [(500, "sgd", 1.5, 32768), (1000, "sgd", 1.5, 32768), (1000, "adamw", 1.2, 131072)]
    for made in (cardiac, synapse, amos):
        assert (made.train.lr, made.train.batch_size, made.patches.per_epoch, made.train.schedule) == (
            *(1e-3, 2, 250),
            "poly_epoch",
        )
        assert (made.train.momentum, made.train.nesterov, made.train.weight_decay) == (0.99, True, 3e-5)
        _, *sides = made.patches.size or ()
        assert [made.backbone.input_size] * 2 == [side * 2**made.model.upsample for side in sides]
        assert made.model.queries > len(made.data.classes or ()) + 1
        truth = [row for row in made.recipe.published if "from the truth" in row.method]
        assert all(not row.comparable for row in truth)
    assert amos.train.eps == 1e-4
    assert list(amos.data.classes or ())[8:10] == ["postcava", "pancreas"]


def test_what_is_planned_is_no_departure() -> None:
    planned = {"patches.spacing": [10.0, 1.5, 1.5], "patches.statistics": None}
    assert recipes.departures(api.resolve(None, config="masksam_acdc", options=planned)) == ()
    changed = api.resolve(None, config="masksam_acdc", options={"patches.size": [8, 256, 256]})
    assert recipes.departures(changed) == ("patches.size: [4, 256, 256] -> [8, 256, 256]",)


def test_samed_organs_are_in_the_order_of_its_readme() -> None:
    organs = config.load("samed_synapse").recipe.published[0].classes
    order = ("aorta", "gallbladder", "left kidney", "right kidney", "liver", "pancreas", "spleen", "stomach")
    assert [organs[name] for name in order] == [0.8777, 0.6911, 0.8045, 0.7995, 0.9480, 0.7217, 0.8872, 0.8206]


def test_departures_name_what_matters(tmp_path: Path) -> None:
    options = {"train.lr": 0.1, "data.path": "/elsewhere", "seed": 9, "train.workers": 3, "steps": 7}
    made = api.resolve(None, tmp_path, config="hsam_la", options=options)
    assert recipes.departures(made) == (
        "train.steps: 4000 -> 7",
        "train.epochs: 250 -> None",
        "train.lr: 0.0028 -> 0.1",
    )
    assert recipes.departures(config.from_dict({"method": "hsam"})) == ()


def test_departures_of_batch_and_of_what_is_compared_with() -> None:
    def departures(**options: object) -> tuple[str, ...]:
        return recipes.departures(api.resolve(None, config="hsam_la", options=options))

    batch = {"train.batch_size": 4, "train.devices": 8}
    assert departures(**batch) == ()
    assert departures(**{"train.devices": 8}) == ("train.batch_size x devices: 32 -> 256",)
    assert departures(**{"recipe.tolerance": 0.5}) == ("recipe.tolerance: 0.02 -> 0.5",)
    (said,) = departures(**{"recipe.published": [{"table": "t", "method": "m", "convention": "default", "dice": 0.1}]})
    assert said.startswith("recipe.published: ('H-SAM 0.8922', ")
    assert said.endswith("-> ('m 0.1',)")


def test_a_recipe_is_meant_by_its_name_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    packaged = recipes.folder() / "hsam_la.yaml"
    for name in ("hsam_la", "hsam_la.yaml", "recipes/hsam_la.yaml"):
        assert recipes.locate(name).resolve() == packaged
    for name in (
        "my_dir/hsam_la.yaml",
        "./hsam_la.yml",
        "./hsam_la",
        "recipes/hsam_la",
        str(tmp_path / "hsam_la.yaml"),
    ):
        with pytest.raises(InputError, match="no configuration at"):
            recipes.locate(name)
    argv = ["import", "hsam", "x.pth", "-o", str(tmp_path / "run"), "--backbone", "tiny", "--names", "hsam_la"]
    assert cli.main(argv) == 2
    assert "no table of names at hsam_la" in capsys.readouterr().err


def test_a_length_in_a_file_replaces_the_one_of_the_preset(tmp_path: Path) -> None:
    def length(text: str, **options: object) -> tuple[object, ...]:
        file = tmp_path / "mine.yaml"
        file.write_text(text)
        made = api.resolve(None, config=file, options=options).train
        return made.steps, made.epochs, made.stop_epoch, made.minutes

    assert length("{method: hsam, preset: paper, train: {steps: 100}}") == (100, None, None, None)
    assert length("{method: hsam, preset: paper, train: {lr: 0.1}}") == (4000, 300, None, None)
    assert length("{method: samed, train: {epochs: 50}}") == (4000, 50, None, None)
    assert length("{method: samed, train: {stop_epoch: 20}}") == (4000, 200, 20, None)
    assert length("{method: samed, train: {minutes: 2}}", epochs=9) == (4000, 9, None, None)
    assert length("{method: samed, train: {epochs: 50, stop_epoch: 20}}", seed=1) == (4000, 50, 20, None)


def test_a_length_that_is_told_replaces_the_one_of_the_file() -> None:
    def length(**options: object) -> tuple[object, ...]:
        made = api.resolve(None, config="samed_synapse", options=options).train
        return made.steps, made.epochs, made.stop_epoch, made.minutes

    assert length() == (4000, 200, 160, None)
    assert length(steps=5) == (5, None, None, None)
    assert length(minutes=2.0) == (4000, None, None, 2.0)
    assert length(epochs=9) == (4000, 9, None, None)
    assert length(epochs=9, **{"train.stop_epoch": 3}) == (4000, 9, 3, None)
    assert api.resolve("hsam", options={"steps": 5}).train.epochs is None  # those of the preset too


def test_method_and_file_agree(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert api.resolve("hsam", config="hsam_la") == api.resolve(None, config="hsam_la")
    with pytest.raises(InputError, match=r"'samed', but hsam_la is of 'hsam'"):
        api.resolve("samed", config="hsam_la")
    with pytest.raises(InputError, match="no method is named"):
        api.resolve(None)
    bare = tmp_path / "bare.yaml"
    bare.write_text("seed: 3\n")
    with pytest.raises(InputError, match="names no method"):
        api.resolve(None, config=bare)
    for argv, said in [
        (["samed", str(tmp_path), "--config", "hsam_la"], "one method"),
        (["--config", str(bare), str(tmp_path)], "before the method"),
        (["--config", "hsam_mars", str(tmp_path)], "a recipe: autosam_synapse"),
        (["hsm", str(tmp_path), "--config", "hsam_la"], "'hsm'"),
    ]:
        assert cli.main(["train", *argv, "-o", str(tmp_path / "run")]) == 2
        assert said in capsys.readouterr().err


def test_shown(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["models", "list"]) == 0
    shown = capsys.readouterr().out
    assert all(f"\n{name}" in shown for name in PUBLISHED)
    assert cli.main(["models", "show", "hsam_promise12"]) == 0
    shown = capsys.readouterr().out
    for part in ("promise12.grand-challenge.org", "Case00.mhd", "H-SAM: Dice 0.8727", "Table 3", "unlabelled"):
        assert part in shown
    assert cli.main(["models", "show", "masksam_amos"]) == 0
    assert "split      test 0.2" in capsys.readouterr().out
