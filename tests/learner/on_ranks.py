"""What two ranks learn, held against one process with the same data: run as several ranks, prints JSON.

Each case takes steps with both learners and says how far apart weights, log-probabilities and figures are.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch.distributed.tensor import DTensor

from posttrain.algorithms.table import ALGORITHMS
from posttrain.learner.checkpoint import digests
from posttrain.learner.computation import Computation
from posttrain.learner.critic import Critic as Value
from posttrain.learner.policy import Companions, PolicyLearner
from posttrain.learner.references import References
from posttrain.learner.scorer import ScorerLearner
from posttrain.learner.sharding import WHOLE, Rows, Sharding, Whole
from posttrain.learner.zero import Zero
from posttrain.models.checkpoint import load_policy, load_scorer, load_tokenizer
from posttrain.ranks import connected
from posttrain.recipe import Critic, Lora, Model, Optimizer
from posttrain.types import Sample
from posttrain.world import World
from tests.learner.steps import accumulated
from tests.tiny import samples, tiny_folder

# Where a gradient is nothing but rounding, Adam with a small epsilon makes a whole step of it.
ASKED = Optimizer(learning_rate=5e-3, epsilon=1e-4)
STEPS = 5


@dataclass(frozen=True)
class Case:
    algorithm: str = "grpo"
    tied: bool = True
    lora: bool = False
    reference: bool = False
    critic: bool = False
    dtype: torch.dtype = torch.float32
    groups: int = 3
    scorer: bool = False
    backbone: Literal["own", "shared"] = "own"
    moves: bool = False
    """Whether the reference follows the policy."""
    warms: bool = False
    """Whether the first step is the critic's alone."""

    @property
    def rounded(self) -> bool:
        """Whether an engine of DeepSpeed's would round a head."""
        return self.dtype == torch.bfloat16 and (self.scorer or (self.critic and self.backbone == "own"))


CASES = {
    "full": Case(),
    "untied": Case(tied=False),
    "fewer micro-batches than ranks": Case(groups=1),
    "adapters": Case(lora=True),
    "a reference": Case("grpo", reference=True),
    "a set objective in two passes": Case("rebel"),
    "a critic": Case("ppo", critic=True),
    "a shared critic": Case("ppo", critic=True, backbone="shared"),
    "a critic that is ahead": Case("ppo", critic=True, warms=True),
    "a moving reference": Case("grpo", reference=True, moves=True),
    "half": Case(dtype=torch.bfloat16),
    "a reward model": Case("reward_bradley_terry", scorer=True),
    "a critic in half": Case("ppo", critic=True, dtype=torch.bfloat16),
    "a reward model in half": Case("reward_bradley_terry", scorer=True, dtype=torch.bfloat16),
}


def learner(folder: Path, case: Case, sharding: Sharding) -> Any:
    torch.manual_seed(0)
    computation = Computation("tree", 24, 7, 1.0, sharding, case.dtype)
    tokenizer = load_tokenizer(folder)
    if case.scorer:
        model = load_scorer(folder, 1, case.dtype, "cpu")
        torch.nn.init.normal_(model.score.weight, std=0.3)
        return ScorerLearner(model, tokenizer, ASKED, computation, 10)
    lora = Lora(rank=2) if case.lora else None
    policy = load_policy(folder, Model(path=str(folder), lora=lora), case.dtype, "cpu")
    if case.lora:
        # Adapters that are zero would hide a base that does not reach the ranks.
        for name, parameter in policy.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.1)
    plain = Model(path=str(folder))
    references = (
        References([None if case.lora else load_policy(folder, plain, case.dtype, "cpu")]) if case.reference else None
    )
    critic = None
    if case.critic:
        model = load_scorer(folder, 1, case.dtype, "cpu")
        torch.nn.init.normal_(model.score.weight, std=0.3)
        settings = Critic(learning_rate=1e-2, backbone=case.backbone)
        critic = Value(model if case.backbone == "own" else model.score, settings, ASKED, 10, sharding)
    return PolicyLearner(policy, tokenizer, ASKED, computation, 10, Companions(references, critic))


def data(case: Case) -> list[Sample]:
    made = samples(torch.float32, groups=case.groups)
    made = [replace(s, previous=None, reference=s.reference if case.reference else None) for s in made]
    if case.critic:
        return [replace(s, returns=s.advantages, values=torch.zeros(len(s.mask))) for s in made]
    if case.scorer:
        ends = []
        for s in made:
            last = torch.zeros_like(s.mask)
            last[s.mask.nonzero()[-1:, 0]] = True
            ends.append(replace(s, mask=last, previous=None, reference=None))
        return [s for s in ends if bool(s.mask.any())]
    return made


def trained(one: Any, case: Case, steps: int = STEPS) -> dict[str, float]:
    algorithm = ALGORITHMS[case.algorithm]
    figures: dict[str, float] = {}
    for step in range(steps):
        report = accumulated(one, data(case), algorithm)
        report += one.step(policy=step > 0 or not case.warms)
        figures |= {f"{step}/{k}": v for k, v in report.values().items()}
        if case.moves:
            # By an average at first, then further than the optimiser has taken it.
            one.refresh_reference(0.5 if step == 0 else 0.0, 0.0 if step == 0 else 0.3)
    return figures


