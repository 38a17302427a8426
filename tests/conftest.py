"""Threads cost more than they give on tiny tensors; set before torch is imported. Verdicts are kept in a folder of the
session's own: a bomb whose verdict was read back would prove nothing."""

import atexit
import os
import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import settings

# A worker of pytest-xdist is given a width of 80, which a console that is made at an import would keep.
os.environ.pop("COLUMNS", None)

os.environ.setdefault("OMP_NUM_THREADS", "1")
cached = os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"), "posttrain"
models = Path(os.environ.get("POSTTRAIN_CACHE", Path(*cached))) / "models"
models.mkdir(parents=True, exist_ok=True)
own = Path(tempfile.mkdtemp(prefix="posttrain-"))
(own / "models").symlink_to(models)
os.environ["POSTTRAIN_CACHE"] = str(own)
atexit.register(shutil.rmtree, own, ignore_errors=True)
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

# A busy machine is no counterexample.
settings.register_profile("calm", deadline=None)
settings.load_profile("calm")

LONGEST = (
    "loops/test_several_ranks.py",
    "loops/test_resume.py",
    "hybrid/test_grid.py",
    "hybrid/test_transfer_vllm.py",
    "hybrid/test_grid.py",
    "rollout/test_server_vllm.py",
    "learner/test_ranks.py",
    "rollout/test_sync.py",
    "algorithms/test_gradients.py",
    "loops/test_rows_on_ranks.py",
    "algorithms/test_learns.py",
    "loops/test_online.py",
    "loops/test_companions.py",
    "verifiers/test_sandbox_attacks.py",
)
"""Files that take a minute or more: begun first, so that several workers end together."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A file stays with one worker, which makes its fixtures once. So do the files that count what runs on the whole
    machine: what one of them kills would be another one's left-over.
    """
    place = {name: number for number, name in enumerate(LONGEST)}
    files = {item: item.path.relative_to(Path(__file__).parent).as_posix() for item in items}
    for item, file in files.items():
        of_programs = file.startswith(("verifiers/test_sandbox", "verifiers/test_code"))
        item.add_marker(pytest.mark.xdist_group("programs" if of_programs else file))
    items.sort(key=lambda item: place.get(files[item], len(place)))
