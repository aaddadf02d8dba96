"""No child outlives us: what a process has running when it is killed by SIGKILL."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from required import missing

PROGRAMS = {
    # deaf to the end of its input, as a program in the middle of a long computation is
    "channel": "from qexport.serving.runner.channel import ProcessChannel\n"
    "folder = tempfile.mkdtemp()\n"
    "held = ProcessChannel(['sh', '-c', 'sleep 60; true'], folders=[folder])\n",
    "node": "from pathlib import Path\nfrom qexport.serving.targets.node import NodePlace\n"
    "held, folder = NodePlace('node', Path('/nowhere')), '/nowhere'\n",
    "chromium": "from qexport.serving.targets.chromium import Chromium, find_chromium\n"
    "held = Chromium(find_chromium())\nfolder = held._profile.name\n",
}


def alive(group: int) -> list[str]:
    """Names of the processes of a group, those that ended left out."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            name, _, rest = path.read_text().partition("(")[2].rpartition(")")
        except OSError:
            continue
        state, _, its_group = rest.split()[:3]
        if int(its_group) == group and state not in "ZX":
            found.append(name)
    return found


@pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc")
@pytest.mark.parametrize("kind", PROGRAMS)
def test_no_child_is_left_when_we_are_killed(kind: str) -> None:
    tools = {"node": ["node"], "chromium": ["chromium", "chromium-browser", "google-chrome"]}.get(kind)
    if tools and not any(map(shutil.which, tools)):
        missing(f"no {kind}; apt-get install {'nodejs' if kind == 'node' else 'chromium'}")
    say = "print(held._process.pid, folder, flush=True)\ntime.sleep(60)\n"
    code = f"import tempfile, time\n{PROGRAMS[kind]}{say}"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        group, folder = process.stdout.readline().split()
        assert alive(int(group))
        process.send_signal(signal.SIGKILL)
    end = time.monotonic() + 10
    while (alive(int(group)) or os.path.exists(folder)) and time.monotonic() < end:
        time.sleep(0.05)
    assert alive(int(group)) == [] and not os.path.exists(folder)
