"""Files that somebody else wrote: looked at before they are believed, and read up to a cap.

A study, a landscape or a card may come from anyone. Whoever reads one asks here, so that the rules
are in one place: a regular file and no link, device or pipe; no larger than its kind may be; JSON
no deeper, no longer and with no stranger numbers than a tuner writes. What breaks a rule is refused
with a ValueError that names the file and the reason, before anything is allocated for it.
"""

from __future__ import annotations

import errno
import json
import os
import stat
from pathlib import Path
from typing import Any, BinaryIO

MOST_JSON = 1 << 20
_DEEPEST = 32
_MOST_CONTAINERS = 500_000
_MOST_DIGITS = 300  # of a whole number: what a float can hold


def open_regular(path: Path, most: int) -> BinaryIO:
    """A regular file of at most `most` bytes, open for reading.

    Raises ValueError where there is none, where it is a link or a device, or where it is larger.
    """
    # Without O_NONBLOCK a named pipe would wait for its other end.
    flags = os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        descriptor = os.open(path, flags)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise ValueError(f"{path} is a symbolic link; name the file that it leads to") from None
        raise ValueError(f"{path} cannot be read: {error.strerror}") from error
    found = os.fstat(descriptor)
    problem = ""
    if not stat.S_ISREG(found.st_mode):
        problem = "is not a regular file"
    elif found.st_size > most:
        problem = f"has {found.st_size:,} bytes, and at most {most:,} are read of such a file"
    if problem:
        os.close(descriptor)
        raise ValueError(f"{path} {problem}")
    return os.fdopen(descriptor, "rb")


def not_through_a_link(path: str, flags: int) -> int:
    """An opener for files that are written: not where a link or a device lies in their place.

    Raises ValueError where one does; a stranger's folder could have a link to any file of ours.
    """
    try:
        descriptor = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o666)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise ValueError(f"{path} is a symbolic link; remove it") from None
        raise
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise ValueError(f"{path} is not a regular file; remove it")
    return descriptor


def read_capped(path: Path, most: int) -> bytes:
    """The content of a regular file; raises ValueError as `open_regular` does."""
    with open_regular(path, most) as file:
        data = file.read(most + 1)
    if len(data) > most:
        raise ValueError(f"{path} grew past the {most:,} bytes that are read of such a file")
    return data


def read_json(path: Path, most: int = MOST_JSON) -> Any:
    """The JSON value in a file; raises ValueError, naming the file, where there is none."""
    data = read_capped(path, most)
    try:
        return parse_json(data.decode(), most)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def parse_json(text: str, most: int = MOST_JSON) -> Any:
    """The value of a JSON text, of finite numbers, at most 32 levels deep.

    Raises ValueError where it is longer than `most` characters, or no such JSON.
    """
    if len(text) > most:
        raise ValueError(f"JSON of {len(text):,} characters, and at most {most:,} are read")
    containers = text.count("[") + text.count("{")
    if containers > _MOST_CONTAINERS:
        raise ValueError(f"JSON of more than {_MOST_CONTAINERS:,} lists and objects")
    try:
        value = _DECODER.decode(text)
    except RecursionError:
        raise ValueError(f"JSON of more than {_DEEPEST} levels") from None
    if containers > _DEEPEST and _is_deeper(value, _DEEPEST):
        raise ValueError(f"JSON of more than {_DEEPEST} levels")
    return value


def _is_deeper(value: Any, levels: int) -> bool:
    layer = [value]
    for _ in range(levels):
        inner = [part for part in layer if isinstance(part, (list, dict))]
        layer = [v for part in inner for v in (part.values() if isinstance(part, dict) else part)]
        if not layer:
            return False
    return any(isinstance(part, (list, dict)) for part in layer)


def _refuse(name: str) -> Any:
    raise ValueError(f"JSON has no {name}")


def _to_float(text: str) -> float:
    value = float(text)
    if abs(value) == float("inf"):
        raise ValueError(f"{text[:40]} is no finite number")
    return value


def _to_int(text: str) -> int:
    if len(text) > _MOST_DIGITS:
        raise ValueError(f"a whole number of {len(text):,} digits")
    return int(text)


_DECODER = json.JSONDecoder(parse_float=_to_float, parse_int=_to_int, parse_constant=_refuse)
