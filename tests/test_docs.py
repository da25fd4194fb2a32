"""The documentation is true of the code: commands parse, settings exist, links resolve, Python compiles."""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import importlib
import importlib.util
import io
import re
import shlex
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import jsonargparse
import pytest
import yaml

import samsans
from samsans import api, cli, config, zoo
from samsans.methods.proxy_prompt.support import SupportBank
from samsans.metrics.conventions import CONVENTIONS
from samsans.metrics.evaluate import CSV_COLUMNS, Summary

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")


class Parsed(Exception):
    """The command line was understood."""


def _page(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def _blocks(language: str) -> list[tuple[Path, str]]:
    return [(p, text) for p in PAGES for kind, text in BLOCK.findall(p.read_text(encoding="utf-8")) if kind == language]


def _commands() -> Iterator[tuple[Path, str]]:
    for page, text in _blocks("console"):
        for line in text.replace("\\\n", " ").splitlines():
            assert line.startswith("$ "), f"{_page(page)}: a console block holds {line!r}, expected '$ command'"
            yield page, line[2:]


def _is_synopsis(command: str) -> bool:
    """``samsans predict RUN [--task NAME]``: not to be typed as it stands."""
    return " [" in command or "|" in command


EXAMPLES = [(p, c) for p, c in _commands() if c.startswith("samsans ") and not _is_synopsis(c)]
SYNOPSES = [(p, c) for p, c in _commands() if c.startswith("samsans ") and _is_synopsis(c)]


@pytest.mark.parametrize(("page", "command"), EXAMPLES, ids=[f"{_page(p)}: {c}"[:90] for p, c in EXAMPLES])
def test_commands_parse(page: Path, command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every ``samsans`` line is understood by the parsers of the command line, values included."""
    parse, resolve = jsonargparse.ArgumentParser.parse_args, api.resolve
    argv = shlex.split(command)[1:]

    def parse_only(self: Any, *args: Any, **kwargs: Any) -> Any:
        found = parse(self, *args, **kwargs)
        if argv[0] == "train":
            return found  # on to the configuration
        raise Parsed

    def resolve_only(*args: Any, **kwargs: Any) -> Any:
        resolve(*args, **kwargs)
        raise Parsed

    monkeypatch.setattr(jsonargparse.ArgumentParser, "parse_args", parse_only)
    monkeypatch.setattr(api, "resolve", resolve_only)
    with pytest.raises(Parsed):
        cli.main(argv)


@cache
def _help(command: str) -> str:
    """What ``samsans COMMAND --help`` prints."""
    printed = io.StringIO()
    argv = ["train", "proxy_prompt", "--help"] if command == "train" else [command, "--help"]
    with contextlib.redirect_stdout(printed), contextlib.suppress(SystemExit):
        cli.main(argv)
    return printed.getvalue()


@pytest.mark.parametrize(("page", "command"), SYNOPSES, ids=[c[:40] for _, c in SYNOPSES])
def test_synopses_name_flags_that_exist(page: Path, command: str) -> None:
    name = command.split()[1]
    assert name in cli.COMMANDS
    known = set(re.findall(r"(?<![\w-])--?[a-z][\w.-]*", _help(name))) | {"--backbone"}
    used = set(re.findall(r"(?<![\w-])--?[a-z][\w-]*", command.replace("--data.KEY", "")))
    assert used <= known, f"{_page(page)}: {sorted(used - known)}"


def test_every_command_is_in_the_reference() -> None:
    text = (ROOT / "docs/reference/commands.md").read_text(encoding="utf-8")
    assert set(re.findall(r"^## (\w+)$", text, re.MULTILINE)) == set(cli.COMMANDS)
    elsewhere = {"--help", "--method", "--out", "--input", "--backbone-name"}  # shown as METHOD, -o, -i, --backbone
    for command in cli.COMMANDS:
        flags = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+(?![\w.-])", _help(command))) - elsewhere
        groups = {flag for flag in flags if f"{flag}." in _help(command)}  # --data and the like: see configuration.md
        section = text.partition(f"## {command}\n")[2].partition("\n## ")[0]
        assert [flag for flag in sorted(flags - groups) if flag not in section] == [], command


def test_inline_commands_exist() -> None:
    for page in PAGES:
        text = BLOCK.sub("", page.read_text(encoding="utf-8"))
        for word in re.findall(r"`samsans (\S+?)[ `]", text):
            assert word in cli.COMMANDS or word.startswith("--") or word.isupper(), f"{_page(page)}: samsans {word}"


def test_other_commands_exist() -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    for page, command in _commands():
        words = shlex.split(command)
        if words[0] == "make":
            assert words[1] in targets, f"{_page(page)}: {command}"
        elif words[0] == "python" and words[1] == "-c":
            compile(words[2], _page(page), "exec")
        elif words[0] == "python":
            assert (ROOT / words[1]).is_file(), f"{_page(page)}: {command}"
        else:
            assert words[0] in ("samsans", "pip", "source"), f"{_page(page)}: {command}"


def _anchors(page: Path) -> set[str]:
    text = BLOCK.sub("", page.read_text(encoding="utf-8"))
    titles = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=_page)
def test_links_resolve(page: Path) -> None:
    text = BLOCK.sub("", page.read_text(encoding="utf-8"))
    for target in LINK.findall(text):
        if target.startswith(("http://", "https://", "mailto:")):
            continue
        file, _, anchor = target.partition("#")
        found = (page.parent / file).resolve() if file else page
        assert found.exists(), f"{_page(page)} links to {target}"
        assert found.is_relative_to(ROOT), f"{_page(page)} links out of the project: {target}"
        assert not anchor or anchor in _anchors(found), f"{_page(page)} links to {target}"


def test_every_page_is_linked() -> None:
    linked = {
        (page.parent / target.partition("#")[0]).resolve()
        for page in PAGES
        for target in LINK.findall(page.read_text(encoding="utf-8"))
    }
    assert [_page(p) for p in PAGES if p not in linked and p.parent != ROOT] == []


PYTHON = _blocks("python")


@pytest.mark.parametrize(("page", "code"), PYTHON, ids=[f"{_page(p)}-{i}" for i, (p, _) in enumerate(PYTHON)])
def test_python_compiles_and_names_exist(page: Path, code: str) -> None:
    tree = ast.parse(code, _page(page))
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "samsans":
            module = importlib.import_module(str(node.module))
            for alias in node.names:
                assert hasattr(module, alias.name) or importlib.util.find_spec(f"{node.module}.{alias.name}")
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "samsans":
            assert node.attr in samsans.__all__, f"{_page(page)}: samsans.{node.attr}"


def _settings() -> Iterator[tuple[str, str]]:
    """Every YAML block with its method: the one whose presets the heading announces, else its own key ``method``."""
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for block in BLOCK.finditer(text):
            if block[1] == "yaml":
                *_, heading = re.findall(r"^#+ (.+)$", text[: block.start()], re.MULTILINE)
                named = re.fullmatch(r"Presets of (\w+)", heading)
                yield named[1] if named else yaml.safe_load(block[2]).get("method", "proxy_prompt"), block[2]


@pytest.mark.parametrize(("method", "text"), list(_settings()))
def test_yaml_is_configuration(method: str, text: str) -> None:
    assert config.from_dict(yaml.safe_load(text), method=method).method == method


def test_configuration_reference_is_up_to_date() -> None:
    """``make docs`` would change nothing."""
    path = ROOT / "docs/generate.py"
    spec = importlib.util.spec_from_file_location("generate", path)
    assert spec is not None
    assert spec.loader is not None
    generate = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(generate)
    assert generate.FILE.read_text(encoding="utf-8") == generate.render()


def test_decisions_cited_are_listed() -> None:
    listed = set(re.findall(r"^\| (D-\d\d) ", (ROOT / "docs/explanation/proxy-prompt.md").read_text(), re.MULTILINE))
    assert listed == {f"D-{i:02}" for i in range(1, 36)}
    cited = {d for p in (ROOT / "src").rglob("*.py") for d in re.findall(r"D-\d\d", p.read_text(encoding="utf-8"))}
    assert cited <= listed


def test_methods_backbones_and_conventions_are_documented() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert all(f"`{name}`" in readme for name in zoo.METHODS)
    licences = (ROOT / "docs/explanation/licences.md").read_text(encoding="utf-8")
    for entry in zoo.list_backbones():
        assert f"`{entry.name}`" in licences
    page = (ROOT / "docs/explanation/conventions.md").read_text(encoding="utf-8")
    assert all(f"| `{name}` |" in page for name in CONVENTIONS)


def test_keys_of_files_are_documented() -> None:
    page = (ROOT / "docs/reference/files.md").read_text(encoding="utf-8")
    fields = [f.name for cls in (Summary, SupportBank) for f in dataclasses.fields(cls)]
    for name in (*fields, *CSV_COLUMNS):
        assert f"`{name}`" in page, name


def test_arithmetic_of_the_published_tables_of_spd() -> None:
    """Differences and gains follow from the columns beside them; the one misprint has its correction beside it."""
    page = (ROOT / "docs/explanation/spd.md").read_text(encoding="utf-8")
    rows = [[cell.strip(" *") for cell in line.split("|")[1:-1]] for line in page.splitlines() if line.startswith("| ")]
    compared = [row for row in rows if row[0].endswith((", Dice", ", HD95"))]
    assert len(compared) == 7
    for _, ours, best, difference in compared:
        assert float(ours.rstrip("*")) - float(best.split()[0]) == pytest.approx(float(difference), abs=1e-9)
    ablation = [row for row in rows if len(row) == 4 and row[3].startswith("+") and row not in compared]
    steps = [float(b[1]) - float(a[1]) for a, b in zip([["", "62.50"], *ablation], ablation, strict=False)]
    assert [float(row[3]) for row in ablation] == pytest.approx(steps)
    gains = {row[0]: [float(v) for v in row[1:]] for row in rows if len(row) == 9 and row[1][0].isdigit()}
    assert list(gains) == ["TI", "Scar", "FUMPE", "KiTS"]
    for name, (*others, ours, printed, gain) in gains.items():
        assert ours - max(others) == pytest.approx(gain, abs=1e-9)
        assert (printed == gain) == (name != "Scar")
    assert gains["Scar"][6] == pytest.approx(gains["Scar"][5] - gains["Scar"][4])  # against nnU-Net, not UNet
    assert pytest.approx(8.168, abs=1e-3) == 1000 / 11.49 - 1000 / 12.68
    assert "8.2 ms or 10.4 %" in page


def test_nothing_points_at_a_machine() -> None:
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        assert not re.search(r"/work/|/home/|/Users/|shared/(data|methods)", text), _page(page)
