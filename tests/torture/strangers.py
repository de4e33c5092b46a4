"""Files of strangers, made by code: each is one trick, and is to be refused."""

from __future__ import annotations

import hashlib
import io
import json
import os
import pickle
import sqlite3
import struct
import zipfile
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import numpy as np

from tests.helpers import set_checksums_right
from tests.landscapes.test_surrogate import FLOAT, INT32, model, node, port, put, quadratic, tensor
from tuner.space import Choice, Float, SearchSpace
from tuner.store import Store
from tuner.trial import Observation, Trial, TrialState

Maker = Callable[[Path], None]
SPACE = SearchSpace(x=Float(0.0, 1.0), act=Choice(("relu", "gelu")))
DEEP = "[" * 100_000 + "]" * 100_000
HUGE = 1 << 31


class Payload:
    """Whoever unpickles it runs a command."""

    def __reduce__(self):
        return os.system, ("touch pwned",)


# -- studies --------------------------------------------------------------------------------------


def good_study(path: Path) -> None:
    """A study of two trials, of this version and undamaged."""
    path.parent.mkdir(parents=True, exist_ok=True)
    store = Store(path, create=True)
    store.set_meta("request", {"device": "cpu"})
    row = store.add_run("random", 0, SPACE, 3, 10**12)
    history = store.history(row)
    for number in range(2):
        history.start(Trial(number, {"x": 0.5, "act": "relu"}, number, 1))
        history.observe(number, Observation(1, 0.5, 10, 10 * (number + 1)))
        history.close(number, TrialState.COMPLETED)
    store.charge(row.id, {}, 0)
    store.commit(force=True)
    store.close()


def by_sql(*statements: str, values: tuple = (), forced: bool = False) -> Maker:
    """A study that somebody has changed with SQLite's own tools."""

    def make(path: Path) -> None:
        good_study(path)
        with closing(sqlite3.connect(path, isolation_level=None)) as db:
            if forced:
                db.execute("PRAGMA writable_schema = ON")
            for i, statement in enumerate(statements):
                db.execute(statement, values if i == len(statements) - 1 else ())
            set_checksums_right(db)  # they are no secret

    return make


def setting(column: str, table: str, value: object) -> Maker:
    return by_sql(f"UPDATE {table} SET {column} = ?", values=(value,))  # noqa: S608, written here


def by_bytes(change: Callable[[bytearray], object], make: Maker = good_study) -> Maker:
    """A file whose bytes somebody has changed."""

    def made(path: Path) -> None:
        make(path)
        data = bytearray(path.read_bytes())
        found = change(data)
        path.write_bytes(found if isinstance(found, bytes) else data)

    return made


def with_super_journal(path: Path) -> None:
    """A journal to be rolled back, after which SQLite would delete the file that it names."""
    good_study(path)
    victim = path.with_name("victim")
    victim.write_bytes(b"precious\0")
    name = os.fsencode(victim.resolve())
    magic = bytes.fromhex("d9d505f920a163d7")
    pages = path.stat().st_size // 4096
    header = magic + struct.pack(">5I", 0, 0, pages, 512, 4096)
    lock_page = (1 << 30) // 4096 + 1
    record = struct.pack(">I", lock_page) + name
    record += struct.pack(">2I", len(name), sum(name)) + magic
    path.with_name(path.name + "-journal").write_bytes(header.ljust(512, b"\0") + record)


def beside(suffix: str, make_it: Callable[[Path], object], make: Maker = good_study) -> Maker:
    """A good file with something else than a file beside it."""

    def made(path: Path) -> None:
        make(path)
        other = path.with_name(path.name + suffix)
        other.unlink(missing_ok=True)
        make_it(other)

    return made


def sparse(size: int, head: bytes = b"") -> Maker:
    """A file that says to be large, and takes no room."""

    def make(path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "wb") as file:
            file.write(head)
            file.truncate(size)

    return make


def holding(data: bytes | str) -> Maker:
    def make(path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data.encode() if isinstance(data, str) else data)

    return make


