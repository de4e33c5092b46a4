import os

# Before NumPy and PyTorch read it, and for the processes that tests start: the suite's matrices are
# small, and two pytest workers on two cores have none left for threads that wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest

from tests.small_data import write_small_data

LONGEST = (
    *("test_docs.py", "scripts/test_tune_training.py", "scripts/test_automl.py"),
    *("scripts/test_tune.py", "torture/test_torture.py", "tuner/workers/test_cluster.py"),
    *("tuner/page/test_browser.py", "tuner/test_searchers.py", "tuner/test_fidelity_contract.py"),
    *("scripts/test_lab.py", "scripts/test_command.py", "scripts/test_record.py"),
    *("models/test_training_runner.py", "tuner/workers/test_functions.py"),
    *("models/test_packed_runner.py", "tuner/test_verdict.py", "tuner/test_stop_rule.py"),
)


def pytest_addoption(parser):
    parser.addoption("--nightly", action="store_true", help="with the tests marked nightly")


def pytest_collection_modifyitems(config, items):
    """The longest files first: two workers that take file after file then end at the same time."""
    if not config.getoption("--nightly"):
        left_out = [item for item in items if item.get_closest_marker("nightly")]
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]
    rank = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: rank.get(item.nodeid.split("::")[0].removeprefix("tests/"), 99))


@pytest.fixture(scope="session")
def small_data(tmp_path_factory):
    """A data root whose Fashion-MNIST is 1,200 + 300 real images, in the packed idx layout."""
    return write_small_data(tmp_path_factory.mktemp("data"))
