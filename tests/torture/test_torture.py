"""A short version of every campaign, and what its numbers mean."""

import json
from unittest import SkipTest

import pytest
from typer.testing import CliRunner

from scripts import torture
from tests.torture.campaign import Campaign, Found
from tests.torture.registry import CAMPAIGNS
from tests.torture.spending import Study
from tuner.seeding import derive_seed

SEED = 0


@pytest.mark.parametrize(
    "campaign", [c for c in CAMPAIGNS if c.short], ids=lambda campaign: campaign.name
)
def test_a_promise_holds(campaign):
    found = campaign.run(campaign.short, SEED)
    assert found.n >= campaign.short
    assert not found.failures, found.failures[:3]


def test_no_failure_in_n_bounds_the_rate_at_three_in_n():
    assert Found(1000).bound == pytest.approx(1 - 0.05 ** (1 / 1000))  # by hand: (1 - p)^n = 0.05
    assert Found(1000).bound == pytest.approx(3 / 1000, rel=0.01)
    assert Found(2, ("a", "b")).bound == 1.0
    assert 0.05 < Found(20, ("once",)).bound < 0.25


def test_the_command_keeps_what_it_does_not_run_and_says_what_failed(monkeypatch, tmp_path):
    def fine(n, seed):
        return Found(n)

    def broken(n, seed):
        return Found(n, ("it was lost",))

    def impossible(n, seed):
        raise SkipTest("there is no compiler")

    campaigns = [
        Campaign("P9", "a", fine, 100, 1),
        Campaign("P2", "b", broken, 50, 1),
        Campaign("P2", "c", impossible, 50, 1),
    ]
    monkeypatch.setattr(torture, "CAMPAIGNS", campaigns)
    runner = CliRunner()
    assert runner.invoke(torture.app, ["--only", "P9", "--out", str(tmp_path)]).exit_code == 0
    found = runner.invoke(
        torture.app, ["--only", "P2", "--scale", "0.1", "--out", str(tmp_path), "--seed", "3"]
    )
    assert found.exit_code == 1
    assert "it was lost" in found.output
    content = json.loads((tmp_path / "torture.json").read_text())
    assert list(content["campaigns"]) == ["P2-broken", "P2-impossible", "P9-fine"]
    assert [entry["n"] for entry in content["campaigns"].values()] == [5, 0, 100]
    assert content["seeds"] == [0, 3]
    assert content["campaigns"]["P2-impossible"]["notes"] == {"skipped": "there is no compiler"}
    assert [row[2:5] for row in content["tables"][0]["rows"]] == [
        ["5 of 50", "1", f"{Found(5, ('x',)).bound:.2%}"],
        ["0 of 50", "0", "–"],
        ["100 of 100", "0", f"{Found(100).bound:.2%}"],
    ]
    wrong = runner.invoke(torture.app, ["--only", "P99", "--out", str(tmp_path)])
    assert wrong.exit_code == 2


@pytest.mark.parametrize("number", [88, 138, 450, 665])
def test_studies_that_once_overspent_do_so_no_more(tmp_path, number):
    """A driver that stalled while it gave an order, and one killed past its deadline."""
    assert Study(derive_seed(0, "budgets", number), tmp_path).go() == []
