"""The shape of the code: who imports whom, what is forbidden, what stays light, and which names are public."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

import samsans

SOURCE = Path(__file__).resolve().parents[1] / "src" / "samsans"
FILES = sorted(SOURCE.rglob("*.py"))
MOST_LINES = 400

PUBLIC = {
    "Batch",
    "Case",
    "ClassInfo",
    "InputError",
    "Prediction",
    "Progress",
    "SamsansError",
    "Volume",
    "__version__",
    "check",
    "evaluate",
    "load",
    "train",
}

# Layer -> the layers it may import.  Everybody may import PLAIN and itself.
PLAIN = {"architectures", "types", "errors", "cache", "config", "recipes", "settings", "zoo", "palette"}
ARROWS: dict[str, set[str]] = {
    "types": {"io"},  # only to save a prediction
    "errors": set(),
    "palette": set(),
    "architectures": set(),
    "zoo": set(),
    "cache": set(),
    "config": set(),
    "recipes": set(),
    "settings": set(),
    "io": set(),
    "ops": set(),
    "display": set(),
    "data": {"io"},
    "backbones": {"ops"},
    "methods": {"ops", "backbones"},
    "metrics": {"io", "data"},
    "training": {"io", "data", "ops", "backbones", "methods", "metrics", "display"},
    "inference": {"io", "data", "ops", "backbones", "methods"},
    "api": {"io", "data", "metrics", "training", "inference"},
}
TOP = {"samsans", "cli", "commands", "demo", "experiments", "benchmark"}  # may import everything below them

LIGHTNING_HOOKS = {"configure_optimizers", "training_step", "transfer_batch_to_device", "prepare_data", "setup"}

LIGHT = ["samsans", "samsans.zoo", "samsans.config", "samsans.io", "samsans.metrics", "samsans.cli", "samsans.api"]

FORBIDDEN = {
    r"\.cuda\(": "a device is chosen by its name: tensor.to(device)",
    r"\bpickle\.loads?\(|weights_only\s*=\s*False|allow_pickle\s*=\s*True": "pickle runs code of strangers",
    r"ignore_mismatched_sizes": "it draws anew what must be resized",
    r"\bos\.(environ|getenv)\b": "no environment variable is needed to run, and none is set behind the user's back",
}

ALLOWED = 'os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")'  # a courtesy of the command; the user's own value wins


def _tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def _name(path: Path) -> str:
    return str(path.relative_to(SOURCE))


def _layer(module: str) -> str:
    """``samsans.io.nifti`` -> ``io``; the package itself -> ``samsans``."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else "samsans"


def _own_layer(path: Path) -> str:
    parts = path.relative_to(SOURCE).with_suffix("").parts
    return "samsans" if parts == ("__init__",) else parts[0]


def _imports(path: Path) -> list[tuple[int, str]]:
    """Line and full name of every module of ours that a file imports, inside functions too, but not for types only."""
    tree = _tree(path)
    typing_only = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for inner in ast.walk(node)
    }
    found = []
    for node in ast.walk(tree):
        if id(node) in typing_only:
            continue
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{_name(path)}:{node.lineno} imports relatively"
            module = node.module or ""
            found += [(node.lineno, f"{module}.{a.name}" if module == "samsans" else module) for a in node.names]
    return [(line, name) for line, name in found if name.split(".")[0] == "samsans"]


@pytest.mark.parametrize("path", FILES, ids=_name)
def test_imports_follow_the_arrows(path: Path) -> None:
    own = _own_layer(path)
    if own in TOP:
        return
    assert own in ARROWS, f"{own} is a new layer: say in ARROWS what it may import"
    allowed = ARROWS[own] | PLAIN | {own}
    wrong = [f"line {line}: {name}" for line, name in _imports(path) if _layer(name) not in allowed | {"samsans"}]
    assert not wrong, f"{_name(path)} ({own}) may import {sorted(allowed)}, not {wrong}"


