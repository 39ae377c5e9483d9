"""A finished run of the small demo, and makers of more."""

import pytest
from running import SMALL, Workflow


@pytest.fixture(scope="session")
def new_workflow(tmp_path_factory):
    """Maker of the small demo in a new folder."""
    return lambda name: Workflow(tmp_path_factory.mktemp(name), SMALL)


@pytest.fixture(scope="session")
def finished(new_workflow) -> Workflow:
    """The small demo, run once from download to report; its logs list what was imported."""
    workflow = new_workflow("workflow")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPROFILEIMPORTTIME", "1")
        workflow.run("results/shapes_9/eval.json", "results/shapes_9/report.html")
    return workflow
