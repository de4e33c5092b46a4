"""Failpoints: what the variable may say, and that they are inert without it."""

import os
import signal
import subprocess
import sys

import pytest

from tuner.failpoints import VARIABLE, Failpoint, Place, reach, watch

CODE = "from tuner.failpoints import Place, reach\nfor place in Place: reach(place); reach(place)"


def run(text, code=CODE):
    environment = {k: v for k, v in os.environ.items() if k != VARIABLE}
    if text is not None:
        environment[VARIABLE] = text
    return subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True
    )


def test_without_the_variable_nothing_happens():
    assert run(None).returncode == run("").returncode == 0


def test_the_variable_kills_at_its_place_and_visit_and_at_no_other():
    counting = (
        "from tuner.failpoints import Place, reach\nfor i in range(5):\n    print(i, flush=True)"
    )
    struck = run("send-after:3:kill", f"{counting}\n    reach(Place.SEND_AFTER)")
    assert struck.returncode == -signal.SIGKILL
    assert struck.stdout.split() == ["0", "1", "2"]
    assert run("send-after:3:kill", f"{counting}\n    reach(Place.SEND_BEFORE)").returncode == 0


@pytest.mark.parametrize(
    ("action", "words"), [("ENOSPC", "No space left"), ("EIO", "Input/output")]
)
def test_the_disk_refuses_once(action, words):
    struck = Failpoint.parse(f"file-written:2:{action}")
    struck(Place.FILE_WRITTEN)
    struck(Place.FILE_OPENED)
    with pytest.raises(OSError, match=words):
        struck(Place.FILE_WRITTEN)
    struck(Place.FILE_WRITTEN)


@pytest.mark.parametrize(
    "text",
    [
        *("commit-before", "commit-before:1", "commit-before:1:kil", "commit:1:kill", ":1:kill"),
        *("commit-before:0:kill", "commit-before:-1:kill", "commit-before:x:kill"),
        *("commit-before::kill", "commit-before:1:kill:", "commit-before:²:kill", "1:2:3"),
    ],
)
def test_a_wrong_value_is_said_in_one_line(text):
    with pytest.raises(ValueError, match="PLACE:VISIT:ACTION") as caught:
        Failpoint.parse(text)
    assert "\n" not in str(caught.value)
    assert repr(text) in str(caught.value)


def test_a_wrong_variable_is_noticed_at_the_first_place():
    struck = run("commit-befor:1:kill")
    assert struck.returncode == 1
    assert f"ValueError: {VARIABLE} is PLACE:VISIT:ACTION" in struck.stderr


def test_who_watches_sees_every_visit():
    seen = []
    watch(seen.append)
    try:
        reach(Place.SEND_AFTER)
        reach(Place.COMMIT_AFTER)
    finally:
        watch(None)
    reach(Place.SEND_AFTER)
    assert seen == [Place.SEND_AFTER, Place.COMMIT_AFTER]
