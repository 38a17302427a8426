"""A whole run whose engine is a process of its own that is killed at random moments, prints JSON.

`tests.loops.lost_engines RECIPE SEED KILLS`. The engine draws a response the same, bit for bit, whenever it is asked.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

from posttrain.build import wire
from posttrain.build.check import check
from posttrain.build.reading import read
from posttrain.hybrid import Hybrid
from posttrain.loops.online import online
from posttrain.loops.progress import Progress
from posttrain.metrics import RunFolder
from posttrain.recipe import dump, load
from posttrain.rollout.server import ServerOptions
from posttrain.rollout.server.sampler import ServerSampler
from posttrain.rollout.vllm import EngineOptions
from posttrain.world import PHASE_FILE, note_phase

PACE = 0.05
"""Seconds a response takes at least: a run takes longer than all its engines live."""
LONGEST = 0.4
"""Seconds that an engine lives at most, where it is to be killed, from when it holds weights."""


class Killer(threading.Thread):
    """Kills the engine so many times, each time at another moment: seconds after it was given its weights, or while it
    starts.
    """

    def __init__(self, sampler: ServerSampler, seed: int, kills: int) -> None:
        super().__init__(daemon=True)
        self.sampler, self.dice, self.kills = sampler, random.Random(seed), kills
        self.phases: list[str] = []
        self.over = threading.Event()

    def run(self) -> None:
        (replica,) = self.sampler.replicas
        server, victim = replica.server, None
        assert server is not None
        while len(self.phases) < self.kills and not self.over.is_set():
            starting = len(self.phases) % 2 == 1
            while not self.over.wait(0.005):
                process = server.process
                if process is not None and process is not victim and (starting or replica.version is not None):
                    break
            if self.over.wait(self.dice.uniform(0.0, LONGEST)) or process is None:
                return
            self.phases.append(Path(os.environ[PHASE_FILE]).read_text() + " at its start" * (replica.version is None))
            victim = process
            os.kill(process.pid, signal.SIGKILL)


def main(path: str, seed: str, kills: str) -> None:
    checked = check(load(path))
    recipe = checked.recipe
    folder = RunFolder(recipe.run.folder)
    folder.open(dump(recipe), device="cpu")
    os.environ[PHASE_FILE], os.environ["PLAIN_ENGINE"] = str(folder.path / "phase"), str(PACE)
    note_phase("starting")
    checkpoint = wire.open_checkpoint(recipe)
    data = read(checked, checkpoint)
    with wire.wired_online(checked, folder, [], data, checkpoint) as parts:
        engine = EngineOptions("cpu", "float32", data.max_length, recipe.hardware)
        options = ServerOptions(
            logs=folder.path / "servers", module="tests.rollout.plain_engine", restarts=int(kills), bucket=20_000
        )
        sampler = ServerSampler(checkpoint.folder, checkpoint.tokenizer, engine, options)
        killer = Killer(sampler, int(seed), int(kills))
        killer.start()
        learner = parts.progress.learner
        hybrid = Hybrid(learner, sampler)
        progress = Progress(folder, [], recipe.run, learner, parts.progress.keepers, (), hybrid.take_report)
        online(replace(parts, engine=hybrid, progress=progress))
        killer.over.set()
        killer.join()
        found: dict[str, Any] = {"phases": killer.phases, "restarts": sampler.restarts}
        sampler.close()
    print(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
