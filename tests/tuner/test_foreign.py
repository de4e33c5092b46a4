"""Caps and refusals for files of strangers; the corpus of tricks is in tests/torture."""

import ast
import os
import re
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from tests.torture.strangers import good_study, with_super_journal
from tuner.foreign import parse_json, read_capped, read_json
from tuner.reader import Snapshot
from tuner.store import Store

ROOT = Path(__file__).parents[2]


def test_a_file_is_read_up_to_its_cap_and_no_further(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(b"12345")
    assert read_capped(path, 5) == b"12345"
    with pytest.raises(ValueError, match="a has 5 bytes, and at most 4"):
        read_capped(path, 4)


def test_a_link_and_a_pipe_are_refused_without_waiting(tmp_path):
    (tmp_path / "real").write_bytes(b"1")
    (tmp_path / "link").symlink_to("real")
    os.mkfifo(tmp_path / "pipe")
    for name, why in (("link", "symbolic link"), ("pipe", "not a regular"), ("no", "cannot be")):
        with pytest.raises(ValueError, match=why):
            read_capped(tmp_path / name, 10)


def test_json_of_a_tuner_is_read():
    assert parse_json('{"a": [1, -2.5e3, true, null]}') == {"a": [1, -2500.0, True, None]}
    deep = "[" * 32 + "]" * 32
    assert str(parse_json(deep)) == deep
    assert parse_json("[" + "[]," * 1_000 + "[]]") == [[]] * 1_001  # wide is not deep


@pytest.mark.parametrize(
    "text",
    [
        *(
            "NaN",
            "-Infinity",
            "1e999",
            "9" * 301,
            "[" * 33 + "]" * 33,
            "[" * 10**5,
            "{",
            "",
            "{'a'}",
        ),
        '"' + "a" * (1 << 20) + '"',
        "[" + "[]," * 500_000 + "[]]",
    ],
)
def test_other_json_is_refused_in_words(text):
    with pytest.raises(ValueError, match=r"."):
        parse_json(text, 1 << 21 if text.startswith("[[]") else 1 << 20)


def test_a_json_file_is_refused_by_its_name(tmp_path):
    (tmp_path / "card.json").write_bytes(b"\xff")
    with pytest.raises(ValueError, match=r"card\.json"):
        read_json(tmp_path / "card.json")


def test_a_journal_that_names_a_file_deletes_it_through_sqlite_and_not_through_us(tmp_path):
    for reader in (Snapshot, lambda path: Store(path, create=False)):
        folder = tmp_path / reader.__name__.strip("<>")
        with_super_journal(folder / "study.sqlite")
        with pytest.raises(ValueError, match="names another journal"):
            reader(folder / "study.sqlite")
        assert (folder / "victim").exists()
    with closing(sqlite3.connect(folder / "study.sqlite")) as db:  # the trick is a real one
        db.execute("SELECT * FROM trial").fetchall()
    assert not (folder / "victim").exists()


FORBIDDEN_MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
FORBIDDEN_MODULES |= {"yaml", "xml", "telnetlib", "ftplib"}


@pytest.mark.parametrize("beside", [".lock", ".held"])
def test_a_driver_writes_through_no_link_that_lies_beside_a_study(tmp_path, beside):
    good_study(tmp_path / "study.sqlite")
    mine = tmp_path / "mine"
    mine.write_text("precious")
    other = tmp_path / f"study.sqlite{beside}"
    for put, why in (
        (lambda: other.symlink_to(mine), "link"),
        (lambda: os.mkfifo(other), "regular"),
    ):
        other.unlink()
        put()
        with pytest.raises(ValueError, match=rf"sqlite\{beside} is .*{why}"):
            Store(tmp_path / "study.sqlite", create=False)
        assert mine.read_text() == "precious"
    other.unlink()
    Store(tmp_path / "study.sqlite", create=False).close()


BUILT_IN = {"eval", "exec", "compile", "__import__"}
METHODS = {"system", "popen", "enable_load_extension", "load_extension", "executescript"}


def _sources():
    for layer in ("tuner", "models", "landscapes", "scripts"):
        yield from (ROOT / layer).rglob("*.py")


def _words_of(node):
    if isinstance(node, ast.Import):
        return {alias.name.partition(".")[0] for alias in node.names} & FORBIDDEN_MODULES
    if isinstance(node, ast.ImportFrom):
        return {(node.module or "").partition(".")[0]} & FORBIDDEN_MODULES
    if not isinstance(node, ast.Call):
        return set()
    name = getattr(node.func, "attr", getattr(node.func, "id", ""))
    owner = ast.unparse(node.func).rpartition(".")[0]
    found = {name} & (METHODS if owner else BUILT_IN)
    if owner == "platform":  # whose `system` is a name
        found.clear()
    if owner == "torch" and name in ("load", "compile"):
        found.add(f"torch.{name}")
    for keyword in node.keywords:
        is_true = isinstance(keyword.value, ast.Constant) and keyword.value.value is True
        if keyword.arg in ("shell", "allow_pickle") and is_true:
            found.add(keyword.arg)
    return found


def test_the_sources_unpickle_run_and_evaluate_nothing():
    hits = {
        f"{path.relative_to(ROOT)}:{node.lineno} {word}"
        for path in _sources()
        for node in ast.walk(ast.parse(path.read_text()))
        for word in _words_of(node)
    }
    # What makes the tables of an empty study in memory, from a constant; and what sends a user's
    # function to a worker, where the user says so, over their own socket.
    assert {re.sub(r":\d+", "", hit) for hit in hits} == {
        "tuner/schema.py executescript",
        "tuner/workers/functions.py cloudpickle",
    }


@pytest.mark.parametrize(
    "text",
    [
        *("import pickle", "from joblib import load", "eval(x)", "os.system(x)", "torch.load(f)"),
        *("np.load(f, allow_pickle=True)", "subprocess.run(x, shell=True)"),
    ],
)
def test_the_scan_finds_what_it_looks_for(text):
    assert any(_words_of(node) for node in ast.walk(ast.parse(text)))
