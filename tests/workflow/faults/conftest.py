"""One finished run, built as far as a test needs it, and the table that the tests fill."""

import json
from pathlib import Path

import pytest
from scene import Scene, copy_repository


def pytest_addoption(parser):
    parser.addoption("--fault-table", type=Path, help="JSON file that takes what became of each rule under each fault")


@pytest.fixture(scope="session")
def repository(tmp_path_factory):
    return copy_repository(tmp_path_factory.mktemp("repository"))


@pytest.fixture(scope="session")
def whole(tmp_path_factory, repository):
    """A run that nothing disturbs."""
    return Scene(tmp_path_factory.mktemp("whole"), repository)


@pytest.fixture(scope="session")
def table(request):
    """Adds a cell to the table, if one was asked for; cells of earlier runs stay."""
    path = request.config.getoption("--fault-table", default=None)

    def add(rule: str, fault: str, **facts) -> None:
        if path is not None:
            cells = json.loads(path.read_text()) if path.exists() else {}
            cells.setdefault(rule, {})[fault] = facts
            path.write_text(json.dumps(cells, indent=1) + "\n")

    return add


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item, call):
    """Tell the fixtures of a test how it ended."""
    outcome = yield
    if call.when == "call" and "OUTCOME" in vars(item.module):
        item.stash[item.module.OUTCOME] = outcome.get_result().outcome
