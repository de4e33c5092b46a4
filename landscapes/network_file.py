"""What an ONNX file holds, looked at before onnxruntime believes it.

An ONNX file is a protocol buffer: a tree of numbered fields. Here it is walked as far as the nodes
and tensors of its graph, with nothing but their sizes kept. A network of the LCBench kind is a
straight line of arithmetic: it needs no other file, no loops, no functions and no operators of
somebody's own, and all its numbers are in the file.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

MOST_BYTES = 64 << 20
_MOST_FIELDS = 100_000
_MOST_OUTSIDE_TENSORS = 4 << 20  # bytes of names, shapes and notes
_LONG, _EIGHT, _BYTES, _FOUR = 0, 1, 2, 5  # how a field is written

# Fields by their number, of ModelProto, GraphProto, NodeProto, AttributeProto and TensorProto.
_GRAPH, _TRAINING, _FUNCTIONS = 7, 20, 25
_NODE, _INITIALIZER, _SPARSE = 1, 5, 15
_OPERATOR, _ATTRIBUTE, _DOMAIN = 4, 5, 7
_IN_ATTRIBUTE, _TENSORS = 5, 10
_SUBGRAPHS = (6, 11, 22, 23)  # graphs and sparse tensors
_DIMS, _RAW, _EXTERNAL, _LOCATION = 1, 9, 13, 14
_OWN = (b"", b"ai.onnx")
# Their output may be of any size, or their time of any length, whatever they are given.
_BOUNDLESS = frozenset(
    (
        *("Loop", "Scan", "If", "SequenceMap"),
        *("Range", "RandomNormal", "RandomUniform", "EyeLike", "OneHot"),
        *("Resize", "Upsample", "NonMaxSuppression", "ImageDecoder"),
    )
)

_Field = tuple[int, "int | memoryview"]


class _Walk:
    """Counts what has been looked at, over the whole file."""

    def __init__(self) -> None:
        self.fields = 0
        self.in_tensors = 0

    def fields_of(self, data: memoryview) -> Iterator[_Field]:
        """The fields of a message: number and value; those of a fixed size are passed over."""
        at = 0
        while at < len(data):
            self.fields += 1
            if self.fields > _MOST_FIELDS:
                raise ValueError(f"it has more than {_MOST_FIELDS:,} parts")
            key, at = _varint(data, at)
            number, how = key >> 3, key & 7
            if how == _LONG:
                value, at = _varint(data, at)
                yield number, value
            elif how == _BYTES:
                size, at = _varint(data, at)
                if at + size > len(data):
                    raise ValueError("it ends early")
                yield number, data[at : at + size]
                at += size
            elif how in (_EIGHT, _FOUR):
                at += 8 if how == _EIGHT else 4
            else:
                raise ValueError("it is no protocol buffer")
        if at > len(data):
            raise ValueError("it ends early")


def check_network(data: bytes) -> None:
    """Raise ValueError, in words, where an ONNX file is more than a line of arithmetic."""
    walk, graphs = _Walk(), 0
    for number, value in walk.fields_of(memoryview(data)):
        if number in (_TRAINING, _FUNCTIONS):
            raise ValueError("it holds functions of its own")
        if number == _GRAPH:
            graphs += 1
            _check_graph(walk, _message(value))
    if graphs != 1:
        raise ValueError("it is no ONNX file: it holds no graph")
    if len(data) - walk.in_tensors > _MOST_OUTSIDE_TENSORS:
        raise ValueError("it holds megabytes that are no numbers of a network")


def _check_graph(walk: _Walk, graph: memoryview) -> None:
    for number, value in walk.fields_of(graph):
        if number == _NODE:
            _check_node(walk, _message(value))
        elif number == _INITIALIZER:
            _check_tensor(walk, _message(value))
        elif number == _SPARSE:
            raise ValueError("it holds sparse tensors")


def _check_node(walk: _Walk, node: memoryview) -> None:
    for number, value in walk.fields_of(node):
        if number == _OPERATOR and (name := bytes(_message(value)).decode()) in _BOUNDLESS:
            raise ValueError(f"its operator {name} may take any time or memory")
        if number == _DOMAIN and bytes(_message(value)) not in _OWN:
            raise ValueError("it has operators that are not ONNX's own")
        if number == _ATTRIBUTE:
            for inner, part in walk.fields_of(_message(value)):
                if inner in _SUBGRAPHS:
                    raise ValueError("it holds a graph inside a node, or sparse tensors")
                if inner in (_IN_ATTRIBUTE, _TENSORS):
                    _check_tensor(walk, _message(part))


def _check_tensor(walk: _Walk, tensor: memoryview) -> None:
    dims: list[int] = []
    for number, value in walk.fields_of(tensor):
        if number in (_EXTERNAL, _LOCATION):
            raise ValueError("its numbers are in another file, which is not opened")
        if number == _DIMS:
            dims.extend([value] if isinstance(value, int) else _varints(value))
        elif number == _RAW:
            walk.in_tensors += len(_message(value))
    if any(n >= 1 << 31 for n in dims) or math.prod(dims) > 2 * len(tensor):
        raise ValueError("a tensor says that it is larger than the file")


def _message(value: int | memoryview) -> memoryview:
    if isinstance(value, int):
        raise ValueError("it is no ONNX file: a number is where a part should be")
    return value


def _varints(data: memoryview) -> list[int]:
    found: list[int] = []
    at = 0
    while at < len(data) and len(found) < 64:
        value, at = _varint(data, at)
        found.append(value)
    return found


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    """A whole number of seven bits a byte, and where it ends."""
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(data):
            raise ValueError("it ends early")
        byte = data[at]
        value, at = value | (byte & 127) << shift, at + 1
        if byte < 128:
            return value, at
    raise ValueError("it is no protocol buffer")
