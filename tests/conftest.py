"""Settings of the whole test suite: its order and its temporary files. MindSpore starts when it is first needed."""

from __future__ import annotations

import gc
import os
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

# The time of an example varies a lot on a busy machine, so pytest-timeout limits the whole test instead. The suite
# tries the same examples in each run, so that random cases never fail for a newcomer; `--hypothesis-profile explore`
# tries new ones.
settings.register_profile("suite", deadline=None, derandomize=True, database=None)
settings.register_profile("explore", deadline=None, max_examples=1000, print_blob=True)
settings.load_profile("suite")

HERE = Path(__file__).parent
pytest_plugins = ["demo_model"]
# Files that take more than ten seconds, the longest first. With two workers (scripts/test.sh) they start before all
# others: if a long file started last, one worker would wait for it without work.
LONG = (
    "models/test_goldens.py",
    "generation/test_demo_model.py",
    "parallel/test_shared_models.py",
    "launcher/test_ranks.py",
    "cli/test_cli_weights.py",
    "kernels/test_arm.py",
    "beam/test_beam_s_own_tests.py",
    "beam/test_beam_transform.py",
    "launcher/test_failures.py",
    "models/test_kernels_agree.py",
    "test_readme.py",
    "scripts/test_bench.py",
    "parallel/test_msrun.py",
    "beam/test_beam_processes.py",
    "mindformers_bridge/test_backend.py",
    "mindformers_bridge/test_bridge.py",
    "beam_pipeline/test_pipeline.py",
    "cli/test_cli_jobs.py",
    "cli/test_cli_bad_input.py",
)


def pytest_configure(config: pytest.Config) -> None:
    # A shell makes background jobs ignore Ctrl-C, and `nohup` makes them ignore hang-ups. Processes that tests start
    # and send signals to would inherit this.
    for number in (signal.SIGINT, signal.SIGHUP):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    # xdist would run files with few tests last, including some of the longest.
    if hasattr(config.option, "loadscopereorder"):
        config.option.loadscopereorder = False


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Run slow tests after the others; with several workers, start with the longest files."""
    ranks = {HERE / name: rank for rank, name in enumerate(LONG)}

    def order(item: pytest.Item) -> tuple[int, bool]:
        slow = item.get_closest_marker("slow") is not None
        return (ranks.get(item.path, len(LONG)) if hasattr(config, "workerinput") else 0, slow)

    items.sort(key=order)


@pytest.fixture(scope="module", autouse=True)
def frozen_heap() -> None:
    """Exclude what collected tests and earlier modules left from garbage collections.

    MindSpore collects garbage at every compilation, which would take half a second.
    """
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def temporary_files(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Delete what this process, or one that tests start, makes in the system's temporary directory, together with
    pytest's own files: Beam leaves locks and addresses there."""
    place = str(tmp_path_factory.mktemp("temporary"))
    before, variable = tempfile.tempdir, os.environ.get("TMPDIR")
    tempfile.tempdir = os.environ["TMPDIR"] = place
    yield
    tempfile.tempdir = before
    os.environ.pop("TMPDIR") if variable is None else os.environ.update(TMPDIR=variable)


@pytest.fixture(scope="session")
def graph_mode() -> None:
    """Set up MindSpore on the CPU in graph mode. Its import takes seconds, so no test module imports it at the top."""
    from inference.context import build_context

    build_context({"context": {"mode": 0, "device_target": "CPU"}})
