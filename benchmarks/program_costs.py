"""Where the processor's time for one graded program goes, by process and by stage."""

from __future__ import annotations

import os
import resource
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from posttrain_verifiers.code import Code

Case = tuple[dict[str, Any], str]
_TICK = os.sysconf("SC_CLK_TCK")


def seconds_below(pid: int) -> dict[str, float]:
    """Seconds of processor time so far of a process and its descendants, by what they do."""
    parents: dict[str, list[str]] = defaultdict(list)
    used: dict[str, tuple[str, list[float]]] = {}
    for name in os.listdir("/proc"):
        try:
            fields = Path(f"/proc/{name}/stat").read_text().rpartition(")")[2].split() if name.isdigit() else []
            command = Path(f"/proc/{name}/cmdline").read_text() if fields else ""
        except OSError:
            continue
        if fields:
            parents[fields[1]].append(name)
            used[name] = command, [float(ticks) / _TICK for ticks in fields[11:15]]
    found: dict[str, float] = defaultdict(float)
    waiting = [str(pid)]
    while waiting:
        name = waiting.pop()
        waiting += parents[name]
        command, (user, system, user_below, system_below) = used.get(name, ("", [0.0] * 4))
        if "zygote.main" in command:
            found["cells: forking and watching"] += user + system
            found["programs: their start, run and end"] += user_below + system_below
        else:
            found["the grader" if name == str(pid) else "grading workers"] += user + system
    return found


def spent(work: Callable[[], Any]) -> dict[str, float]:
    """Seconds that the work took of this process and those below, which must live on."""
    before = seconds_below(os.getpid())
    work()
    return {name: value - before[name] for name, value in seconds_below(os.getpid()).items()}


def seconds_waited_for(work: Callable[[], Any]) -> float:
    """Seconds that the work took of this process and those it started, which must have ended."""

    def used() -> float:
        each = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
        return sum(u.ru_utime + u.ru_stime for u in each)

    before = used()
    work()
    return used() - before


def own_seconds(cases: Sequence[Case]) -> dict[str, float]:
    """Seconds that programs and their tests take by themselves: one process, nothing around them. They are trusted."""
    found: dict[str, float] = defaultdict(float)
    for row, completion in cases:
        space: dict[str, Any] = {}
        started = time.process_time()
        code = compile(row["prompt"] + completion, "program", "exec")
        compiled = time.process_time()
        exec(code, space)
        exec(row["test"], space)
        ready = time.process_time()
        space["check"](space[row["entry_point"]])
        found["compiling"] += compiled - started
        found["running"] += time.process_time() - ready
    return found


def stages(cases: Sequence[Case], timeout: float) -> dict[str, float]:
    """Seconds of a grading worker's own in each of its stages, and of the sandbox, tests read before."""
    code = Code(timeout=timeout)
    code.prepare()
    for row, completion in cases:
        code(completion, **row)
    assert code._sandbox is not None
    found: dict[str, float] = defaultdict(float)
    for row, completion in cases:
        at = [time.process_time()]
        tests = code._tests(row)
        source = tests.program(completion)
        at.append(time.process_time())
        tests.run(code._sandbox, source, code.limits, True)
        at.append(time.process_time())
        found["finding the program"] += at[1] - at[0]
        found["asking, and running tests on the answers"] += at[2] - at[1]
    code.close()
    return found