def test_arrows_have_no_cycle() -> None:
    order: list[str] = sorted(PLAIN)
    while rest := set(ARROWS) - set(order):
        ready = sorted(layer for layer in rest if ARROWS[layer] <= set(order))
        assert ready, f"{sorted(rest)} import each other in a circle"
        order += ready


@pytest.mark.parametrize("path", FILES, ids=_name)
def test_nothing_forbidden(path: Path) -> None:
    text = path.read_text(encoding="utf-8").replace(ALLOWED, "") if path.name == "cli.py" else path.read_text("utf-8")
    found = [f"{pattern} ({why})" for pattern, why in FORBIDDEN.items() if re.search(pattern, text)]
    assert not found


@pytest.mark.parametrize("path", FILES, ids=_name)
def test_files_stay_small(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= MOST_LINES


@pytest.mark.parametrize("path", FILES, ids=_name)
def test_public_things_have_docstrings(path: Path) -> None:
    tree = _tree(path)
    missing = [] if ast.get_docstring(tree) else ["the module"]

    def visit(node: ast.Module | ast.ClassDef, inside: str) -> None:
        for child in node.body:
            if isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
                if child.name.startswith("_"):
                    continue
                if not ast.get_docstring(child) and not _exempt(child, node):
                    missing.append(f"{inside}{child.name} (line {child.lineno})")
                if isinstance(child, ast.ClassDef):
                    visit(child, f"{inside}{child.name}.")

    visit(tree, "")
    assert not missing, missing


def _exempt(child: ast.AST, parent: ast.AST) -> bool:
    """``forward`` and ``backward``, which the docstring of their class describes, and hooks that Lightning names."""
    if not isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef)) or not isinstance(parent, ast.ClassDef):
        return False
    if child.name in ("forward", "backward"):
        return bool(ast.get_docstring(parent))
    hooks = child.name.startswith("on_") or child.name in LIGHTNING_HOOKS
    return hooks and any(ast.unparse(base).startswith("pl.") for base in parent.bases)


def test_public_names_are_pinned() -> None:
    assert set(samsans.__all__) == PUBLIC
    for name in PUBLIC:
        assert getattr(samsans, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = samsans.nothing


def _measure(code: str) -> dict[str, object]:
    """Run Python code in a fresh process: its modules and the CPU seconds it took."""
    program = (
        "import json, sys, time\n"
        f"{code}\n"
        "print('@' + json.dumps({'modules': sorted(sys.modules), 'seconds': time.process_time()}))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.rpartition("@")[2])


@cache
def _configs() -> tuple[str, ...]:
    return tuple(
        f"samsans.{_name(path)[:-3].replace('/', '.')}"
        for path in FILES
        if path.name == "config.py" and path.parent != SOURCE
    )


def test_light_modules_import_no_torch() -> None:
    for module in (*LIGHT, *_configs()):
        modules = _measure(f"import {module}")["modules"]
        assert isinstance(modules, list)
        heavy = {"torch", "transformers", "lightning", "monai"} & set(modules)
        assert not heavy, f"import {module} imports {heavy}"


@pytest.mark.parametrize("argv", [["--help"], ["models", "list"], ["--version"]], ids=" ".join)
def test_quick_commands_answer_quickly(argv: list[str]) -> None:
    """Goal 0.5 s of CPU time, interpreter included; three times that is allowed, for a busy or slow machine."""
    code = f"from samsans.cli import main\nassert main({argv!r}) in (0, None)"
    measured = min((_measure(code) for _ in range(2)), key=lambda m: m["seconds"])  # type: ignore[arg-type,return-value]
    assert isinstance(measured["modules"], list)
    assert "torch" not in measured["modules"]
    seconds = measured["seconds"]
    print(f"samsans {' '.join(argv)}: {seconds:.2f} s CPU")
    assert isinstance(seconds, float)
    assert seconds < 3 * 0.5
