"""Which files a source means: paths, folders, globs, lists, URIs and hive partitions, local or remote."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import unquote

import numpy as np
import pyarrow as pa

from pope_fast.errors import PopeError
from pope_fast.log.arrow_types import Array, DataType

if TYPE_CHECKING:
    from pyarrow.fs import FileSystem

__all__ = ["FileSet", "LogFile", "find_files"]

_COMPRESSIONS = {".gz": "gzip", ".zst": "zstd", ".bz2": "bz2"}
_FORMATS = {
    ".parquet": "parquet",
    ".pq": "parquet",
    ".parq": "parquet",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "jsonl",
    ".csv": "csv",
    ".tsv": "csv",
}
#: Files that describe a downloaded or simulated data set, beside its rows.
_DESCRIPTIONS = ("dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json", ".truth.json")
_HIVE_NULL = "__HIVE_DEFAULT_PARTITION__"
_MAGIC = re.compile(r"[*?\[]")


class LogFile(NamedTuple):
    """One file: its path in its file system, its format and compression, and its partition values."""

    path: str
    format: str
    compression: str | None
    partitions: Mapping[str, str | None]

    @property
    def name(self) -> str:
        """The last part of the path."""
        return self.path.rstrip("/").rsplit("/", 1)[-1]


@dataclass(frozen=True)
class FileSet:
    """The files of a log, all of one format, in the order in which they are read.

    Attributes
    ----------
    files : tuple of LogFile
        Sorted by path.
    filesystem : pyarrow.fs.FileSystem or None
        Where they lie; None for the local disk.
    description : str
        What the user asked for.
    partition_types : mapping of str to pyarrow.DataType
        The hive partition columns: int64 if every value is an integer, else string.
    """

    files: tuple[LogFile, ...]
    filesystem: FileSystem | None
    description: str
    partition_types: Mapping[str, DataType] = field(default_factory=dict)

    @property
    def format(self) -> str:
        """The one format of all files."""
        return self.files[0].format

    def open_stream(self, file: LogFile) -> Any:
        """Open a file for sequential reading, decompressed."""
        try:
            if self.filesystem is None:
                # The stubs leave out None, which stands for no compression.
                compression: Any = file.compression
                return pa.input_stream(file.path, compression=compression)
            return self.filesystem.open_input_stream(file.path, compression=file.compression)
        except (OSError, pa.ArrowException) as error:
            raise PopeError(f"cannot open {file.path}: {error}") from error

    def partition_column(self, name: str, file: LogFile, rows: int) -> Array:
        """Return a hive partition's value as a column of ``rows`` rows."""
        value = file.partitions.get(name)
        type_ = self.partition_types[name]
        if value is None:
            return pa.nulls(rows, type_)
        if pa.types.is_integer(type_):
            return pa.array(np.full(rows, int(value)), type_)
        indices: Array = pa.array(np.zeros(rows, dtype=np.int32))
        return pa.DictionaryArray.from_arrays(indices, pa.array([value], pa.string()))

    def fingerprint(self) -> list[str]:
        """Return path, size and modification time of each file."""
        parts = []
        for file in self.files:
            if self.filesystem is None:
                stat = os.stat(file.path)
                parts.append(f"{file.path}:{stat.st_size}:{stat.st_mtime_ns}")
            else:
                info = self.filesystem.get_file_info(file.path)
                parts.append(f"{file.path}:{info.size}:{info.mtime_ns}")
        return parts


