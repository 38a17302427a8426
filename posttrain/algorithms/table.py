"""The table of algorithms, by name. Imports no torch.

An algorithm's name is written in `posttrain.algorithms.rows` and nowhere else.
"""

from __future__ import annotations

from posttrain.algorithms.row import Algorithm
from posttrain.algorithms.rows.offline import OFFLINE
from posttrain.algorithms.rows.online import ONLINE
from posttrain.algorithms.rows.scorers import SCORERS
from posttrain.algorithms.rows.selfplay import SELF_PLAY

ALGORITHMS: dict[str, Algorithm] = {entry.name: entry for entry in (*ONLINE, *OFFLINE, *SELF_PLAY, *SCORERS)}
