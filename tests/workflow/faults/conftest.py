"""One finished run, built as far as a test needs it, a disk of its own, and the table that the tests fill."""

import json
import subprocess
from pathlib import Path

import pytest
from scene import CHANGES, Scene, copy_repository

OUTCOME = pytest.StashKey[str]()


def pytest_addoption(parser):
    parser.addoption("--fault-table", type=Path, help="JSON file that takes what became of each rule under each fault")


@pytest.fixture(scope="session")
def repository(tmp_path_factory):
    return copy_repository(tmp_path_factory.mktemp("repository"))


@pytest.fixture(scope="session")
def whole(tmp_path_factory, repository):
    """A run that nothing disturbs."""
    return Scene(tmp_path_factory.mktemp("whole"), repository, CHANGES)


@pytest.fixture(scope="session")
def table(request):
    """Adds a cell to the table, if one was asked for; cells of earlier runs stay."""
    path = request.config.getoption("--fault-table", default=None)

    def add(row: str, fault: str, **facts) -> None:
        if path is not None:
            cells = json.loads(path.read_text()) if path.exists() else {}
            cells.setdefault(row, {})[fault] = facts
            path.write_text(json.dumps(cells, indent=1) + "\n")

    return add


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item, call):
    """Tell the fixtures of a test how it ended."""
    outcome = yield
    if call.when == "call":
        item.stash[OUTCOME] = outcome.get_result().outcome


@pytest.fixture
def cell(request, table):
    """What became of a rule under the fault that a test is named after; the test adds what it cost."""
    row = getattr(request.module, "ROW", None) or request.node.callspec.params["rule"]
    fault, cost = request.function.__name__.removeprefix("test_"), {"lost_seconds": None}
    yield cost
    outcome = request.node.stash.get(OUTCOME, "failed")
    if cost["lost_seconds"] is not None:
        cost["lost_seconds"] = round(cost["lost_seconds"], 1)
    if outcome == "skipped" and fault == "input_cut_off":
        table(row, fault, skipped=True)
    elif outcome != "skipped":
        table(row, fault, survived=outcome == "passed", **cost)


@pytest.fixture
def small_disk(tmp_path):
    """A disk of its own, on which results and resources of a case lie."""
    disk, folder = tmp_path / "disk", tmp_path / "case"
    disk.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=400m", "tmpfs", disk], capture_output=True, check=False)
    if done.returncode:
        pytest.skip(f"cannot mount: {done.stderr.decode().strip()}")
    for name in ("results", "resources"):
        (disk / name).mkdir()
        (folder / name).mkdir(parents=True)
        subprocess.run(["mount", "--bind", disk / name, folder / name], check=True)
    yield disk
    for mounted in (folder / "results", folder / "resources", disk):
        subprocess.run(["umount", "--lazy", mounted], check=True)
