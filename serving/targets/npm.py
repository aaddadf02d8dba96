"""The npm packages of the targets `node` and `web`: one lock file in this package, one folder in the cache.

package-lock.json pins every package by version and by sha512, which `npm ci` checks. Install scripts stay
off: onnxruntime-node ships its CPU library inside the package, the scripts would only fetch GPU ones.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
from importlib import resources
from pathlib import Path

from qexport.atomic import atomic_folder
from qexport.cache import cache_folder
from qexport.errors import EnvironmentProblem, MissingToolError
from qexport.serving.targets.protocol import Say

__all__ = ["SCRIPTS", "find_node", "install", "modules_folder", "package_versions"]

SCRIPTS = Path(str(resources.files("qexport.serving.targets"))) / "js"
"""Folder with the lock file and the scripts that the targets run."""

OLDEST_NODE = 18
"""The oldest Node that the scripts run on."""

_NPM_SECONDS = 900


def find_node() -> str:
    """Path of Node.

    Raises:
        MissingToolError: there is none, or it is too old.
    """
    found = os.environ.get("QEXPORT_NODE") or shutil.which("node")
    if not found or not shutil.which(found):
        raise MissingToolError(
            f"Node {OLDEST_NODE} or newer is needed and was not found on the PATH or as QEXPORT_NODE",
            "apt-get install nodejs npm",
        )
    try:
        text = subprocess.run([found, "--version"], capture_output=True, text=True, timeout=30).stdout.strip()
    except (OSError, subprocess.TimeoutExpired) as error:
        raise EnvironmentProblem(f"{found} cannot be run ({error}); install Node again") from error
    major = text.lstrip("v").partition(".")[0]
    if not major.isdigit() or int(major) < OLDEST_NODE:
        raise EnvironmentProblem(f"{found} is Node {text or 'unknown'}; {OLDEST_NODE} or newer is needed")
    return found


def _folder() -> Path:
    lock = (SCRIPTS / "package-lock.json").read_bytes()
    return cache_folder() / "targets" / f"npm-{hashlib.sha256(lock).hexdigest()[:16]}"


def modules_folder(target: str) -> Path:
    """The installed node_modules.

    Raises:
        MissingToolError: `qexport target prepare` was not run for this version of the lock file.
    """
    folder = _folder() / "node_modules"
    if not folder.is_dir():
        raise MissingToolError(
            "the npm packages of onnxruntime-web and onnxruntime-node are not in the cache",
            f"qexport target prepare {target}",
        )
    return folder


def package_versions(modules: Path) -> dict[str, str]:
    """Version of each ONNX Runtime package that is installed there."""
    found = {}
    for name in ("onnxruntime-web", "onnxruntime-node"):
        text = (modules / name / "package.json").read_text(encoding="utf-8")
        found[name] = str(json.loads(text)["version"])
    return found


def install(say: Say) -> Path:
    """Install what the lock file names, unless it is there; the folder appears whole or not at all.

    Returns:
        node_modules.
    Raises:
        MissingToolError: npm is missing.
        EnvironmentProblem: npm failed: no package index, a checksum that does not fit.
        DiskFullError: no space in the cache.
    """
    folder = _folder()
    if (folder / "node_modules").is_dir():
        say(f"npm packages are in {folder}")
        return folder / "node_modules"
    find_node()
    npm = shutil.which("npm")
    if npm is None:
        raise MissingToolError("npm is needed once, and is not on the PATH", "apt-get install npm")
    say("installing onnxruntime-web and onnxruntime-node with npm, about 450 MB on disk")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with atomic_folder(folder) as part:
        for name in ("package.json", "package-lock.json"):
            shutil.copy(SCRIPTS / name, part / name)
        command = [npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error"]
        try:
            done = subprocess.run(command, cwd=part, capture_output=True, text=True, timeout=_NPM_SECONDS)
        except subprocess.TimeoutExpired as error:
            raise EnvironmentProblem(
                f"npm did not finish in {_NPM_SECONDS} s; check the connection to the package index"
            ) from error
        if done.returncode != 0:
            words = " ".join((done.stderr or done.stdout).split())[-300:]
            raise EnvironmentProblem(f"npm ci failed ({words}); check the connection to the package index")
    return folder / "node_modules"
