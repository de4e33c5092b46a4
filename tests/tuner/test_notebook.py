"""What a notebook shows: the right numbers, and of hostile names nothing but text."""

import base64
import json
import xml.etree.ElementTree as ET
from collections import Counter
from html.parser import HTMLParser

import pytest

from tests.torture.hostile import hostile_names
from tuner import Choice, Float, Study
from tuner.notebook import RaceFolder

PNG = b"\x89PNG\r\n\x1a\n" + b"rest"
RUN = {"seed": 0, "trials": 3, "best_score": 0.875, "test_score": None, "minutes_spent": 1.0}


def parse(shown):
    return ET.fromstring(shown)  # noqa: S314, of our own making


class Elements(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.found, self.texts, self._depth = Counter(), [], 0
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.found[tag] += 1
        self.found.update(f"{tag} {name}" for name, _ in attrs)

    def handle_data(self, data):
        self.texts.append(data)


def study_of(names):
    knob, more, *options = names
    study = Study({knob: Choice(tuple(options)), more: Float(0, 1)}, "random")
    for number, option in enumerate(options):
        study.add({knob: option, more: 0.5}, score=number / 100)
    study.tell(study.ask().number, state="infeasible", reason=names[-1])
    return study


def test_a_study_shows_its_best_its_line_and_its_last_trials():
    study = Study({"x": Float(0, 1)}, "random", mode="min")
    for score in (0.5, 0.75, 0.25):
        study.tell(study.ask().number, score, minutes=1)
    shown = study._repr_html_()
    assert "best: 0.25 (trial 2)" in shown
    assert "random, 3 trials, 3 device minutes" in shown
    assert Elements(shown).found["tr"] == 2 + 4  # two tables with a header each
    root = parse(shown)  # well-formed throughout
    (path,) = root.iter("path")
    # The first score after a minute, at one end of the scale; the best after three, at the other.
    assert path.get("d") == "M160.0 4.0H480.0V116.0H480"


@pytest.mark.parametrize("trials", [0, 1])
def test_a_study_with_little_in_it_is_shown(trials):
    study = Study({"x": Float(0, 1)}, "random")
    for _ in range(trials):
        study.tell(study.ask().number, 0.5)
    assert parse(study._repr_html_()).tag == "div"


def test_only_the_last_trials_are_listed():
    study = Study({"x": Float(0, 1)}, "random")
    for _ in range(30):
        study.tell(study.ask().number, 0.5)
    assert Elements(study._repr_html_()).found["tr"] == 2 + 11


def test_hostile_names_are_text():
    plain = Elements(study_of([f"name {i}" for i in range(12)])._repr_html_()).found
    names = hostile_names(600, 3)
    for start in range(0, len(names), 12):
        shown = study_of(names[start : start + 12])._repr_html_()
        assert Elements(shown).found == plain
        assert parse(shown).tag == "div"


def race(folder, text="nothing follows", **more):
    folder.mkdir(exist_ok=True)
    runs = [{**RUN, "searcher": "bayes", **more}, {**RUN, "searcher": "random"}]
    summary = {"runs": runs, "verdict": {"text": text}}
    (folder / "summary.json").write_text(json.dumps(summary))
    (folder / "race.png").write_bytes(PNG)
    return RaceFolder(folder)


def test_a_race_shows_its_table_its_verdict_and_its_picture(tmp_path):
    shown = race(tmp_path / "mine")._repr_html_()
    for text in ("bayes", "0.875", "nothing follows"):
        assert text in shown
    assert f"data:image/png;base64,{base64.b64encode(PNG).decode()}" in shown
    (tmp_path / "mine" / "race.png").unlink()
    assert "<img" not in RaceFolder(tmp_path / "mine")._repr_html_()


def test_a_real_race_is_shown(race_folder):
    found = Elements(RaceFolder(str(race_folder))._repr_html_())
    assert found.found["tr"] == 5
    assert found.found["img"] == 1


def test_hostile_names_in_a_race_are_text(tmp_path):
    plain = Elements(race(tmp_path / "r")._repr_html_()).found
    for name in hostile_names(200, 5):
        shown = race(tmp_path / "r", text=name, searcher=name)._repr_html_()
        assert Elements(shown).found == plain
        shown = race(tmp_path / "r", trials=[name], best_score={name: 1})._repr_html_()
        assert Elements(shown).found == plain


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "summary.json"),
        ("[]", "no summary"),
        ("{}", "no summary"),
        ('{"runs": [{}]}', "no summary"),
        ('{"runs": 3}', "no summary"),
        ("{", "summary.json"),
    ],
)
def test_no_summary_is_one_line(tmp_path, text, message):
    if text is not None:
        (tmp_path / "summary.json").write_text(text)
    with pytest.raises(ValueError, match=message):
        RaceFolder(tmp_path)


def test_what_is_no_picture_is_not_embedded(tmp_path):
    shown = race(tmp_path / "r")
    (tmp_path / "r" / "race.png").write_bytes(b"<svg onload=x>")
    with pytest.raises(ValueError, match="no picture"):
        shown._repr_html_()
    (tmp_path / "r" / "race.png").unlink()
    (tmp_path / "r" / "race.png").symlink_to("/etc/hostname")
    with pytest.raises(ValueError, match="symbolic link"):
        shown._repr_html_()
