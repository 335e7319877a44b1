"""Files that are there whole or not at all, and locks that end with their process."""

from __future__ import annotations

import os
import socket
from contextlib import suppress
from pathlib import Path
from typing import IO

import pyarrow as pa

from pope_fast.errors import PopeError

__all__ = ["is_locked", "lock_file", "locked_folder", "write_synced"]


def write_synced(path: Path, data: bytes | pa.Buffer) -> None:
    """Write a file, all of it or nothing: to a temporary name, synced, renamed, the folder synced."""
    hidden = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with hidden.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(hidden, path)
    except OSError as error:
        with suppress(OSError):
            hidden.unlink(missing_ok=True)
        raise PopeError(f"cannot write {path}: {error.strerror or error}") from error
    with suppress(OSError):  # Folders cannot be opened on Windows.
        handle = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def locked_folder(folder: Path, name: str, output: Path) -> IO[str]:
    """Make a folder and lock a file in it."""
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / name
        try:
            file = lock_file(path)
        except FileNotFoundError:
            continue  # The run before this one has just removed its folder.
        if file is None:
            holder = path.read_text(encoding="utf-8").strip() or "another process"
            raise PopeError(f"another run ({holder}) writes {output}. Remedy: wait for it, or stop it.")
        try:
            if os.fstat(file.fileno()).st_ino == path.stat().st_ino:
                return file
        except FileNotFoundError:
            pass
        file.close()


def lock_file(path: Path) -> IO[str] | None:
    """Open and lock a file until it is closed or the process ends; None if another process has it."""
    file = path.open("a+", encoding="utf-8")
    if not _try_lock(file):
        file.close()
        return None
    file.seek(0)
    file.truncate()
    file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
    file.flush()
    return file


def _try_lock(file: IO[str]) -> bool:
    """Lock an open file without waiting; False if another has it."""
    try:
        import fcntl
    except ImportError:  # Windows
        import msvcrt

        file.seek(1 << 20)  # Beyond what is read: locks there are mandatory.
        try:
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined, unused-ignore]
        except OSError:
            return False
        return True
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def is_locked(path: Path) -> bool:
    """Tell whether a process holds the lock on a file."""
    try:
        with path.open("r+", encoding="utf-8") as file:
            return not _try_lock(file)
    except OSError:
        return False
