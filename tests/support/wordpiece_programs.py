"""The samples' WordPiece in each language as a program, and texts to try it on."""

from __future__ import annotations

import json
import random
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from tokenizers import Tokenizer

from qexport.serving.bundle.contents import SAMPLES, fill
from qexport.wordpiece import WordPiece

HERE = Path(__file__).parent / "wordpiece"
ANDROID = SAMPLES / "android" / "app" / "src" / "main" / "kotlin" / "ai" / "qexport" / "sample"
SWIFT = SAMPLES / "ios" / "Sources" / "TextClassifier"

Row = tuple[str, str | None]
"""A text and, for a pair, the second one."""

Ids = tuple[list[int], list[int]]
"""Token ids and type ids."""

POOLS = (
    "abc ABC éÉ ñ", "中文字漢字", "مرحبا שלום", "👩‍👩‍👧‍👦🏽", "\u0301\u0345\u0334\u05b0\U0001d165\U0001d16d",
    "\t\n\r\x0b\x0c\x85\u200b\u00ad\ufeff\u2028", "İıßΣςſ", "각힣ᄀ", "!?.,-_'\"$+<=>^`|~",
    "१२३ क्षि", " \u3000",
    ("[SEP]", "[CLS]", "[MASK]", " [PAD]", "[UNK]", "[sep]"), "\ufffd\ue000\u202e",
)  # fmt: skip


