"""The resharding plan: integers in, integers out. No torch, no process group; every rank works out the same one.

`make_plan` takes the checkpoint's tensors, the training layout and the engine's layout; `schedule` cuts the plan into
rounds of messages; `describe` prints it.
"""

from posttrain.hybrid.plan.describe import describe
from posttrain.hybrid.plan.families import FAMILIES, Architecture
from posttrain.hybrid.plan.generation import Generation
from posttrain.hybrid.plan.landing import Tensor, degrees
from posttrain.hybrid.plan.moves import Message, Move
from posttrain.hybrid.plan.plan import Parameter, Plan, Traffic, make_plan
from posttrain.hybrid.plan.rounds import Round, Schedule, schedule
from posttrain.hybrid.plan.training import Training

__all__ = [
    "FAMILIES",
    "Architecture",
    "Generation",
    "Message",
    "Move",
    "Parameter",
    "Plan",
    "Round",
    "Schedule",
    "Tensor",
    "Traffic",
    "Training",
    "degrees",
    "describe",
    "make_plan",
    "schedule",
]
