"""What a process says before it ends."""

from __future__ import annotations

import subprocess
import sys

from qexport.serving.complaints import Complaints


def test_complaints_of_a_process_are_read_whole_and_the_file_is_closed() -> None:
    complaints = Complaints()
    code = "import sys; sys.stderr.buffer.write(b'first\\nno UTF-8: \\xff\\n')"
    subprocess.run([sys.executable, "-c", code], stderr=complaints.file, check=True)
    assert complaints.text() == "first\nno UTF-8: \ufffd\n" == complaints.text()
    complaints.close()
    assert complaints.file.closed
