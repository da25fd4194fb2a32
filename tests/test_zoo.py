"""The registry: complete, consistent, local-first, free of torch."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import huggingface_hub
import pytest

from samsans import zoo
from samsans.errors import InputError


def test_imports_no_torch():
    code = "import sys, samsans.zoo as z; z.where('sam-vit-b'); print(*({'torch', 'transformers'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == ""


@pytest.mark.parametrize("entry", zoo.list_backbones(), ids=lambda entry: entry.name)
def test_backbones_are_complete(entry):
    arch = entry.architecture
    assert zoo.backbone_entry(entry.name) is entry
    assert arch.hidden % arch.heads == 0
    assert arch.channels % (arch.decoder_downsample * arch.decoder_heads) == 0
    assert arch.input_size % arch.patch == 0
    assert max(arch.global_blocks) < arch.depth
    assert entry.licence
    assert entry.from_scratch == (not entry.url and not entry.embedded)
    for line in ("backbone", "weights", "licence", "encoder"):
        assert any(row.startswith(line) for row in zoo.show(entry.name).splitlines())


def test_original_files_are_named_by_their_digest():
    digests = {entry.name: entry.md5_prefix for entry in zoo.list_backbones() if entry.md5_prefix}
    assert digests == {"sam-vit-b": "01ec64", "sam-vit-l": "0b3195", "sam-vit-h": "4b8939"}


@pytest.mark.parametrize("entry", zoo.list_methods(), ids=lambda entry: entry.name)
def test_methods_are_complete(entry):
    assert zoo.method_entry(entry.name) is entry
    assert entry.config.count(":") == 1
    assert entry.arxiv in zoo.show(entry.name)


def test_unknown_names_are_helped():
    with pytest.raises(InputError, match=r"'sam-vit-x'.*sam-vit-b.*Try 'sam-vit-"):
        zoo.backbone_entry("sam-vit-x")
    with pytest.raises(InputError, match="No method"):
        zoo.method_entry("nothing like it")
    with pytest.raises(InputError, match="No backbone or method"):
        zoo.show("nothing like it")


def test_where_looks_here_then_in_the_cache(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda repo, file: None)
    assert zoo.where("sam-vit-b") is None
    assert zoo.where("tiny") is None
    assert zoo.where("no/where") is None
    assert zoo.where("./no/where") is None
    cached = {("facebook/sam-vit-base", "model.safetensors"): "/cache/model.safetensors"}
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda repo, file: cached.get((repo, file)))
    assert zoo.where("sam-vit-b") == zoo.where("facebook/sam-vit-base") == Path("/cache/model.safetensors")
    (tmp_path / "sam_vit_b_01ec64.pth").touch()
    assert zoo.where("sam-vit-b") == Path("sam_vit_b_01ec64.pth")
    assert zoo.where(str(tmp_path)) == tmp_path
    assert "sam_vit_b_01ec64.pth" in zoo.show("sam-vit-b")
