"""What a recipe asks of a machine, by arithmetic alone: memory, traffic and time of each phase. Imports no torch."""

from posttrain.planner.advice import advised
from posttrain.planner.estimate import Estimate, Phase, estimate
from posttrain.planner.machine import Machine, describe_machine, read_machine, this_machine
from posttrain.planner.shape import Shape
from posttrain.planner.source import config_at, read_config

__all__ = [
    "Estimate",
    "Machine",
    "Phase",
    "Shape",
    "advised",
    "config_at",
    "describe_machine",
    "estimate",
    "read_config",
    "read_machine",
    "this_machine",
]