def find_files(
    source: str | os.PathLike[str] | Iterable[str | os.PathLike[str]],
    *,
    format: str | None = None,
    filesystem: Any = None,
) -> FileSet:
    """Resolve a source to its files.

    Parameters
    ----------
    source : path, URI, glob, or several of them
        A folder is searched to any depth; names that start with ``_`` or ``.`` are left out.
    format : {"parquet", "jsonl", "csv"}, optional
        For files whose names do not say it.
    filesystem : pyarrow.fs.FileSystem or fsspec file system, optional
        Where the paths lie.

    Raises
    ------
    PopeError
        If nothing is there, or if the files are of several formats.
    """
    if isinstance(source, (str, os.PathLike)):
        source = [source]
    paths = [os.fspath(path) for path in source]
    if not paths:
        raise PopeError("an empty list of files")
    if format is not None and format not in ("parquet", "jsonl", "csv"):
        raise PopeError(f"unknown format {format!r}; the formats are parquet, jsonl and csv")
    description = paths[0] if len(paths) == 1 else f"{paths[0]} and {len(paths) - 1} more"
    resolved = None if filesystem is None else _as_arrow_filesystem(filesystem)
    found: list[LogFile] = []
    for path in paths:
        if filesystem is None and path.lower().startswith(("http://", "https://")):
            raise PopeError("files are not read over http: download the log, and give the path of the file")
        if filesystem is None and "://" in path:
            resolved, path = _from_uri(path)
        found += _expand(path, resolved, format)
    formats = sorted({file.format for file in found})
    if len(formats) > 1:
        raise PopeError(
            f"{description} holds files of several formats ({', '.join(formats)}); say which one with format="
        )
    types = _partition_types(found)
    return FileSet(tuple(found), resolved, description, types)


def _as_arrow_filesystem(filesystem: Any) -> FileSystem:
    from pyarrow import fs

    if isinstance(filesystem, fs.FileSystem):
        return filesystem
    handler: Any = fs.FSSpecHandler  # abstract in the stubs alone
    return fs.PyFileSystem(handler(filesystem))


def _from_uri(uri: str) -> tuple[FileSystem | None, str]:
    from pyarrow import fs

    head, magic, tail = uri, "", ""
    match = _MAGIC.search(uri)
    if match is not None:
        # Arrow's URI parser refuses wildcards: resolve the folder above them and put them back.
        cut = uri.rindex("/", 0, match.start())
        head, magic, tail = uri[:cut], "/", uri[cut + 1 :]
    try:
        filesystem, path = fs.FileSystem.from_uri(head)
    except (pa.ArrowInvalid, OSError) as error:
        try:
            import fsspec  # type: ignore[import-untyped, unused-ignore]

            handler, path = fsspec.core.url_to_fs(head)
        except (ImportError, ValueError):
            raise PopeError(f"cannot reach {uri}: {error}") from error
        filesystem = _as_arrow_filesystem(handler)
    if isinstance(filesystem, fs.LocalFileSystem):
        return None, path + magic + tail
    return filesystem, path + magic + tail


def _expand(path: str, filesystem: FileSystem | None, format: str | None) -> list[LogFile]:
    """Return the files that one path, folder or glob stands for, sorted."""
    if filesystem is None:
        path = os.path.expanduser(path)
        kind = "file" if os.path.isfile(path) else "folder" if os.path.isdir(path) else None
    else:
        kind = _remote_kind(filesystem, path)
    if kind == "file":
        return [_log_file(path, {}, format, filesystem)]
    if kind == "folder":
        names = [name for name in _walk(path, filesystem) if not name.endswith(_DESCRIPTIONS)]
        known = [name for name in names if format is not None or _format_of(name) is not None]
        if not known:
            raise PopeError(f"no Parquet, JSONL or CSV file in the folder {path}")
        return [_log_file(name, _hive(name, path), format, filesystem) for name in known]
    if _MAGIC.search(path) is None:
        raise PopeError(f"no such file or folder: {path}")
    root = _MAGIC.split(path, maxsplit=1)[0].rpartition("/")[0]
    names = [name for name in _glob(path, root, filesystem) if format is not None or _format_of(name) is not None]
    if not names:
        raise PopeError(f"no Parquet, JSONL or CSV file matches {path}")
    return [_log_file(name, _hive(name, root), format, filesystem) for name in names]


def _remote_kind(filesystem: FileSystem, path: str) -> str | None:
    from pyarrow import fs

    try:
        kind = filesystem.get_file_info(path).type
    except (OSError, pa.ArrowException) as error:
        raise PopeError(f"cannot reach {path}: {error}") from error
    if kind == fs.FileType.File:
        return "file"
    return "folder" if kind == fs.FileType.Directory else None


