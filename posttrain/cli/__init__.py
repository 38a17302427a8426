"""The command line: each command reads its arguments, calls the part that knows, and prints what it did."""

from __future__ import annotations

import os
import signal
import sys
from importlib.machinery import ModuleSpec

import typer

from posttrain.cli.audit import audit
from posttrain.cli.compare import compare
from posttrain.cli.plan import plan
from posttrain.cli.runs import check_command, evaluate, inspect, train
from posttrain.cli.screen import complain
from posttrain.cli.table import algorithms, version
from posttrain.errors import PosttrainError, StoppedError

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False, help=__doc__)
app.command("check")(check_command)
for command in (plan, train, evaluate, compare, inspect, audit, algorithms, version):
    app.command()(command)


def main() -> None:
    """Entry point: errors meant for people are printed without a traceback, and the exit code is not zero."""
    script = sys.modules["__main__"]
    if getattr(script, "main", None) is main and script.__spec__ is None:
        # As `python -m posttrain` has it. Without a name, each process that is started runs the script's imports again.
        script.__spec__ = ModuleSpec("posttrain.__main__", None)
    try:
        app()
    except StoppedError as stop:
        complain(stop)
        sys.exit(128 + signal.SIGTERM)
    except PosttrainError as error:
        if os.environ.get("POSTTRAIN_TRACEBACK"):
            raise
        complain(error)
        sys.exit(1)
    except KeyboardInterrupt:
        complain(PosttrainError("interrupted; run the same command again to go on from the newest checkpoint"))
        sys.exit(130)
