"""Writing files and folders so that a killed process leaves the old one or nothing."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from qexport.errors import DiskFullError, OutputExistsError, UsageError

__all__ = ["atomic_folder", "atomic_write_bytes", "atomic_write_text", "check_output", "disk_errors"]


@contextlib.contextmanager
def disk_errors(target: Path) -> Iterator[None]:
    """Turn a full disk or a forbidden path under `target` into a sentence.

    Raises:
        DiskFullError: the device, or the user's quota, has no space left.
        UsageError: the path may not be written.
    """
    try:
        yield
    except Exception as error:
        if _is_full(error, target):
            raise DiskFullError(
                f"no space left while writing {target}; free some space or choose another --output, "
                "nothing that existed there was changed"
            ) from error
        if isinstance(error, OSError) and error.errno in _FORBIDDEN:
            raise UsageError(f"cannot write {target}: {error.strerror}; choose another --output") from error
        raise


_FULL = (errno.ENOSPC, errno.EDQUOT)
_FORBIDDEN = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR)
_WRITERS = ("iostream error", "inline_container", "PytorchStreamWriter")


def _is_full(error: BaseException | None, target: Path) -> bool:
    """Whether `error`, or one it came from, says that the disk is full.

    The writers of torch and safetensors do not pass the system's error number on: theirs are told by their
    text, and torch's, which does not name the cause, by the space that is left.
    """
    while error is not None:
        if isinstance(error, OSError) and error.errno in _FULL:
            return True
        text = str(error)
        if "os error 28" in text or (any(name in text for name in _WRITERS) and _free_bytes(target) < 2**20):
            return True
        error = error.__cause__ or error.__context__
    return False


def _free_bytes(target: Path) -> int:
    while not target.exists() and target != target.parent:
        target = target.parent
    return shutil.disk_usage(target).free


def check_output(output: Path, *, force: bool) -> None:
    """Refuse an output that exists, before any work starts.

    Raises:
        OutputExistsError: `output` is a file or a non-empty folder, and `force` is false.
    """
    if force or not output.exists() or (output.is_dir() and not any(output.iterdir())):
        return
    raise OutputExistsError(f"{output} exists; pass --force to replace it or choose another --output")


@contextlib.contextmanager
def atomic_folder(output: Path, *, force: bool = False) -> Iterator[Path]:
    """Yield a temporary sibling folder that takes the place of `output` when the block succeeds.

    On any exception, Ctrl-C included, the temporary folder is removed and `output` is as it was.

    Args:
        output: the folder to make.
        force: replace an existing folder.
    Raises:
        OutputExistsError: see `check_output`.
        DiskFullError: the disk filled up while the block wrote.
    """
    check_output(output, force=force)
    with disk_errors(output):
        output.parent.mkdir(parents=True, exist_ok=True)
        part = Path(tempfile.mkdtemp(prefix=f".{output.name}.", suffix=".part", dir=output.parent))
        try:
            part.chmod(0o755)
            yield part
            if output.exists():
                old = part.with_name(part.name + ".old")
                output.rename(old)
                try:
                    part.rename(output)
                except BaseException:
                    old.rename(output)
                    raise
                shutil.rmtree(old) if old.is_dir() else old.unlink()
            else:
                part.rename(output)
        finally:
            shutil.rmtree(part, ignore_errors=True)


def atomic_write_bytes(path: Path, data: bytes) -> None:
    """Write `data` to `path` through a temporary file in the same folder.

    Raises:
        DiskFullError: no space left; an old file at `path` is untouched.
    """
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.chmod(name, 0o644)
            os.replace(name, path)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(name)
            raise


def atomic_write_text(path: Path, text: str) -> None:
    """Write `text` as UTF-8; see `atomic_write_bytes`."""
    atomic_write_bytes(path, text.encode("utf-8"))
