"""First visit of a page in Chromium: download of onnxruntime-web and of the model, session, first answer.

    qexport target prepare web
    python benchmarks/web_cold_start.py ternary=onnx/model.onnx fp32=fp32/model.onnx --rounds 3

Each visit is a browser of its own with an empty profile and no cache. The connection is throttled by Chromium
(Network.emulateNetworkConditions); the default is what Chromium's own tools call "Fast 4G": 8.1 Mbit/s down,
1.35 Mbit/s up, 165 ms to the first byte. Programs are sent with gzip, models as they are.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
from pathlib import Path

from qexport.serving.machine import environment
from qexport.serving.targets import npm
from qexport.serving.targets.chromium import Chromium, find_chromium
from qexport.serving.targets.loopback import Loopback

PARTS = ("model", "wasm", "session", "answer")


def visit(server: Loopback, model: str, *, tokens: int, mbit: float, latency_ms: float) -> dict[str, float]:
    """Milliseconds since the page was asked for, by part: see js/cold.mjs."""
    with contextlib.closing(Chromium(find_chromium())) as browser:
        browser.page("Network.setCacheDisabled", cacheDisabled=True)
        browser.page(
            "Network.emulateNetworkConditions", offline=False, latency=latency_ms,
            downloadThroughput=mbit * 1e6 / 8, uploadThroughput=1.35e6 / 8,
        )  # fmt: skip
        browser.open(f"{server.url}cold.html?model={model}&tokens={tokens}")
        browser.wait_for("globalThis.coldStart")
        marks = browser.evaluate("coldStart", timeout=550)["marks"]
        return {name: float(value) for name, value in marks.items()}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("models", nargs="+", help="NAME=FILE.onnx")
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3, help="visits of each model, in turns")
    parser.add_argument("--mbit", type=float, default=8.1, help="megabits a second down")
    parser.add_argument("--latency", type=float, default=165.0, help="milliseconds to the first byte")
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    dist = npm.modules_folder("web") / "onnxruntime-web" / "dist"
    visits: dict[str, list[dict[str, float]]] = {}
    sizes = {}
    with contextlib.closing(Loopback({"": npm.SCRIPTS, "dist": dist}, compress=True)) as server:
        for _ in range(asked.rounds):
            for item in asked.models:
                name, _, file = item.partition("=")
                sizes[name] = Path(file).stat().st_size
                path = server.add(Path(file))
                found = visit(server, path, tokens=asked.tokens, mbit=asked.mbit, latency_ms=asked.latency)
                visits.setdefault(name, []).append(found)
        program = sum(size for file, size in server.sent.items() if file.endswith((".mjs", ".wasm", ".html")))
    medians = {
        name: {part: statistics.median(one[part] for one in taken) for part in PARTS}
        for name, taken in visits.items()
    }
    if asked.json:
        print(
            json.dumps({"medians": medians, "visits": visits, "bytes": sizes, "program": program}, indent=1)
        )
        return
    where = environment()
    print(f"{where.cpu}, load {where.load_average}; onnxruntime-web and page: {program / 1e6:.2f} MB sent")
    print(
        "| model | file MB | downloaded s | session s | first answer s |\n| --- | ---: | ---: | ---: | ---: |"
    )
    for name, times in medians.items():
        loaded = max(times["model"], times["wasm"])
        print(
            f"| {name} | {sizes[name] / 1e6:.1f} | {loaded / 1e3:.1f} "
            f"| {(times['session'] - loaded) / 1e3:.1f} | {times['answer'] / 1e3:.1f} |"
        )


if __name__ == "__main__":
    main()
