"""What a run says about itself: numbers that add exactly, the folder they live in, and who else is told.

`Report` travels up from micro-batches; `RunFolder` is the contract on disk; `open_sinks` tells the console and others.
Imports no torch and no matplotlib until something is drawn.
"""

from posttrain.metrics.folder import RunFolder
from posttrain.metrics.report import Report
from posttrain.metrics.sinks import Sink, open_sinks

__all__ = ["Report", "RunFolder", "Sink", "open_sinks"]
