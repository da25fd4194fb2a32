"""Write ``docs/reference/configuration.md`` from the configuration dataclasses: ``make docs``.

A test compares the file with what this script would write.
"""

from __future__ import annotations

import dataclasses
import inspect
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import docstring_parser
import yaml

from samsans import config, zoo

FILE = Path(__file__).parent / "reference" / "configuration.md"

HEAD = """\
# Configuration

Written by `make docs` from the dataclasses in `samsans.config` and the methods' `config.py`; do not edit by hand.

Every key is a flag of `samsans train METHOD` (`--train.lr 0.001`), a line of a YAML file given with `--config FILE`,
and a keyword of `samsans.train(..., **{"train.lr": 0.001})`. Later ones win: defaults, preset, YAML file, flags. An
unknown key or a value of the wrong type is an error. The resolved configuration is written to `config.yaml` in the run
folder.

Short flags: `--shots` (`split.shots`), `--steps`, `--epochs`, `--minutes` (`train.*`), `--seed`, `--input-size`
(`backbone.input_size`), `--backbone NAME` (`backbone.name`). `check`, `predict` and `evaluate` take the `--data.*` keys
too.
"""


def render() -> str:
    """The whole page."""
    shared = [(f.name, f.default_factory) for f in dataclasses.fields(config.RunConfig) if f.name != "model"]
    plain = [("seed", "int", "0", "Of every random draw of the run.")]
    parts = [HEAD, "## Top level\n", _table(plain)]
    for name, made in shared:
        if made is not dataclasses.MISSING:
            parts += [f"## `{name}`\n", _section(made, f"{name}.")]
    for method in zoo.list_methods():
        module, _, cls = method.config.partition(":")
        made = getattr(__import__(module, fromlist=[cls]), cls)
        parts += [f"## `model` of {method.name}\n", _section(made, "model."), _presets(method.name)]
    return "\n".join(parts)


def _section(cls: Any, prefix: str) -> str:
    about = inspect.getdoc(cls) or ""
    return f"{docstring_parser.parse(about).short_description}\n\n{_table(_rows(cls, prefix))}"


def _rows(cls: Any, prefix: str) -> list[tuple[str, str, str, str]]:
    """Key, type, default and meaning of every field, nested ones included."""
    meaning = {p.arg_name: p.description or "" for p in docstring_parser.parse(inspect.getdoc(cls) or "").params}
    hints, rows = get_type_hints(cls), []
    for field in dataclasses.fields(cls):
        kind = hints[field.name]
        if dataclasses.is_dataclass(kind):
            rows.append((f"{prefix}{field.name}.*", "", "", meaning[field.name]))
            rows += _rows(kind, f"{prefix}{field.name}.")
            continue
        default = field.default if field.default is not dataclasses.MISSING else field.default_factory()  # type: ignore[misc]
        rows.append((prefix + field.name, _type(kind), _value(default), meaning[field.name]))
    return rows


def _type(kind: Any) -> str:
    """``Literal["a", "b"] | None`` as ``a | b | null``; the same text in every version of Python."""
    origin, inner = get_origin(kind), get_args(kind)
    if origin is Literal:
        return " | ".join(map(str, inner))
    if origin in (Union, UnionType):
        return " | ".join(map(_type, inner))
    if inner:
        return f"{origin.__name__}[{', '.join(map(_type, inner))}]"
    return "null" if kind is type(None) else str(kind.__name__)


def _value(default: Any) -> str:
    return str(yaml.safe_dump(default, default_flow_style=True, width=1000)).removesuffix("...\n").strip()


def _table(rows: list[tuple[str, str, str, str]]) -> str:
    lines = ["| key | type | default | meaning |", "|---|---|---|---|"]
    for key, kind, default, meaning in rows:
        cells = [
            f"`{key}`",
            *(f"`{x}`" if x else "" for x in (kind, default)),
            " ".join(meaning.replace("``", "`").split()),
        ]
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def _presets(method: str) -> str:
    lines = [f"### Presets of {method}\n"]
    for name, values in config.presets(method).items():
        if values:
            text = yaml.safe_dump(values, sort_keys=False, default_flow_style=None, width=100)
            lines.append(f"`{name}`:\n\n```yaml\n{text}```\n")
        else:
            lines.append(f"`{name}`: the defaults above.\n")
    return "\n".join(lines)


if __name__ == "__main__":
    FILE.write_text(render(), encoding="utf-8")
    print(FILE)