def nasty_texts(count: int, seed: int = 0) -> list[Row]:
    """Texts and pairs of combining marks, emoji, right-to-left, control characters, long words, all mixed."""
    source = random.Random(seed)

    def code() -> str:
        low, high = source.choice([(1, 0x300), (0x300, 0x3000), (1, 0xD800), (0xE000, 0x110000)])
        return chr(source.randrange(low, high))

    def text() -> str:
        length, kind = source.choice([0, 1, 3, 10, 40]), source.random()
        if kind < 0.3:
            return "".join(code() for _ in range(length))
        if kind < 0.5:
            return "".join("".join(source.choice(POOLS)) for _ in range(length // 4))
        return "".join(source.choice(source.choice(POOLS)) for _ in range(3 * length))

    edges: list[Row] = [("", None), ("", ""), ("a" * 100, None), ("a" * 101, None), ("é" * 101, "x" * 500)]
    return [*edges, *((text(), text() if source.random() < 0.4 else None) for _ in range(count - len(edges)))]


def expected(folder: Path, max_length: int, rows: Sequence[Row]) -> list[Ids]:
    """What Hugging Face's tokenizers gives, cut longest first as transformers does."""
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(max_length, strategy="longest_first")
    encoded = tokenizer.encode_batch([text if pair is None else (text, pair) for text, pair in rows])
    return [(row.ids, row.type_ids) for row in encoded]


def write_files(words: WordPiece, work: Path) -> None:
    """settings.json, model.h, flags and vocab.txt, which the programs read."""
    settings = words.to_json()
    (work / "settings.json").write_text(json.dumps(settings), encoding="utf-8")
    values = {
        "max_length": words.max_length,
        "labels": ["a"],
        "kind": "classification",
        "inputs": ["input_ids"],
    }
    header = fill(SAMPLES / "c" / "model.h.j2", tokenizer=settings, **values)
    (work / "model.h").write_text(header, encoding="utf-8")
    names = ("lowercase", "strip_accents", "clean_text", "chinese_chars", "cls", "sep", "unk", "max_length",
             "max_chars")  # fmt: skip
    flags = " ".join(str(int(settings[name])) for name in names)
    special = "".join(f"{name}\t{number}\n" for name, number in words.special_tokens.items())
    (work / "flags").write_text(f"{flags}\n{special}", encoding="utf-8")
    vocabulary = "".join(f"{token}\n" for token in words.vocabulary)
    (work / "vocab.txt").write_text(vocabulary, encoding="utf-8", newline="\n")


def run_javascript(node: str, work: Path, rows: Sequence[Row]) -> list[Ids]:
    """wordpiece.js in Node."""
    files = [SAMPLES / "web" / "wordpiece.js", work / "settings.json", work / "vocab.txt"]
    command = [node, str(HERE / "run.mjs"), *map(str, files), str(SAMPLES / "unicode.txt")]
    done = subprocess.run(command, input=json.dumps(rows).encode(), capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()
    return [(ids, types) for ids, types in json.loads(done.stdout)]


def compile_c(compiler: str, work: Path, *flags: str) -> Path:
    """wordpiece.c with a main of its own."""
    program = work / "run"
    sources = [str(HERE / "run.c"), str(SAMPLES / "c" / "wordpiece.c")]
    warnings = [
        "-std=c11",
        "-Wall",
        "-Wextra",
        "-Werror",
        "-Wno-unused-variable",
        "-Wno-unused-const-variable",
    ]
    command = [compiler, *warnings, *flags, f"-I{SAMPLES / 'c'}", f'-DSETTINGS="{work / "model.h"}"',
               *sources, "-o", str(program)]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return program


def run_records(command: Sequence[str], rows: Sequence[Row]) -> list[Ids]:
    """A program that reads records (run.c, Run.kt, Run.swift)."""
    records = (f"{int(pair is not None)} {text}\0{pair or ''}\0".encode() for text, pair in rows)
    done = subprocess.run(command, input=b"".join(records), capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()[-1000:]
    parts = (line.split("|") for line in done.stdout.decode().splitlines())
    return [
        ([int(word) for word in ids.split()], [int(word) for word in types.split()]) for ids, types in parts
    ]


def compile_kotlin(compiler: str, work: Path) -> Path:
    """Every Kotlin file of the Android sample, against stand-ins for Android's and ONNX Runtime's classes."""
    jar = work / "sample.jar"
    files = [*ANDROID.glob("*.kt"), *(HERE.parent / "android").glob("*.kt"), HERE / "Run.kt"]
    command = [compiler, *map(str, sorted(files)), "-nowarn", "-include-runtime", "-d", str(jar)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return jar


def kotlin_command(jar: Path, work: Path) -> list[str]:
    """Run.kt, compiled."""
    java = shutil.which("java") or "java"
    return [java, "-cp", str(jar), "RunKt", str(work / "flags"), str(work / "vocab.txt"),
            str(SAMPLES / "unicode.txt")]  # fmt: skip


def compile_swift(compiler: str, work: Path) -> Path:
    """WordPiece.swift with a main of its own: checked in the language mode of Swift 6, built in that of 5."""
    program = work / "run-swift"
    files = [SWIFT / "WordPiece.swift", HERE / "Run.swift"]
    checks = [compiler, "-warnings-as-errors", "-parse-as-library", *map(str, files)]
    for more in (("-swift-version", "6", "-typecheck"), ("-swift-version", "5", "-O", "-o", str(program))):
        done = subprocess.run([*checks, *more], cwd=work, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    return program


def swift_command(program: Path, work: Path) -> list[str]:
    """Run.swift, compiled."""
    return [str(program), str(work / "settings.json"), str(work / "vocab.txt"), str(SAMPLES / "unicode.txt")]


def glue_texts(data_dir: Path) -> dict[str, list[Row]]:
    """Texts of the evaluation splits of GLUE, by task and split."""
    from qexport.training.data import load_task_data
    from qexport.training.tasks import TASKS

    found: dict[str, list[Row]] = {}
    for name, task in TASKS.items():
        if getattr(task, "glue_folder", None):
            data = load_task_data(name, data_dir=data_dir, need_train=False)
            for split, rows in data.evals.items():
                pairs = rows.pairs if rows.pairs is not None else [None] * len(rows.texts)
                found[f"{name} {split}"] = list(zip(rows.texts, pairs, strict=True))
    return found
