from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from qexport.digests import weights_sha256
from qexport.errors import UnsupportedModelError
from qexport.graphs import folder as folders


def test_manifest_lists_every_other_file_with_its_hash(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"graph")
    (tmp_path / "config.json").write_text("{}")
    folders.write_manifest(tmp_path, {"bits": "2-2-8"})
    folders.write_manifest(tmp_path, {"bits": "2-2-8"})
    manifest = folders.read_manifest(tmp_path)
    assert (manifest["format_version"], manifest["bits"]) == (folders.FORMAT_VERSION, "2-2-8")
    assert manifest["files"] == {
        "config.json": {"sha256": hashlib.sha256(b"{}").hexdigest(), "bytes": 2},
        "model.onnx": {"sha256": hashlib.sha256(b"graph").hexdigest(), "bytes": 5},
    }


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, "no qexport.json"),
        ("{", "not valid JSON"),
        ("[]", "must hold a JSON object"),
        ('{"format_version": 99}', "format_version"),
        ("{}", "format_version"),
    ],
)
def test_wrong_manifest_is_one_sentence(text: str | None, words: str, tmp_path: Path) -> None:
    if text is not None:
        (tmp_path / "qexport.json").write_text(text)
    with pytest.raises(UnsupportedModelError, match=words):
        folders.read_manifest(tmp_path)


def test_config_loses_what_only_pytorch_reads(tmp_path: Path) -> None:
    source, target = tmp_path / "in", tmp_path / "out"
    source.mkdir()
    target.mkdir()
    values = {"model_type": "bert", "quantization_config": {"quant_method": "qexport"}, "dtype": "float32"}
    (source / "config.json").write_text(json.dumps(values))
    folders.write_config(source, target)
    assert json.loads((target / "config.json").read_text()) == {"model_type": "bert"}


def test_tokenizer_files_are_copied_and_the_class_is_one_that_transformers_4_knows(tmp_path: Path) -> None:
    source, target = tmp_path / "in", tmp_path / "out"
    source.mkdir()
    target.mkdir()
    (source / "tokenizer.json").write_text("{}")
    (source / "vocab.txt").write_text("é")
    (source / "notes.txt").write_text("mine")
    (source / "tokenizer_config.json").write_text(
        '{"tokenizer_class": "TokenizersBackend", "do_lower_case": true}'
    )
    assert folders.copy_tokenizer(source, target) == ["tokenizer.json", "tokenizer_config.json", "vocab.txt"]
    assert sorted(path.name for path in target.iterdir()) == [
        "tokenizer.json",
        "tokenizer_config.json",
        "vocab.txt",
    ]
    assert json.loads((target / "tokenizer_config.json").read_text()) == {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "do_lower_case": True,
    }


def test_folder_without_tokenizer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModelError, match=r"no tokenizer\.json"):
        folders.copy_tokenizer(tmp_path, tmp_path)


def test_weights_hash_depends_on_names_and_bytes(tmp_path: Path) -> None:
    def of(name: str, data: bytes) -> str:
        folder = tmp_path / hashlib.sha256(name.encode() + data).hexdigest()
        folder.mkdir()
        (folder / name).write_bytes(data)
        return weights_sha256(folder)

    hashes = {of("model.safetensors", b"a"), of("model.safetensors", b"b"), of("other.safetensors", b"a")}
    assert len(hashes) == 3


@pytest.mark.parametrize(("activations", "static"), [("dynamic-token", False), ("static", True)])
def test_ort_config_has_optimums_fields(activations: str, static: bool, tmp_path: Path) -> None:
    quantization = {"activations": activations, "granularity": "row"}
    description = {"method": "ternarybert", "bits": "2-2-8", "quantization": quantization, "task": "sst2"}
    folders.write_ort_config(tmp_path, opset=18, description=description)
    values = json.loads((tmp_path / "ort_config.json").read_text())
    assert (values["opset"], values["optimization"], values["one_external_file"]) == (18, {}, True)
    assert (values["quantization"]["is_static"], values["quantization"]["per_channel"]) == (static, True)
    assert values["qexport"] == {"method": "ternarybert", "bits": "2-2-8", "quantization": quantization}
    folders.write_ort_config(tmp_path, opset=18, description={**description, "quantization": None})
    assert json.loads((tmp_path / "ort_config.json").read_text())["quantization"] == {}