def place(make_it: Callable[[Path], object]) -> Maker:
    """Something else than a file."""

    def make(path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        make_it(path)

    return make


NO_FILES: dict[str, Maker] = {
    "a pipe": place(os.mkfifo),
    "a folder": place(Path.mkdir),
    "a link to a device": place(lambda path: path.symlink_to("/dev/zero")),
    "a link to nothing": place(lambda path: path.symlink_to("nothing")),
    "a link to a secret": place(lambda path: path.symlink_to("/etc/passwd")),
    "2 GiB that are not there": sparse(HUGE),
    "nothing in it": holding(b""),
    "a pickle": holding(pickle.dumps(Payload())),
    "text": holding("#!/bin/sh\ntouch pwned\n"),
    "random bytes": holding(np.random.default_rng(0).bytes(10_000)),
}


def _space(text: str) -> Maker:
    return setting("space", "run", text)


_IS_PLAIN = "TEXT NOT NULL, value TEXT NOT NULL"
STUDIES: dict[str, Maker] = {
    "a trigger": by_sql("CREATE TRIGGER t AFTER INSERT ON trial BEGIN DELETE FROM trial; END"),
    "a view": by_sql("CREATE VIEW v AS SELECT * FROM trial"),
    "a view for a table": by_sql(
        "ALTER TABLE trial RENAME TO hidden", "CREATE VIEW trial AS SELECT * FROM hidden"
    ),
    "a further table": by_sql("CREATE TABLE more (x)"),
    "a virtual table": by_sql(
        "INSERT INTO sqlite_schema VALUES ('table', 'v', 'v', 0, "
        "'CREATE VIRTUAL TABLE v USING fts5(x)')",
        forced=True,
    ),
    "an index of an expression": by_sql("CREATE INDEX e ON trial (abs(seed))"),
    "a table less": by_sql("DROP TABLE charge"),
    "a generated column": by_sql(
        "ALTER TABLE charge ADD COLUMN g TEXT AS (hex(zeroblob(run))) VIRTUAL"
    ),
    "a check": by_sql(
        "DROP TABLE meta",
        f"CREATE TABLE meta (key {_IS_PLAIN}, CHECK (length(zeroblob(1e9)) > 0))",
        "INSERT INTO meta VALUES ('schema', '2')",
    ),
    "a statement that is none": by_sql(
        "UPDATE sqlite_schema SET sql = 'CREATE TABLE trial (' WHERE name = 'trial'", forced=True
    ),
    "another format": by_sql("UPDATE meta SET value = '99' WHERE key = 'schema'"),
    "no format": by_sql("DELETE FROM meta WHERE key = 'schema'"),
    "a deep format": by_sql("UPDATE meta SET value = ? WHERE key = 'schema'", values=(DEEP,)),
    "a request that is a list": by_sql("UPDATE meta SET value = '[1]' WHERE key = 'request'"),
    "a deep request": by_sql("UPDATE meta SET value = ? WHERE key = 'request'", values=(DEEP,)),
    "a deep config": setting("config", "trial", '{"x": ' + DEEP + "}"),
    "33 levels": setting("config", "trial", '{"x": ' + "[" * 33 + "]" * 33 + "}"),
    "a config of NaN": setting("config", "trial", '{"x": NaN, "act": "relu"}'),
    "a config of Infinity": setting("config", "trial", '{"x": -Infinity, "act": "relu"}'),
    "a config of 1e999": setting("config", "trial", '{"x": 1e999, "act": "relu"}'),
    "5,000 digits": setting("config", "trial", '{"x": ' + "9" * 5_000 + "}"),
    "400 digits": setting("config", "trial", '{"x": ' + "9" * 400 + "}"),
    "2 MiB of JSON": setting("config", "trial", json.dumps({"x": "a" * (2 << 20)})),
    "16 MiB of text": setting("reason", "trial", "a" * (16 << 20)),
    "600,000 lists": setting("config", "trial", "[" + "[]," * 300_000 + "[]]"),
    "a config that is a list": setting("config", "trial", "[]"),
    "a config without a knob": setting("config", "trial", '{"x": 0.5}'),
    "a knob too many": setting("config", "trial", '{"x": 0.5, "act": "relu", "__class__": 1}'),
    "a value outside": setting("config", "trial", '{"x": 7, "act": "relu"}'),
    "a value that is a list": setting("config", "trial", '{"x": [1], "act": "relu"}'),
    "an option that is none": setting("config", "trial", '{"x": 0.5, "act": "__import__"}'),
    "no JSON": setting("config", "trial", "{'x': __import__('os').system('touch pwned')}"),
    "deep metrics": setting("metrics", "observation", DEEP),
    "a deep space": _space('{"x": ' + DEEP + "}"),
    "a space that is a list": _space("[1]"),
    "a space that is null": _space("null"),
    "a knob that is a number": _space('{"x": 3}'),
    "a knob of no type": _space('{"x": {"type": "os.system"}}'),
    "a knob of a class": _space('{"x": {"type": "float", "__class__": 1}}'),
    "a knob of NaN": _space('{"x": {"type": "float", "low": NaN, "high": 1}}'),
    "a knob of text": _space('{"x": {"type": "float", "low": "0", "high": "1"}}'),
    "a scale of text": _space('{"x": {"type": "float", "low": 0, "high": 1, "log": "<b>"}}'),
    "a name of 100,000": _space(json.dumps({"a" * 100_000: {"type": "choice", "options": [1]}})),
    "100,000 options": _space(
        json.dumps({"x": {"type": "choice", "options": list(range(100_000))}})
    ),
    "options that are lists": _space('{"x": {"type": "choice", "options": [[1]]}}'),
    "10,000 knobs": _space(
        json.dumps({str(i): {"type": "choice", "options": [1]} for i in range(10_000)})
    ),
    "a seed below 0": setting("seed", "run", -1),
    "no epochs": setting("max_epochs", "run", 0),
    "a budget below 0": setting("budget_ns", "run", -1),
    "a charge below 0": setting("train", "charge", -1),
    "charges beyond 64 bits": by_sql(
        "INSERT INTO charge SELECT id + 10, run, number, 9223372036854775807, 0, 0, 0, 0, 0, 0 "
        "FROM charge",
        "INSERT INTO charge SELECT id + 20, run, number, 9223372036854775807, 0, 0, 0, 0, 0, 0 "
        "FROM charge LIMIT 1",
    ),
    "an odd state": setting("state", "trial", "__init__"),
    "a checkpoint above": setting("checkpoint", "trial", "../../../etc/passwd"),
    "a checkpoint elsewhere": setting("checkpoint", "trial", "/etc/passwd"),
    "a hidden checkpoint": setting("midway", "trial", ".bashrc"),
    "a checkpoint with a NUL": setting("checkpoint", "trial", "a\0b"),
    "a gap in a curve": setting("epoch", "observation", 2),
    "an epoch of 2^62": setting("epoch", "observation", 1 << 62),
    "time below 0": setting("device_ns", "observation", -5),
    "a score without end": setting("score", "observation", float("inf")),
    "a trial less": by_sql("DELETE FROM trial WHERE number = 0"),
    "a trial of 2^62": by_sql("UPDATE trial SET number = 1 << 62 WHERE number = 1"),
    "a log to be written ahead": by_bytes(lambda data: data.__setitem__(slice(18, 20), b"\2\2")),
    "pages of no size": by_bytes(lambda data: data.__setitem__(slice(16, 18), b"\0\3")),
    "cut short": by_bytes(lambda data: bytes(data[: len(data) // 2])),
    "a header alone": by_bytes(lambda data: bytes(data[:100])),
    "a root that is a loop": by_bytes(lambda data: data.__setitem__(slice(100, 112), data[0:12])),
    "64 MiB of nothing behind": by_bytes(lambda data: bytes(data[:100]) + bytes(64 << 20)),
    "2 GiB behind a header": sparse(HUGE, b"SQLite format 3\0\x10\0\1\1"),
    "a journal that names a file": with_super_journal,
    "a journal that is a link": beside("-journal", lambda path: path.symlink_to("/dev/zero")),
    "a journal that is a pipe": beside("-journal", os.mkfifo),
    "a journal of 2 GiB": beside("-journal", sparse(HUGE)),
    **{name: make for name, make in NO_FILES.items() if name != "nothing in it"},
}


# -- landscapes -----------------------------------------------------------------------------------


def arrays() -> dict[str, np.ndarray]:
    space = {"x": {"type": "float", "low": 0.0, "high": 1.0, "log": False}}
    return {
        "space": np.array(json.dumps(space)),
        "configs": np.array([[0.0], [1.0]]),
        "scores": np.full((2, 1, 3), 0.5),
        "seconds": np.ones((2, 1, 3)),
    }


def member(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=True)
    return buffer.getvalue()


def claiming(text: str, content: bytes = b"", version: int = 1) -> bytes:
    """A member whose header is `text`, whatever comes after it."""
    header = text.encode() + b"\n"
    size = struct.pack("<H" if version == 1 else "<I", len(header))
    return b"\x93NUMPY" + bytes([version, 0]) + size + header + content


def shaped(shape: str, descr: str = "'<f8'") -> bytes:
    text = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}}}"
    return claiming(text, bytes(48))


def packed(
    members: list[tuple[str | zipfile.ZipInfo, bytes]],
    how: int = zipfile.ZIP_DEFLATED,
    comment: bytes = b"",
) -> Maker:
    def make(path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        with zipfile.ZipFile(path, "w", how, compresslevel=1) as archive:
            for name, data in members:
                archive.writestr(name, data)
            archive.comment = comment

    return make


def table(**changes: bytes | np.ndarray | None) -> Maker:
    """A table with some of its members others, or gone."""
    members = {**arrays(), **changes}
    return packed(
        [
            (f"{name}.npy", value if isinstance(value, bytes) else member(value))
            for name, value in members.items()
            if value is not None
        ]
    )


def good_table(path: Path) -> None:
    table()(path)
    path.with_suffix(".json").write_text('{"about": "", "badge": ""}')


def card(make_it: Callable[[Path], object]) -> Maker:
    def make(path: Path) -> None:
        good_table(path)
        path.with_suffix(".json").unlink()
        make_it(path.with_suffix(".json"))

    return make


def with_more(*more: tuple[str | zipfile.ZipInfo, bytes], **options: object) -> Maker:
    whole = [(f"{name}.npy", member(array)) for name, array in arrays().items()]
    return packed([*whole, *more], **options)  # type: ignore[arg-type]


def _link() -> zipfile.ZipInfo:
    info = zipfile.ZipInfo("seeds.npy")
    info.create_system, info.external_attr = 3, 0o120777 << 16
    return info


def _claim_size(size: int) -> Callable[[bytearray], object]:
    """Change what the list of members says of the size of the third."""

    def change(data: bytearray) -> None:
        at = -1
        for _ in range(3):
            at = data.index(b"PK\1\2", at + 1)
        data[at + 24 : at + 28] = struct.pack("<I", size)

    return change


_OBJECTS = np.array([Payload()], dtype=object)
TABLES: dict[str, Maker] = {
    "objects": table(scores=_OBJECTS),
    "a space of objects": table(space=np.array(Payload(), dtype=object)),
    "a member that is a pickle": table(scores=pickle.dumps(Payload())),
    "a header that is a call": table(scores=claiming("__import__('os').system('touch pwned')")),
    "a header of 2 GiB": table(scores=b"\x93NUMPY\2\0" + struct.pack("<I", HUGE - 1) + bytes(9)),
    "a header of 60,000": table(scores=claiming("{" + " " * 60_000 + "}")),
    "a deep header": table(scores=claiming("(" * 1_900 + ")" * 1_900, version=2)),
    "a header of format 3": table(scores=b"\x93NUMPY\3\0" + bytes(100)),
    "a shape of 10^9": table(scores=shaped("(1000000000, 1, 3)")),
    "a shape of 10^9 and 0": table(scores=shaped("(1000000000, 1000000000, 0)")),
    "a shape of 10^30": table(scores=shaped(f"({10**30},)")),
    "a shape below 0": table(scores=shaped("(-1, -1, -6)")),
    "a shape of text": table(scores=shaped("('a',)")),
    "40 sides": table(scores=shaped(str((1,) * 40))),
    "more than is there": table(scores=shaped("(200, 1, 3)")),
    "less than is there": table(scores=shaped("(1, 1, 3)")),
    "complex scores": table(scores=np.zeros((2, 1, 3), dtype=complex)),
    "scores that are dates": table(scores=np.zeros((2, 1, 3), dtype="M8[s]")),
    "scores that are text": table(scores=np.full((2, 1, 3), "0.5")),
    "scores of fields": table(scores=np.zeros((2, 1, 3), dtype=[("a", "f8"), ("b", "f8")])),
    "entries of 1 GiB": table(space=shaped("()", f"'<U{1 << 28}'")),
    "a deep space": table(space=np.array('{"x": ' + "[" * 50_000)),
    "a space of many": table(space=np.array([arrays()["space"]] * 2)),
    "a space of NaN": table(space=np.array('{"x": {"type": "float", "low": NaN, "high": 1}}')),
    "infinite scores": table(scores=np.full((2, 1, 3), np.inf)),
    "seconds below 0": table(seconds=-np.ones((2, 1, 3))),
    "settings that are nowhere": table(configs=np.full((2, 1), np.nan)),
    **{f"no {name}": table(**{name: None}) for name in arrays()},
    "48 MB of zeros in 50 kB": table(scores=member(np.zeros((2, 1000, 3000)))),
    "a size that is a lie": by_bytes(_claim_size(0xFFFFFFF0), table()),
    "a size that is too small": by_bytes(_claim_size(10), table()),
    "a member above": with_more(("../../pwned.npy", b"x")),
    "a member at the root": with_more(("/tmp/pwned.npy", b"x")),
    "a member of another system": with_more(("C:\\pwned.npy", b"x")),
    "a member that is a link": with_more((_link(), b"/etc/passwd")),
    "a member that is a folder": with_more(("seeds.npy/", b"")),
    "a member with a NUL": with_more(("seeds.npy\0.txt", b"x")),
    "a member that runs": with_more(("__init__.py", b"import os")),
    "a member twice": packed([("space.npy", member(a)) for a in [arrays()["space"]] * 2]),
    "70,000 members": packed([(str(i), b"") for i in range(70_000)], zipfile.ZIP_STORED),
    "a comment": with_more(comment=b"PK\5\6" + bytes(18)),
    "bzip2": with_more(how=zipfile.ZIP_BZIP2),
    "lzma": with_more(how=zipfile.ZIP_LZMA),
    "encrypted": by_bytes(lambda data: data.__setitem__(data.index(b"PK\1\2") + 8, 1), table()),
    "a wrong sum": by_bytes(lambda data: data.__setitem__(60, data[60] ^ 255), table()),
    "the end of a larger zip": by_bytes(
        lambda data: bytes(data[:-22]) + b"PK\6\7" + bytes(16) + bytes(data[-22:]), table()
    ),
    "a member list of 4 GiB": by_bytes(
        lambda data: data.__setitem__(slice(-10, -6), b"\xff" * 4), table()
    ),
    "a deep card": card(holding(DEEP)),
    "a card of NaN": card(holding('{"about": NaN}')),
    "a card that is a list": card(holding("[]")),
    "a card of 2 MiB": card(holding(json.dumps({"about": "a" * (2 << 20)}))),
    "a card of no text": card(holding(b"\xff\xfe\xfa")),
    "a card of another": card(holding('{"sha256": "00"}')),
    "a card that is a link": card(lambda path: path.symlink_to("/etc/passwd")),
    "a card that is a pipe": card(os.mkfifo),
    **NO_FILES,
}


# -- networks, checkpoints, and what is kept in JSON -----------------------------------------------


def whole(name: str, values: list[int]) -> bytes:
    """A tensor of 64-bit integers."""
    data = np.asarray(values, dtype="<i8").tobytes()
    return put(1, len(values)) + put(2, 7) + put(8, name) + put(9, data)


_PORTS = ([port("x_cat", INT32, 1), port("x_cont", FLOAT, 8)], [port("output", FLOAT, 6)])


def network(nodes: list[bytes], tensors: list[bytes]) -> Maker:
    return holding(model(nodes, tensors, *_PORTS))


def good_network(path: Path) -> None:
    linear = np.zeros((8, 6))
    linear[0, 0] = 1.0
    holding(quadratic(linear, np.zeros((8, 6)), np.full(6, 50.0)))(path)


_ZERO = tensor("w", np.zeros((8, 6)))
_LINE = node("MatMul", ["x_cont", "w"], "output")
_ATTRIBUTED = [
    node("Identity", ["x_cont"], "output") + put(5, put(1, "a") + put(number, b"") + put(20, 5))
    for number in (6, 11, 22)
]
NETWORKS: dict[str, Maker] = {
    "numbers in another file": network(
        [_LINE],
        [
            put(1, 8)
            + put(1, 6)
            + put(2, 1)
            + put(8, "w")
            + put(14, 1)
            + put(13, put(1, "location") + put(2, "../../../etc/passwd"))
        ],
    ),
    "numbers elsewhere": network([_LINE], [put(1, 8) + put(1, 6) + put(8, "w") + put(14, 1)]),
    "a tensor of 10^9": network([_LINE], [put(1, 10**9) + put(1, 6) + put(2, 1) + put(8, "w")]),
    "a tensor below 0": network([_LINE], [put(1, (1 << 64) - 1) + put(2, 1) + put(8, "w")]),
    "80 GB of ones": network(
        [node("ConstantOfShape", ["n"], "big"), node("ReduceSum", ["big"], "output")],
        [whole("n", [10_000_000_000])],
    ),
    "a row 100 million times": network(
        [node("Expand", ["x_cont", "n"], "big"), node("ReduceSum", ["big"], "output")],
        [whole("n", [100_000_000, 1, 8])],
    ),
    "a row as often again": network(
        [node("Tile", ["x_cont", "n"], "big"), node("ReduceSum", ["big"], "output")],
        [whole("n", [100_000_000, 1])],
    ),
    "a range": network([node("Range", ["a", "b", "c"], "output")], [whole("a", [1])]),
    "a loop": network([node("Loop", ["n"], "output")], [whole("n", [1 << 62])]),
    "a graph in a node": network([_ATTRIBUTED[0]], []),
    "graphs in a node": network([_ATTRIBUTED[1]], []),
    "a sparse tensor in a node": network([_ATTRIBUTED[2]], []),
    "an operator of one's own": network([_LINE + put(7, "evil.ops")], [_ZERO]),
    "an operator that is none": network([node("os.system", ["x_cont"], "output")], []),
    "functions": holding(model([_LINE], [_ZERO], *_PORTS) + put(25, put(1, "f"))),
    "a training": holding(model([_LINE], [_ZERO], *_PORTS) + put(20, b"")),
    "two graphs": holding(model([_LINE], [_ZERO], *_PORTS) * 2),
    "no graph": holding(put(1, 8)),
    "a graph that is a number": holding(put(7, 8)),
    "a million parts": holding(put(7, put(1, b"") * 1_000_000)),
    "a part that ends late": holding(put(7, b"")[:1] + b"\xff\xff\xff\x7f"),
    "a number without an end": holding(b"\xff" * 100),
    "8 MiB of notes": holding(model([_LINE], [_ZERO], *_PORTS) + put(6, bytes(8 << 20))),
    "predicts NaN": network([_LINE], [tensor("w", np.full((8, 6), np.nan))]),
    "other inputs": holding(model([_LINE], [_ZERO], [port("x_cont", FLOAT, 8)], _PORTS[1])),
    "cut short": by_bytes(lambda data: bytes(data[: len(data) // 2]), good_network),
    **NO_FILES,
}


def tensors(header: object, content: bytes = bytes(64), length: int | None = None) -> Maker:
    """A safetensors file that says of itself what it likes."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return holding(struct.pack("<Q", len(text) if length is None else length) + text + content)


def _one(**changes: object) -> dict[str, object]:
    return {"a": {"dtype": "F32", "shape": [4, 4], "data_offsets": [0, 64], **changes}}


def good_checkpoint(path: Path) -> None:
    tensors(_one())(path)


CHECKPOINTS: dict[str, Maker] = {
    "a header of 2^63": tensors(_one(), length=1 << 63),
    "a header of 90 MB": tensors(_one(), length=90_000_000),
    "a header of nothing": tensors(b""),
    "a deep header": tensors(DEEP.encode()),
    "a header of no text": tensors(b'{"\xff": 1}'),
    "a header that is a list": tensors([]),
    "a shape of 10^9": tensors(_one(shape=[10**9, 10**9, 10**9])),
    "a shape of 2^64": tensors(_one(shape=[1 << 64])),
    "a shape below 0": tensors(_one(shape=[-4, -4])),
    "more than is there": tensors(_one(data_offsets=[0, 1 << 40], shape=[1 << 38])),
    "an offset below 0": tensors(_one(data_offsets=[-64, 0])),
    "the end before the start": tensors(_one(data_offsets=[64, 0])),
    "an odd dtype": tensors(_one(dtype="pickle")),
    "overlap": tensors({**_one(), "b": _one()["a"]}),
    "a hole": tensors({"a": {"dtype": "F32", "shape": [4], "data_offsets": [16, 32]}}),
    "more behind": tensors(_one(), bytes(128)),
    **NO_FILES,
}


def cached(**changes: object) -> Maker:
    """Layouts that were measured, one of which says this."""
    layout = {"workers": 1, "threads": 1, "width": 1, "bf16": False}
    entry = {"layout": {**layout, **changes}, "step_ns": changes.pop("step_ns", 1)}
    entry["layout"].pop("step_ns", None)  # type: ignore[union-attr]
    return holding(json.dumps({"key": [entry]}))


CACHES: dict[str, Maker] = {
    "a deep one": holding(DEEP),
    "a billion workers": cached(workers=10**9),
    "workers below 0": cached(workers=-1),
    "workers of text": cached(workers="1; touch pwned"),
    "a switch of text": cached(bf16="yes"),
    "a step of NaN": cached(step_ns=float("nan")),
    "a step of 0": cached(step_ns=0),
    "a field too many": cached(command="touch pwned"),
    "a list": holding("[]"),
    "2 MiB": holding(json.dumps({"key": [], "more": "a" * (2 << 20)})),
    **NO_FILES,
}
SAMPLES: dict[str, Maker] = {
    "objects": packed([("train_images.npy", member(_OBJECTS)), ("train_labels.npy", b"")]),
    "labels of text": packed(
        [
            ("train_images.npy", member(np.zeros((2, 4, 4), dtype=np.uint8))),
            ("train_labels.npy", member(np.array(["a", "b"]))),
        ]
    ),
    "a label of 200": packed(
        [
            ("train_images.npy", member(np.zeros((2, 4, 4), dtype=np.uint8))),
            ("train_labels.npy", member(np.array([0, 200], dtype=np.uint8))),
        ]
    ),
    "no labels": packed([("train_images.npy", member(np.zeros((2, 4, 4), dtype=np.uint8)))]),
    "10^9 images": packed(
        [("train_images.npy", shaped("(1000000000, 28, 28)", "'|u1'")), ("train_labels.npy", b"")]
    ),
    **NO_FILES,
}

# The file's name, every trick, and one that is good.
KINDS: dict[str, tuple[str, dict[str, Maker], Maker]] = {
    "study": ("study.sqlite", STUDIES, good_study),
    "landscape": ("table.npz", TABLES, good_table),
    "network": ("task.onnx", NETWORKS, good_network),
    "checkpoint": ("a.safetensors", CHECKPOINTS, good_checkpoint),
    "cache": ("layouts.json", CACHES, cached()),
    "sample": ("sample.npz", SAMPLES, lambda path: None),
}


def sha256_of(path: Path) -> str:
    """What a study would say that the hash is, whoever wrote both."""
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.stat().st_size < HUGE else "0"
