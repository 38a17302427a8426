"""What survives a kill: no half file, no lock held by the dead."""

import os
import signal
import subprocess
import sys

import pytest

from posttrain.errors import PosttrainError
from posttrain.metrics import RunFolder

RECIPE = "run: {steps: 10, seed: 3}\n"


@pytest.fixture
def folder(tmp_path):
    made = RunFolder(tmp_path / "run")
    made.open(RECIPE)
    return made


WRITER = """
import sys, time
from posttrain.metrics import RunFolder
def records():
    for i in range(10**9):
        if i == 2000:
            print("writing", flush=True)
        yield {"i": i, "text": "x" * 1000}
RunFolder(sys.argv[1]).write_rollouts("step", int(sys.argv[2]), records())
"""


@pytest.mark.parametrize("before", [True, False])
def test_a_writer_killed_in_the_middle_leaves_no_half_file(folder, before):
    if before:
        folder.write_rollouts("step", 1, [{"i": 0}])
    writer = subprocess.Popen([sys.executable, "-c", WRITER, str(folder.path), "1"], stdout=subprocess.PIPE)
    assert writer.stdout.readline() == b"writing\n"
    writer.send_signal(signal.SIGKILL)
    writer.communicate()
    assert len(list((folder.path / "rollouts").glob(".*.partial"))) == 1
    assert folder.rollout_steps() == ([1] if before else [])
    assert not before or folder.read_rollouts("step", 1) == [{"i": 0}]
    folder.open(RECIPE)
    assert [p.name for p in (folder.path / "rollouts").iterdir()] == (["step-000001.jsonl"] if before else [])


HOLDER = """
import sys, time
from posttrain.metrics import RunFolder
with RunFolder(sys.argv[1]).lock():
    print("held", flush=True)
    time.sleep(60)
"""


def test_two_runs_do_not_share_a_folder_and_a_killed_one_frees_it(tmp_path):
    folder = RunFolder(tmp_path / "run")
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, str(folder.path)], stdout=subprocess.PIPE)
    assert holder.stdout.readline() == b"held\n"
    with pytest.raises(PosttrainError, match=rf"in use by another run \(pid {holder.pid}\)"), folder.lock():
        pass
    holder.kill()
    holder.communicate()
    with folder.lock():
        assert folder.open(RECIPE) is False
        with pytest.raises(PosttrainError, match=rf"in use by this process \(pid {os.getpid()}\)"), folder.lock():
            pass
    with folder.lock():
        pass


def test_the_lock_is_not_inherited_by_a_process_that_outlives_the_run(tmp_path):
    program = (
        "import os, sys, time\nfrom posttrain.metrics import RunFolder\n"
        "with RunFolder(sys.argv[1]).lock():\n"
        "    if os.fork() == 0:\n        print(os.getpid(), flush=True); time.sleep(60)\n"
        "    time.sleep(60)\n"
    )
    run = subprocess.Popen([sys.executable, "-c", program, str(tmp_path / "run")], stdout=subprocess.PIPE)
    orphan = int(run.stdout.readline())
    run.kill()
    run.wait()
    try:
        with RunFolder(tmp_path / "run").lock():
            os.kill(orphan, 0)
    finally:
        os.kill(orphan, signal.SIGKILL)
        run.stdout.close()