def _visible(path: str, root: str) -> bool:
    inside = path[len(root) :].strip("/").split("/")
    return not any(part.startswith((".", "_")) and "=" not in part for part in inside)


def _walk(root: str, filesystem: FileSystem | None) -> list[str]:
    if filesystem is None:
        files = [Path(folder, name).as_posix() for folder, _, names in os.walk(root) for name in names]
        root = Path(root).as_posix()
    else:
        from pyarrow import fs

        selector = fs.FileSelector(root, recursive=True, allow_not_found=True)
        files = [info.path for info in filesystem.get_file_info(selector) if info.type == fs.FileType.File]
    return sorted(path for path in files if _visible(path, root))


def _glob(pattern: str, root: str, filesystem: FileSystem | None) -> list[str]:
    if filesystem is None:
        import glob

        names = (Path(name).as_posix() for name in glob.iglob(pattern, recursive=True) if os.path.isfile(name))
        # Hive partitions are read off the path below the fixed part of the pattern.
        return sorted(name for name in names if _visible(name, Path(root).as_posix() if root else ""))
    matcher = re.compile(_translate(pattern))
    return [path for path in _walk(root, filesystem) if matcher.fullmatch(path)]


def _translate(pattern: str) -> str:
    """Write a glob as a regular expression in which ``*`` stays within a folder and ``**`` does not."""
    out, i = "", 0
    while i < len(pattern):
        if pattern.startswith("**/", i):
            out, i = out + "(?:.*/)?", i + 3
        elif pattern[i] == "*":
            out, i = out + "[^/]*", i + 1
        elif pattern[i] == "?":
            out, i = out + "[^/]", i + 1
        elif pattern[i] == "[" and "]" in pattern[i + 2 :]:
            end = pattern.index("]", i + 2)
            inside = pattern[i + 1 : end]
            inside = f"^{inside[1:]}" if inside.startswith("!") else inside
            out, i = f"{out}[{inside}]", end + 1
        else:
            out, i = out + re.escape(pattern[i]), i + 1
    return out


def _split_compression(name: str) -> tuple[str, str | None]:
    for suffix, compression in _COMPRESSIONS.items():
        if name.lower().endswith(suffix):
            return name[: -len(suffix)], compression
    return name, None


def _format_of(name: str) -> str | None:
    stem, _ = _split_compression(name)
    return _FORMATS.get(os.path.splitext(stem)[1].lower())


def _log_file(
    path: str, partitions: Mapping[str, str | None], format: str | None, filesystem: FileSystem | None
) -> LogFile:
    detected = format or _format_of(path)
    if detected is None:
        stream = pa.OSFile(path, "rb") if filesystem is None else filesystem.open_input_stream(path)
        with stream:
            detected = "parquet" if stream.read(4) == b"PAR1" else None
    if detected is None:
        raise PopeError(f"{path}: the name does not tell the format; say format='parquet', 'jsonl' or 'csv'")
    compression = None if detected == "parquet" else _split_compression(path)[1]
    return LogFile(path, detected, compression, partitions)


def _hive(path: str, root: str) -> dict[str, str | None]:
    """Read ``key=value`` folders below a root."""
    root = Path(root).as_posix() if root else ""
    inside = path[len(root) :] if path.startswith(root) else path
    pairs = [part.split("=", 1) for part in inside.strip("/").split("/")[:-1] if "=" in part]
    return {unquote(key): None if value == _HIVE_NULL else unquote(value) for key, value in pairs}


def _partition_types(files: list[LogFile]) -> dict[str, DataType]:
    types: dict[str, DataType] = {}
    for name in dict.fromkeys(key for file in files for key in file.partitions):
        values = [file.partitions.get(name) for file in files]
        integers = all(value is None or re.fullmatch(r"-?(0|[1-9]\d{0,17})", value) for value in values)
        types[name] = pa.int64() if integers else pa.string()
    return types
