"""`qexport bundle`: an exported folder becomes what an app developer needs, on one platform.

A bundle is a folder: model/ (the ONNX file, the tokenizer, preprocessing.json), lib/ (the kernel library,
where there is one for the platform), a sample program around them, licences, README.md, SHA256SUMS. The files
of the sample are those of samples/ beside this module; templates (.j2) among them are filled in.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from qexport import __version__
from qexport.atomic import atomic_folder, check_output
from qexport.errors import UnsupportedModelError
from qexport.serving.bundle.config import BundleConfig
from qexport.serving.bundle.runtime_web import WEB_FILES, WEB_VERSION, find_web_runtime
from qexport.serving.bundle.targets import BundleTarget
from qexport.serving.kernels import library_path
from qexport.serving.kernels.crossbuild import build as build_kernels
from qexport.serving.kernels.crossbuild import find_target as find_kernels
from qexport.serving.kernels.crossbuild import host_target
from qexport.serving.native import has_operators
from qexport.serving.session import Session, read_json
from qexport.wordpiece import WordPiece, read_wordpiece

__all__ = ["ANDROID_RUNTIME", "IOS_RUNTIME", "SAMPLES", "BundleResult", "bundle", "fill"]

ANDROID_RUNTIME = "1.29.0"
"""Version of com.microsoft.onnxruntime:onnxruntime-android in the Gradle file."""

IOS_RUNTIME = "1.24.2"
"""Version of onnxruntime-swift-package-manager in Package.swift."""

SUMS = "SHA256SUMS"

SAMPLES = Path(str(resources.files("qexport.serving.bundle"))) / "samples"

TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.txt",
    "vocab.json", "merges.txt", "sentencepiece.bpe.model",
)  # fmt: skip
"""What a folder may hold of its tokenizer."""


@dataclass(frozen=True, slots=True)
class BundleResult:
    """What `bundle` wrote."""

    output: Path
    """The folder."""
    target: str
    """Name of the platform."""
    files: int
    """Files in it, SHA256SUMS left out."""
    n_bytes: int
    """Bytes of them."""
    library: str | None
    """Path of the kernel library inside the folder; None where there is none."""
    tokenizer: str
    """ "wordpiece", or "token ids" where the sample takes those."""
    notes: list[str]
    """What the README says about things that are left out."""

    def to_json(self) -> dict[str, Any]:
        """Machine-readable, for `--json`."""
        return {
            **{name: getattr(self, name) for name in self.__slots__ if name not in ("output", "n_bytes")},
            "output": str(self.output),
            "bytes": self.n_bytes,
        }

    def summary(self) -> str:
        """For people: one line, and one for each thing left out."""
        kernels = self.library or "no kernel library"
        line = f"{self.output}: {self.target}, {self.files} files, {self.n_bytes / 1e6:.1f} MB, {kernels}"
        return "\n".join([line, *self.notes, f"start with {self.output / 'README.md'}"])


def bundle(config: BundleConfig, *, report: Callable[[str], None] = lambda line: None) -> BundleResult:
    """Write a bundle. The output folder appears when everything succeeded, else it is as it was.

    Args:
        config: the folder, the platform, where to.
        report: called with one line per stage.
    Raises:
        OutputExistsError: the output exists and `force` is not set.
        UnsupportedModelError: not a folder of `to-onnx`, not a text classifier, or without a tokenizer.
        MissingPackageError, EnvironmentProblem: the kernel library cannot be built here.
        DiskFullError: no space for the output.
    """
    check_output(config.output, force=config.force)
    target = config.platform()
    session = Session(config.model)
    about, words = _about(session)
    notes = []
    if isinstance(words, str):
        notes.append(f"The sample takes token ids, because {words}.")
    with atomic_folder(config.output, force=config.force) as part:
        report(f"{session.path} and its tokenizer")
        _write_model(session, about, words, part / "model")
        library, note = _write_library(target, session.path, part, report)
        notes += [note] if note else []
        report(f"sample: {target.sample}")
        _write_sample(target, about, part)
        if target.sample == "web":
            notes += _write_web_runtime(config.onnxruntime_web, part)
        _write_licences(part)
        _write_readme(target, about, library, notes, part)
        files = _write_sums(part)
    n_bytes = sum(path.stat().st_size for path in config.output.rglob("*") if path.is_file())
    kind = "token ids" if isinstance(words, str) else "wordpiece"
    return BundleResult(config.output, target.name, files, n_bytes, library, kind, notes)


def _about(session: Session) -> tuple[dict[str, Any], WordPiece | str]:
    """preprocessing.json, and the tokenizer or why the sample has none.

    Raises:
        UnsupportedModelError: the model answers something else than one label or one number per text.
    """
    written = read_json(session.folder / "qexport.json")
    kind = session.kind.name
    if kind == "classification" and session.num_labels == 1:
        kind = "regression"
    if kind not in ("classification", "regression"):
        raise UnsupportedModelError(
            f"{session.folder} is a model for {kind}; a bundle's sample can show text classification and "
            "regression only"
        )
    words = read_wordpiece(session.folder, session.max_length)
    about = {
        "format_version": 1,
        "qexport": __version__,
        "kind": kind,
        "labels": list(session.labels) if kind == "classification" else ["score"],
        "inputs": list(session.inputs),
        "output": "logits",
        "max_length": session.max_length,
        "tokenizer": None if isinstance(words, str) else {"type": "wordpiece", **words.to_json()},
        "method": written.get("method"),
        "bits": written.get("bits"),
        "task": written.get("task"),
    }
    return about, words


def _write_model(session: Session, about: dict[str, Any], words: WordPiece | str, folder: Path) -> None:
    folder.mkdir()
    shutil.copyfile(session.path, folder / "model.onnx")
    for name in TOKENIZER_FILES:
        if (session.folder / name).is_file():
            shutil.copyfile(session.folder / name, folder / name)
    if not isinstance(words, str):
        _write(folder / "vocab.txt", "".join(f"{token}\n" for token in words.vocabulary))
        shutil.copyfile(SAMPLES / "unicode.txt", folder / "unicode.txt")
    _write(folder / "preprocessing.json", json.dumps(about, indent=2, ensure_ascii=False) + "\n")


def _write_library(
    target: BundleTarget, model: Path, part: Path, report: Callable[[str], None]
) -> tuple[str | None, str]:
    """Put the kernel library in place; its path in the bundle, or why there is none."""
    if target.kernels is None:
        return None, f"{target.no_kernels} The model runs on ONNX Runtime's own kernels."
    if not has_operators(model):
        return None, "No kernel library is included, because the model has no operator of ai.qexport."
    kernels = find_kernels(target.kernels)
    folder = part / target.library_folder
    installed = library_path()
    if kernels == host_target() and installed is not None:
        folder.mkdir(parents=True)
        shutil.copyfile(installed, folder / kernels.file)
    else:
        build_kernels(kernels, folder, report=report)
    return f"{target.library_folder}/{kernels.file}", ""


def _write_sample(target: BundleTarget, about: dict[str, Any], part: Path) -> None:
    """Copy the sample program and fill in its templates."""
    source = SAMPLES / target.sample
    shutil.copytree(source, part, dirs_exist_ok=True, ignore=shutil.ignore_patterns("*.j2"))
    for template in sorted(source.rglob("*.j2")):
        place = part / template.relative_to(source).with_suffix("")
        _write(place, fill(template, **about, android_runtime=ANDROID_RUNTIME, ios_runtime=IOS_RUNTIME))
    if target.sample == "c" and about["tokenizer"] is None:
        for name in ("wordpiece.c", "wordpiece.h"):
            (part / name).unlink()


def _write_web_runtime(asked: Path | None, part: Path) -> list[str]:
    """Include onnxruntime-web where there is a copy, else leave the lock file that pins it; one note."""
    found = find_web_runtime(asked)
    if found is None:
        return [
            f"onnxruntime-web {WEB_VERSION} is pinned, not included; fetch it once: npm ci && npm run ort"
        ]
    folder, version = found
    (part / "ort").mkdir()
    for name in WEB_FILES:
        shutil.copyfile(folder / name, part / "ort" / name)
    for name in ("package.json", "package-lock.json"):
        (part / name).unlink()
    return [f"The folder ort/ holds onnxruntime-web {version}."]


def _write_licences(part: Path) -> None:
    """Ours, and onnxruntime's where files of it are included."""
    folder = part / "LICENSES"
    folder.mkdir()
    shutil.copyfile(SAMPLES / "licences" / "Apache-2.0.txt", folder / "qexport.txt")
    if (part / "ort").is_dir():
        shutil.copyfile(SAMPLES / "licences" / "onnxruntime-MIT.txt", folder / "onnxruntime-web.txt")


