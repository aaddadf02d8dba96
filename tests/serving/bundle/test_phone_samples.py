"""The samples that need an SDK: their grammar, and that names, paths and versions fit together."""

from __future__ import annotations

import importlib
import re
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
from required import missing

from qexport.serving.bundle.contents import ANDROID_RUNTIME, IOS_RUNTIME, SAMPLES, fill
from qexport.serving.bundle.targets import TARGETS

ANDROID, IOS = SAMPLES / "android", SAMPLES / "ios"
MAIN = ANDROID / "app" / "src" / "main"
STAND_IN = Path(__file__).parents[2] / "support" / "swift"


def filled(path: Path) -> str:
    return fill(path, android_runtime=ANDROID_RUNTIME, ios_runtime=IOS_RUNTIME)


@pytest.mark.parametrize(
    ("language", "folder", "pattern"),
    [("kotlin", ANDROID, r"\.kts?(\.j2)?$"), ("swift", IOS, r"\.swift(\.j2)?$")],
)
def test_every_file_follows_the_grammar(language: str, folder: Path, pattern: str) -> None:
    try:
        tree_sitter = importlib.import_module("tree_sitter")
        grammar = importlib.import_module(f"tree_sitter_{language}")
    except ImportError:
        missing(f"the grammars are missing: pip install tree-sitter tree-sitter-{language}")
    parser = tree_sitter.Parser(tree_sitter.Language(grammar.language()))
    files = [path for path in folder.rglob("*") if re.search(pattern, path.name)]
    assert len(files) > 3
    for path in files:
        tree = parser.parse(filled(path).encode())
        assert not tree.root_node.has_error, path
    assert parser.parse(filled(files[0]).encode() + b" }").root_node.has_error


def test_android_names_paths_and_versions_fit_together() -> None:
    gradle = filled(ANDROID / "app" / "build.gradle.kts.j2")
    assert f'"com.microsoft.onnxruntime:onnxruntime-android:{ANDROID_RUNTIME}"' in gradle
    (namespace,) = re.findall(r'namespace = "(.*)"', gradle)
    (sources,) = re.findall(r'kotlin\.srcDirs\("src/main/(.*)"\)', gradle)
    package = MAIN / sources / Path(*namespace.split("."))
    for path in package.glob("*.kt"):
        assert f"\npackage {namespace}\n" in path.read_text(encoding="utf-8")
    name = "{http://schemas.android.com/apk/res/android}name"
    (activity,) = ElementTree.parse(MAIN / "AndroidManifest.xml").getroot().iter("activity")
    assert (package / f"{activity.attrib[name].lstrip('.')}.kt").is_file()
    folder, processor = TARGETS["android"].library_folder.split("/")
    assert f'jniLibs.srcDirs("../{folder}")' in gradle and 'assets.srcDirs("../model")' in gradle
    classifier = (package / "Classifier.kt").read_text(encoding="utf-8")
    assert f'"{processor}"' in classifier
    assert '"libqexport_kernels.so"' in classifier and '"qexport_kernels"' in classifier
    assert 'include(":app")' in (ANDROID / "settings.gradle.kts").read_text(encoding="utf-8")
    for word in re.findall(r'(?:bytes|text)\("(.*?)"\)', classifier):
        assert word in {"model.onnx", "vocab.txt", "unicode.txt", "preprocessing.json"}


def test_swift_package_names_its_own_folders_and_the_pinned_runtime() -> None:
    package = filled(IOS / "Package.swift.j2")
    assert f'exact: "{IOS_RUNTIME}"' in package
    for name in re.findall(r'"(Sources/[A-Za-z]+)"', package):
        assert (IOS / name).is_dir()
    (identity,) = re.findall(r'url: "https://github.com/microsoft/(.*?)"', package)
    assert f'package: "{identity}"' in package and 'resources: [.copy("model")]' in package
    # On a Mac SwiftPM refuses a package for older systems than its dependency wants; on Linux it is silent.
    stand_in = (STAND_IN / "Package.swift").read_text(encoding="utf-8")
    for asked in (r"swift-tools-version: ?(\S+)", r"platforms: \[(.*)\]"):
        assert re.findall(asked, package) == re.findall(asked, stand_in)


@pytest.mark.slow
@pytest.mark.parametrize("triple", ["aarch64-linux-gnu", "aarch64-macos", "x86_64-windows-gnu"])
def test_c_sample_compiles_for_the_other_systems(triple: str, tmp_path: Path) -> None:
    try:
        import ziglang
    except ImportError:
        missing('compiling for other systems needs ziglang: pip install "qexport[bundle]"')
    for path in (SAMPLES / "c").glob("*.[ch]"):
        shutil.copy(path, tmp_path)
    header = fill(
        SAMPLES / "c" / "model.h.j2", tokenizer=None, max_length=8, labels=["no", "yes"],
        inputs=["input_ids"], kind="classification",
    )  # fmt: skip
    (tmp_path / "model.h").write_text(header, encoding="utf-8")
    zig = Path(str(ziglang.__file__)).with_name("zig.exe" if sys.platform == "win32" else "zig")
    last = ["-municode"] if "windows" in triple else []
    command = [str(zig), "cc", "-target", triple, "-std=c11", "-Wall", "-Wextra", "-Werror", "main.c",
               "wordpiece.c", *last, "-o", "classify"]  # fmt: skip
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
