"""The shape of a recipe: YAML to a frozen typed tree. Imports no torch."""

from posttrain.recipe.adapters import adapters_mistakes, merged_because, published_apart
from posttrain.recipe.blocks import (
    AlgorithmChoice,
    Auxiliary,
    Conditioning,
    Data,
    Evaluation,
    Grading,
    Hardware,
    Learner,
    Optimizer,
    Recipe,
    Reward,
    Rollout,
    Run,
)
from posttrain.recipe.engines import Sampler, Servers
from posttrain.recipe.load import dump, load, parse
from posttrain.recipe.policies import Critic, Lora, Model, Reference, ReferencePolicy
from posttrain.recipe.sources import FileSource, HubSource, ReasoningGymSource, Shot, Since, Source

__all__ = [
    "AlgorithmChoice",
    "Auxiliary",
    "Conditioning",
    "Critic",
    "Data",
    "Evaluation",
    "FileSource",
    "Grading",
    "Hardware",
    "HubSource",
    "Learner",
    "Lora",
    "Model",
    "Optimizer",
    "ReasoningGymSource",
    "Recipe",
    "Reference",
    "ReferencePolicy",
    "Reward",
    "Rollout",
    "Run",
    "Sampler",
    "Servers",
    "Shot",
    "Since",
    "Source",
    "adapters_mistakes",
    "dump",
    "load",
    "merged_because",
    "parse",
    "published_apart",
]
