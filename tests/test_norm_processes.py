"""SyncBatchNorm in 2, 3 and 4 gloo processes: the checks of norm_worker.py, one launch each."""

import json

import pytest
import torch.multiprocessing as mp

from tests import norm_worker

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    """Outcome of every check by world size; a world is launched when first asked for."""
    launched = {}

    def of(world):
        if world not in launched:
            folder = tmp_path_factory.mktemp(f"world{world}")
            with pytest.MonkeyPatch.context() as patch:
                patch.setenv("OMP_NUM_THREADS", "1")
                crash = ""
                try:
                    mp.spawn(norm_worker.run, (world, str(folder)), world)
                except Exception as error:
                    crash = str(error)
            written = folder / "outcome.json"
            launched[world] = (json.loads(written.read_text()) if written.exists() else {}, crash)
        return launched[world]

    return of


@pytest.mark.parametrize(
    ("world", "name"),
    [(world, name) for world, checks in norm_worker.CHECKS.items() for name in checks],
)
def test_in_processes(world, name, outcomes):
    results, crash = outcomes(world)
    assert name in results, f"the processes ended before this check: {crash}"
    assert not results[name], results[name]
