"""Whether the tests of the formulas see a wrong sign or denominator: one is planted at a time, in a scratch copy.

python benchmarks/mutate_objectives.py [--all] [MODULE ...]

The mutants stand in benchmarks/mutants. Each meets the test files that import its module first, then all of
tests/objectives, and with --all tests/algorithms.
Exits with 1 where one survives, or where a text to replace no longer stands exactly once in its file.
"""

from __future__ import annotations

import argparse
import importlib
import multiprocessing
import os
import re
import shutil
import sys
import tempfile
import time
from pathlib import Path

import hypothesis
import pytest
from mutants import Mutant, offline, online, scores

ROOT = Path(__file__).parents[1]
LIMIT = 900
"""Seconds after which a test run counts as failed: a mutant may loop for ever."""

MUTANTS = [*online.MUTANTS, *offline.MUTANTS, *scores.MUTANTS]


def misplaced(mutants: list[Mutant]) -> list[str]:
    """Mutants whose text does not stand exactly once in its file."""
    found = []
    for m in mutants:
        count = source(ROOT, m.file).read_text().count(m.old)
        if count != 1:
            found.append(f"{m.file}.py: {m.old!r} stands there {count} times, not once ({m.what})")
    return found


def source(root: Path, module: str) -> Path:
    return root / "posttrain" / "objectives" / f"{module}.py"


def own(module: str) -> list[str]:
    """The test files that import a module: those that bear its name, then the others."""
    named = rf"^from posttrain\.objectives(\.{module}| import (\([^)]*|[^(\n]*)\b{module})\b"
    files = sorted((ROOT / "tests" / "objectives").glob("test_*.py"))
    files = [file for file in files if re.search(named, file.read_text(), re.MULTILINE)]
    files.sort(key=lambda file: not file.stem.startswith(f"test_{module}"))
    return [str(file.relative_to(ROOT)) for file in files]


def suites(everything: bool) -> list[list[str]]:
    """What every mutant meets, one after another until one fails; all of it passes without a mutant."""
    return [["tests/objectives"], *([["tests/algorithms"]] if everything else [])]


def failing(scratch: Path, tests: list[str]) -> str | None:
    """The first test that fails, or None. Raises RuntimeError where none could be run.

    pytest runs in a fork of this process, which has imported torch and nothing of the repository.
    """
    said = scratch / "said.txt"
    child = multiprocessing.get_context("fork").Process(target=_pytest, args=(scratch, tests, said))
    child.start()
    child.join(LIMIT)
    if child.is_alive():
        child.kill()
        child.join()
        return f"time limit of {LIMIT} s"
    named = re.search(r"^FAILED (\S+)", said.read_text(), re.MULTILINE)
    if child.exitcode == 0:
        return None
    if child.exitcode != 1 or named is None:
        raise RuntimeError(f"pytest {' '.join(tests)} could not be run:\n{said.read_text()[-4000:]}")
    return named[1].removeprefix("tests/")


def _pytest(scratch: Path, tests: list[str], said: Path) -> None:
    """Run tests of the scratch copy, and make sure that it is what they import."""
    with said.open("w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    os.chdir(scratch)
    os.environ["PYTHONPATH"] = str(scratch)
    sys.path.insert(0, str(scratch))
    # A mutant has the size and almost the time of the file it replaces.
    os.environ["PYTHONDONTWRITEBYTECODE"] = "1"
    sys.dont_write_bytecode = True
    # The same examples each time; no deadline, which a busy machine would miss; no search for the smallest example.
    phases = (hypothesis.Phase.explicit, hypothesis.Phase.generate)
    hypothesis.settings.register_profile("mutants", derandomize=True, deadline=None, database=None, phases=phases)
    code = pytest.main(["-x", "-q", "--hypothesis-profile", "mutants", *tests])
    if not Path(sys.modules["posttrain"].__file__ or "").is_relative_to(scratch):
        print("the tests import another posttrain", flush=True)
        code = pytest.ExitCode.INTERNAL_ERROR
    sys.exit(int(code))


def copy(scratch: Path) -> None:
    """The repository without what is built."""
    left_out = shutil.ignore_patterns(".*", "runs", "__pycache__", "*.egg-info")
    shutil.copytree(ROOT, scratch, ignore=left_out, dirs_exist_ok=True)


def killer(scratch: Path, mutant: Mutant, everything: bool) -> str | None:
    """The test that a mutant fails, or None where it survives."""
    file = source(scratch, mutant.file)
    right = file.read_text()
    file.write_text(right.replace(mutant.old, mutant.new))
    try:
        met = [own(mutant.file), *suites(everything)]
        return next((found for tests in met if tests and (found := failing(scratch, tests))), None)
    finally:
        file.write_text(right)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("modules", nargs="*", metavar="MODULE", help="only these modules of posttrain.objectives")
    parser.add_argument("--all", action="store_true", help="tests/algorithms too")
    options = parser.parse_args()
    unknown = set(options.modules) - {m.file for m in MUTANTS}
    if unknown:
        parser.error(f"no mutants of {', '.join(sorted(unknown))}")
    mutants = [m for m in MUTANTS if m.file in options.modules or not options.modules]
    if wrong := misplaced(MUTANTS):
        print("\n".join(wrong), file=sys.stderr)
        return 1
    os.environ["OMP_NUM_THREADS"] = "1"
    importlib.import_module("torch")
    rows = []
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
        scratch = Path(folder).resolve()
        copy(scratch)
        print("without a mutant ...", end=" ", flush=True, file=sys.stderr)
        for tests in suites(options.all):
            if found := failing(scratch, tests):
                print(f"{found} fails already", file=sys.stderr)
                return 1
        print("all pass", file=sys.stderr)
        for number, mutant in enumerate(mutants, 1):
            started = time.perf_counter()
            print(f"[{number}/{len(mutants)}] {mutant.file}: {mutant.what} ...", end=" ", flush=True, file=sys.stderr)
            rows.append((mutant, killer(scratch, mutant, options.all)))
            verdict = "killed" if rows[-1][1] else "SURVIVED"
            print(f"{verdict} in {time.perf_counter() - started:.1f} s", file=sys.stderr)
    for mutant, by in rows:
        print(f"{mutant.file:<12} {mutant.what:<36} {by or 'SURVIVED'}")
    killed = sum(by is not None for _, by in rows)
    print(f"{killed} of {len(rows)} mutants killed")
    return 0 if killed == len(rows) else 1


if __name__ == "__main__":
    sys.exit(main())