def _write_readme(
    target: BundleTarget, about: dict[str, Any], library: str | None, notes: list[str], part: Path
) -> None:
    text = fill(
        SAMPLES / "README.md.j2", target=target, about=about, library=library, notes=notes,
        version=__version__, android_runtime=ANDROID_RUNTIME, ios_runtime=IOS_RUNTIME,
        sums=SUMS,
    )  # fmt: skip
    _write(part / "README.md", text)


def _write_sums(part: Path) -> int:
    """SHA256SUMS, as `sha256sum -c` reads it; how many files it lists."""
    lines = []
    for path in sorted(part.rglob("*")):
        if path.is_file():
            digest = hashlib.sha256(path.read_bytes()).hexdigest()
            lines.append(f"{digest}  {path.relative_to(part).as_posix()}\n")
    _write(part / SUMS, "".join(lines))
    return len(lines)


def fill(template: Path, **values: Any) -> str:
    """A template with its values; the filter `c` makes a C literal."""
    import jinja2

    environment = jinja2.Environment(
        undefined=jinja2.StrictUndefined, keep_trailing_newline=True, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["c"] = _c_string
    return environment.from_string(template.read_text(encoding="utf-8")).render(**values)


def _c_string(text: str) -> str:
    """A C literal of the UTF-8 bytes; all but plain characters are octal, which ends after three digits."""
    plain = (
        chr(byte) if 32 <= byte < 127 and byte not in b'"\\?' else f"\\{byte:03o}" for byte in text.encode()
    )
    return f'"{"".join(plain)}"'


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8", newline="\n")