def weights(one: Any) -> dict[str, torch.Tensor]:
    if isinstance(one, ScorerLearner):
        from posttrain.models.checkpoint import merged_weights

        return {
            name: t.detach().float().clone() for name, t in merged_weights(one.model, one._whole, one.sharding.opened)
        }
    return {name: t.float().clone() for name, t in one.weights()}


def apart(a: dict[str, Any], b: dict[str, Any]) -> float:
    """The largest difference, relative to the largest entry of its tensor."""
    assert a.keys() == b.keys(), (sorted(a.keys() ^ b.keys()))[:5]
    out = 0.0
    for name in a:
        x, y = torch.as_tensor(a[name]).double(), torch.as_tensor(b[name]).double()
        out = max(out, float((x - y).abs().max()) / max(float(y.abs().max()), 1e-6))
    return out


def stored(model: Any) -> float:
    """Bytes that this rank keeps of a model's parameters, in parts of those of all ranks."""
    whole = {id(p): p.numel() * p.element_size() for p in model.parameters()}
    own = (p.to_local() if isinstance(p, DTensor) else p for p in model.parameters())
    return sum({s.data_ptr(): s.nbytes() for s in (t.untyped_storage() for t in own)}.values()) / sum(whole.values())


def compare(folder: Path, case: Case, sharding: Sharding, world: World) -> dict[str, Any]:
    alone, several = learner(folder, case, WHOLE), learner(folder, case, sharding)
    out: dict[str, Any] = {"start": apart(weights(several), weights(alone))}
    if isinstance(sharding, Rows):
        out["stored"] = stored(several.model)
    expected, found = trained(alone, case), trained(several, case)
    out["figures"] = apart(found, expected)
    out["weights"] = apart(weights(several), weights(alone))
    out["moved"] = apart(weights(alone), weights(learner(folder, case, WHOLE)))
    own = torch.tensor([float(t.double().sum()) for t in weights(several).values()])
    out["same on all ranks"] = all(torch.equal(own, other) for other in world.gather(own))
    if not case.scorer:
        rollouts = [s.rollout for s in data(case)]
        for policy in ("policy", "reference") if case.reference else ("policy",):
            pair = [one.logprobs(rollouts, policy) for one in (several, alone)]
            out[policy] = max(float((a - b).abs().max()) for a, b in zip(*pair, strict=True))
        head = several.logits(rollouts[0])
        out["logits"] = float((head - alone.logits(rollouts[0])).abs().max())
        if case.critic:
            pair = [one.values(rollouts) for one in (several, alone)]
            out["values"] = max(float((a - b).abs().max()) for a, b in zip(*pair, strict=True))
        else:
            out |= undone(several, case)
    return out | resumed(folder, case, several, world)


def undone(one: PolicyLearner, case: Case) -> dict[str, float]:
    """What a step moves, and what is left of it when it is taken back, or its gradient dropped."""
    before, kept, algorithm = weights(one), one.snapshot(), ALGORITHMS[case.algorithm]
    accumulated(one, data(case), algorithm)
    one.step()
    out = {"stepped": apart(weights(one), before)}
    one.roll_back(kept)
    out["taken back"] = apart(weights(one), before)
    accumulated(one, data(case), algorithm)
    one.discard()
    return out | {"dropped": apart(weights(one), before)}


def resumed(folder: Path, case: Case, several: Any, world: World) -> dict[str, Any]:
    """What was saved by all ranks, gone on from by one process and by other ranks: one step more, and how far apart."""
    place = world.shared(lambda: Path(tempfile.mkdtemp(prefix="ranks-")))
    several.save(place)
    again, alone = learner(folder, case, several.sharding), learner(folder, case, WHOLE)
    other: Sharding = Rows(world, case.dtype, "cpu")
    if isinstance(several.sharding, Rows) and not case.rounded:
        other = Zero(world, case.dtype, "cpu", 3)
    elif several.sharding.lockstep:
        other = Whole(world)
    changed = learner(folder, case, other)
    for one in (again, alone, changed):
        one.load(place)
    out = {"files": len(digests(place)), "loaded": apart(weights(alone), weights(several))}
    for one in (several, again, alone, changed):
        trained(one, case, 1)
    out["resumed"] = apart(weights(again), weights(several))
    out["resumed by one"] = apart(weights(alone), weights(several))
    out["resumed otherwise"] = apart(weights(changed), weights(several))
    return out


def main(asked: list[str]) -> None:
    """Of `asked`, as in "ddp: full", or everything that is not refused."""
    make: dict[str, Callable[[World, Case], Sharding]] = {
        "ddp": lambda world, case: Whole(world),
        "fsdp2": lambda world, case: Rows(world, case.dtype, "cpu"),
        "zero1": lambda world, case: Zero(world, case.dtype, "cpu", 1),
        "zero2": lambda world, case: Zero(world, case.dtype, "cpu", 2),
        "zero3": lambda world, case: Zero(world, case.dtype, "cpu", 3),
    }
    with connected("cpu", 120.0) as world:
        found = {}
        for strategy, sharding in make.items():
            for name, case in CASES.items():
                refused = strategy == "zero1" and case.dtype == torch.bfloat16
                refused |= "zero" in strategy and case.rounded
                if f"{strategy}: {name}" not in asked if asked else refused:
                    continue
                folder = world.shared(lambda: tiny_folder(Path(tempfile.mkdtemp()), tied=case.tied))  # noqa: B023
                found[f"{strategy}: {name}"] = compare(folder, case, sharding(world, case), world)
        if world.rank == 0:
            print(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1:])
