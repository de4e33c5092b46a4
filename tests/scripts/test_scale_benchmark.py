"""The scale benchmark counts what there is to decide, and checks the ledger of each replay."""

import json

from scripts.loop_runs import EPOCHS
from scripts.scale_benchmark import Crowd, measure, scale


def test_decisions_are_the_trials_begun_and_the_epochs(tmp_path):
    found = measure(Crowd("random", 7, 40))
    assert found["epochs"] == 40 * EPOCHS
    assert found["launches"] == 40
    assert found["decisions"] == 40 * EPOCHS + 40
    assert found["is_exact"]


def test_a_policy_that_promotes_decides_more_often():
    found = measure(Crowd("random+asha", 7, 60))
    assert found["launches"] > 60  # some were sent on
    assert found["epochs"] < 60 * EPOCHS
    assert found["is_exact"]


def test_the_table_has_a_row_for_each_entry_and_width(tmp_path):
    scale(most=10, rounds=1, bayes_rounds=1, repeats=1, out=tmp_path)
    (table,) = json.loads((tmp_path / "scale.json").read_text())["tables"]
    assert [(row[0], row[1]) for row in table["rows"]] == [
        (entry, slots) for slots in ("1", "10") for entry in ("random", "random+asha", "bayes")
    ]
    assert {row[-1] for row in table["rows"]} == {"exact"}
