"""One SLURM for the session."""

import pytest
from cluster import Cluster, missing


@pytest.fixture(scope="session")
def cluster(tmp_path_factory):
    """Two nodes on the loopback for all tests of the session."""
    if missing():
        pytest.skip(missing())
    started = Cluster(tmp_path_factory.mktemp("slurm"))
    try:
        started.start()
        yield started
    finally:
        started.stop()
