"""Arrays from an npz file that somebody else wrote: every size is known before it is believed."""

from __future__ import annotations

import io
import math
import struct
import zipfile
import zlib
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

_END = struct.Struct("<4s4H2LH")  # the record that ends a zip file
_MOST_MEMBERS = 32
_MOST_DIRECTORY = 1 << 16
_HEADERS = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
_MOST_ITEM = 4 << 20  # bytes of one entry: text is one


def arrays_in(
    data: bytes, kinds: Mapping[str, str], most: int, only: Collection[str] | None = None
) -> dict[str, NDArray[Any]]:
    """The arrays of an npz file's content; nothing in it is run, and no name in it is a path.

    Args:
        data: the whole file.
        kinds: for each array that may be there the kinds of its dtype, such as "fiu".
        most: entries of all arrays together.
        only: those that are read; None for all.

    Raises:
        ValueError: it is no npz, is damaged, holds something else, or more; in words.
    """
    try:
        return _arrays_in(data, kinds, most, only)
    except (
        *(ValueError, TypeError, SyntaxError, EOFError, OverflowError, MemoryError, OSError),
        *(RuntimeError, zipfile.BadZipFile, zlib.error, struct.error),
    ) as error:
        raise ValueError(f"it is no npz file of this kind: {error}") from error


def _arrays_in(
    data: bytes, kinds: Mapping[str, str], most: int, only: Collection[str] | None
) -> dict[str, NDArray[Any]]:
    _check_directory(data)
    arrays: dict[str, NDArray[Any]] = {}
    left, seen = most, set()
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = archive.infolist()
        for member in members:
            name = member.filename.removesuffix(".npy")
            if member.filename != f"{name}.npy" or name not in kinds:
                raise ValueError(
                    f"it holds {member.filename!r}, and may hold the arrays {', '.join(kinds)}"
                )
            if name in seen:
                raise ValueError(f"it holds the array {name} twice")
            if member.compress_type not in _METHODS or member.flag_bits & 1:
                raise ValueError(f"{name} is compressed or encrypted in a way that is not read")
            seen.add(name)
            if only is None or name in only:
                arrays[name] = _array_of(archive, member, name, kinds[name], left)
                left -= arrays[name].size
    return arrays


def _check_directory(data: bytes) -> None:
    """Refuse a list of members that would be long to read, before it is read."""
    if len(data) < _END.size or data[-_END.size :][:4] != b"PK\5\6":
        raise ValueError("it does not end as a zip file does")
    _, *disks, count, size, start, comment = _END.unpack(data[-_END.size :])
    is_large = data[-_END.size - 20 :][:4] == b"PK\6\7"  # zip64, which has a second such record
    if is_large or any(disks[:2]) or comment:
        raise ValueError("it is a zip file of a kind that is not read")
    if count > _MOST_MEMBERS or size > _MOST_DIRECTORY or start + size > len(data):
        raise ValueError(f"it lists {count} members in {size:,} bytes")


def _array_of(
    archive: zipfile.ZipFile, member: zipfile.ZipInfo, name: str, kinds: str, most: int
) -> NDArray[Any]:
    with archive.open(member) as file:
        version = np.lib.format.read_magic(file)
        if version not in _HEADERS:
            raise ValueError(f"{name} is written in format {version}")
        shape, is_fortran, dtype = _HEADERS[version](file, max_header_size=2_000)
        if dtype.hasobject:
            raise ValueError(f"{name} holds objects, which are a pickle and never opened")
        if dtype.kind not in kinds or dtype.itemsize > _MOST_ITEM:
            raise ValueError(f"{name} holds entries of {str(dtype)[:40]}, which are not read")
        # A side of 0 makes no other side harmless: an array may yet be made of those.
        if len(shape) > 8 or math.prod(max(1, n) for n in shape) > most:
            raise ValueError(f"{name} has the shape {_short(shape)}; at most {most:,} are read")
        size = math.prod(shape) * dtype.itemsize
        if file.tell() + size != member.file_size:
            raise ValueError(f"{name} says shape {_short(shape)}, and has not as many bytes")
        # The size in the zip's list is a claim as well: read no more, and see that it is there.
        content = file.read(size + 1)
    if len(content) != size:
        raise ValueError(f"{name} ends early or late")
    array = np.frombuffer(content, dtype=dtype).reshape(shape, order="F" if is_fortran else "C")
    return np.array(array, order="C")


def _short(shape: tuple[int, ...]) -> str:
    return str(shape)[:60]
