"""Gradients do not depend on how a batch was cut or laid out, and equal a slow reference that pads nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path

import pytest
import torch
from torch import Tensor

from posttrain.algorithms.catalogue import CATALOGUE
from posttrain.algorithms.choice import choose
from posttrain.algorithms.row import Algorithm
from posttrain.algorithms.rows.online import ONLINE
from posttrain.algorithms.state import Coefficients, RowState, Terms
from posttrain.algorithms.table import ALGORITHMS
from posttrain.data.packing import Packing, pack
from posttrain.learner.policy import PolicyLearner
from posttrain.learner.references import References
from posttrain.models.checkpoint import load_policy
from posttrain.recipe import Critic, Model
from posttrain.types import Author, Sample
from tests.algorithms.changed_rows import BITING, CORRECTED, PENALISED
from tests.algorithms.slow import Slow, slow_loss
from tests.tiny import randomise, samples, taking_trees, tiny_folder, tiny_learner

AUTHORS: tuple[Author, ...] = (
    *("data", "opponent", "data", "data", "policy", "policy", "data", "opponent", "policy"),
    *("data", "policy", "data"),
)
"""Of groups of two, three and four, the last of which is not learnt from; of a tie, and of a response alone."""
LAYOUTS = ("rows", "tree", "packed")
BUDGETS = (1, 24, 10**9)
POLICIES = {name: row for name, row in ALGORITHMS.items() if not row.needs.scorer}
"""Reward models have tests of their own."""
EVERYWHERE = {row.name for row in ONLINE} | {
    *("sft", "dpo", "aot", "wpo", "ld_dpo", "rpo", "kto", "dro_v", "direct_advantage", "spin")
}
"""Rows that go through every layout in every cut; the others meet each of both once."""
WAYS = {(r.objective.entry.level, r.ratio.kind, r.reduction.kind, r.critic.kind): r.name for r in POLICIES.values()}
"""One row for every way in which a batch is counted."""
CUTS = {"each once": tuple(zip(LAYOUTS, BUDGETS, strict=True)), "all": tuple(product(LAYOUTS, BUDGETS))}
ROWS = [
    *((name, "each once") for name in POLICIES if name not in WAYS.values()),
    *((name, "all") for name in WAYS.values()),
    *(pytest.param(name, "all", marks=pytest.mark.prove) for name in sorted(EVERYWHERE - set(WAYS.values()))),
]
TERMS = Terms(max_tokens=12, references=(0.25, 0.75))
OTHER_REDUCTIONS = [
    (name, reduction)
    for name, row in POLICIES.items()
    for reduction, entry in CATALOGUE["reduction"].items()
    if (entry.level == "set") == (row.objective.entry.level == "set") and reduction != row.reduction.kind
]
FIRST = {(POLICIES[name].objective.kind, reduction): name for name, reduction in reversed(OTHER_REDUCTIONS)}
"""A row for every objective under every reduction. Other rows of the same objective are the heavier proof."""
REDUCED = [
    pytest.param(name, r, marks=[] if FIRST[POLICIES[name].objective.kind, r] == name else pytest.mark.prove)
    for name, r in OTHER_REDUCTIONS
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_folder(tmp_path_factory.mktemp("tiny"))


def learner_over(folder: Path, layout: str, critic: Critic, bins: int = 1) -> PolicyLearner:
    """A tempered policy with two references that are not the policy, and a critic."""
    learner = tiny_learner(folder, torch.float64, layout, temperature=0.8, critic=critic, bins=bins)
    learner.critic.head.double()
    others = [taking_trees(load_policy(folder, Model(path=str(folder)), torch.float64, "cpu")) for _ in range(2)]
    for seed, other in enumerate(others):
        randomise(other, seed, 0.02)
    learner.references = References(others)
    return learner


@pytest.fixture(scope="module")
def learners(folder: Path) -> dict[str, PolicyLearner]:
    return {layout: learner_over(folder, layout, Critic()) for layout in LAYOUTS}


@pytest.fixture(scope="module")
def everything(learners: dict[str, PolicyLearner]) -> list[Sample]:
    return filled(learners["rows"])


@pytest.fixture(scope="module")
def slow(learners: dict[str, PolicyLearner], everything: list[Sample]) -> Slow:
    return Slow(learners["rows"], everything)


def filled(learner: PolicyLearner) -> list[Sample]:
    """Samples with everything a row could ask for near the present policy, an advantage per token, and garbage where
    the policy said nothing. Some responses of a group are the data's, some an opponent's.
    """
    generator, out = torch.Generator().manual_seed(3), []
    # Two are the best of their group, the later one longer; two are a tie, one is alone.
    plain = [replace(s, score=1.5) if i in (5, 6) else s for i, s in enumerate(samples())]
    plain += [replace(s, group=3, score=0.25) for s in plain[3:5]] + [replace(plain[0], group=4)]
    for sample, now in zip(plain, learner.logprobs([s.rollout for s in plain]), strict=True):
        said = torch.tensor(sample.rollout.mask)

        def near(centre: Tensor | float, scale: float, said: Tensor = said) -> Tensor:
            noise = torch.randn(len(said), generator=generator, dtype=torch.float64)
            return (centre + scale * noise).where(said, torch.tensor(5.0, dtype=torch.float64))

        previous, returns = near(now, 0.2), near(0.5, 0.4)
        author = AUTHORS[len(out)]
        rollout = replace(sample.rollout, logprobs=tuple(near(previous, 0.2).tolist()), author=author)
        out.append(
            replace(
                sample,
                rollout=rollout,
                advantages=near(sample.advantages, 0.3) * sample.mask,
                previous=previous,
                reference=torch.stack([near(now, 0.3), near(now, 0.4)], dim=1),
                returns=returns,
                values=near(returns, 0.3),
                uniform=near(-6.0, 0.5),
                ends=torch.rand(len(said), generator=generator) < 0.4,
            )
        )
    return out


def asked(algorithm: Algorithm, batch: Sequence[Sample]) -> list[Sample]:
    """Only what the row asks for."""
    absent = {
        **({} if algorithm.learns_values else {"returns": None, "values": None}),
        **({} if algorithm.needs.steps else {"ends": None}),
        **({} if algorithm.needs.uniform else {"uniform": None}),
        **({} if algorithm.needs.reference else {"reference": None}),
        **({} if algorithm.needs.previous else {"previous": None}),
    }
    return [replace(s, **absent) for s in batch]


def coefficients(algorithm: Algorithm) -> Coefficients:
    state = RowState.of(algorithm)
    state.log_ratio_mean = 0.6
    if algorithm.entropy.kind == "adaptive":
        state.entropy_coefficient = 0.2
    return state.coefficients(TERMS)


def trained_by(learner: PolicyLearner) -> list[Tensor]:
    critic = [] if learner.critic is None else learner.critic.stepper.masters.parameters
    return [*learner.stepper.masters.parameters, *critic]


def flat(parameters: Sequence[Tensor]) -> Tensor:
    return torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in parameters])


def gradient(learner: PolicyLearner, algorithm: Algorithm, batch: list[Sample], budget: int) -> tuple[float, Tensor]:
    """Loss and flat gradient of one optimiser step over all samples, the critic's included."""
    learner.discard()
    packing = Packing(budget, learner.packing.share_prompts, learner.packing.dtype)
    report, _ = learner.accumulate(list(pack(batch, packing)), algorithm, coefficients(algorithm))
    return report.values()["learn/loss"], flat(trained_by(learner))


def slow_gradient(slow: Slow, algorithm: Algorithm, batch: list[Sample]) -> tuple[float, Tensor]:
    slow.learner.discard()
    loss = slow_loss(slow, algorithm, batch, coefficients(algorithm))
    parameters = trained_by(slow.learner)
    grads = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
    whole = [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, grads, strict=True)]
    return float(loss.detach()), torch.cat([g.flatten() for g in whole])


def close(found: tuple[float, Tensor], expected: tuple[float, Tensor]) -> None:
    """Within 1e-6 of the gradient's largest entry: transformers normalises in fp32 whatever the model's dtype."""
    assert found[0] == pytest.approx(expected[0], rel=1e-6, abs=1e-9)
    assert float((found[1] - expected[1]).abs().max()) <= 1e-6 * float(expected[1].abs().max())


@pytest.mark.parametrize(("name", "cuts"), ROWS)
def test_gradients_do_not_depend_on_micro_batches_packing_or_padding_and_equal_the_formula_written_out(
    learners: dict[str, PolicyLearner], slow: Slow, everything: list[Sample], name: str, cuts: str
) -> None:
    algorithm = ALGORITHMS[name]
    batch = asked(algorithm, everything)
    expected = slow_gradient(slow, algorithm, batch)
    # Responses that nobody would have said weigh next to nothing where they are weighed by that.
    assert float(expected[1].abs().max()) > (1e-4 if algorithm.weighting.kind == "none" else 1e-6)
    for layout, budget in CUTS[cuts]:
        close(gradient(learners[layout], algorithm, batch, budget), expected)


@pytest.mark.parametrize(("name", "reduction"), REDUCED)
def test_every_row_equals_its_formula_under_every_other_reduction_that_is_legal(
    learners: dict[str, PolicyLearner], slow: Slow, everything: list[Sample], name: str, reduction: str
) -> None:
    algorithm = choose(name, {"reduction": reduction})
    batch = asked(algorithm, everything)
    close(gradient(learners["tree"], algorithm, batch, 40), slow_gradient(slow, algorithm, batch))


@pytest.mark.parametrize(("name", "changes"), [*BITING, *CORRECTED, *PENALISED], ids=str)
def test_bounds_corrections_penalties_and_anchors_equal_their_formulas_in_every_layout_and_cut(
    learners: dict[str, PolicyLearner], slow: Slow, everything: list[Sample], name: str, changes: dict[str, object]
) -> None:
    algorithm = choose(name, changes)
    batch = asked(algorithm, everything)
    expected = slow_gradient(slow, algorithm, batch)
    for layout, budget in zip(LAYOUTS, BUDGETS, strict=True):
        close(gradient(learners[layout], algorithm, batch, budget), expected)


@pytest.mark.parametrize("name", ["grpo", "gspo", "m2po"])
@pytest.mark.parametrize("reduction", ["token_mean", "sequence_mean", "sequence_sum", "constant"])
def test_reductions_do_not_depend_on_micro_batches_packing_or_padding(
    learners: dict[str, PolicyLearner], everything: list[Sample], name: str, reduction: str
) -> None:
    algorithm = choose(name, {"reduction": reduction})
    batch = asked(algorithm, everything)
    expected = gradient(learners["rows"], algorithm, batch, 10**9)
    for learner in learners.values():
        for budget in BUDGETS:
            close(gradient(learner, algorithm, batch, budget), expected)


@pytest.mark.parametrize(
    ("critic", "bins", "changes"),
    [
        (Critic(), 7, {"critic": "hl_gauss", "value_coefficient": 0.5, "value_low": -0.2, "value_high": 1.2}),
        (Critic(backbone="shared", stop_gradient=False), 1, {"value_clip": 0.2, "value_coefficient": 0.5}),
        (Critic(backbone="shared", stop_gradient=True), 1, {}),
        (Critic(backbone="shared", stop_gradient=False), 5, {"critic": "hl_gauss"}),
    ],
    ids=["own histogram", "shared", "shared, stopped", "shared histogram"],
)
def test_value_losses_reach_what_they_train_and_nothing_else(
    folder: Path, everything: list[Sample], critic: Critic, bins: int, changes: dict[str, object]
) -> None:
    algorithm = choose("ppo", changes)
    batch = asked(algorithm, everything)
    learners = {layout: learner_over(folder, layout, critic, bins) for layout in LAYOUTS}
    expected = slow_gradient(Slow(learners["rows"], batch), algorithm, batch)
    for layout, budget in zip(LAYOUTS, BUDGETS, strict=True):
        close(gradient(learners[layout], algorithm, batch, budget), expected)


def test_a_sample_that_teaches_nothing_changes_nothing(
    learners: dict[str, PolicyLearner], everything: list[Sample]
) -> None:
    silent = [s for s in everything if not bool(s.mask.any())]
    assert len(silent) == 1
    for algorithm in (POLICIES[name] for name in WAYS.values()):
        batch = asked(algorithm, everything)
        without = [s for s in batch if bool(s.mask.any())]
        close(gradient(learners["tree"], algorithm, batch, 50), gradient(learners["tree"], algorithm, without, 50))


@pytest.mark.parametrize("name", ["grpo", "dapo", "gspo_token", "cispo", "sapo", "rapid", "dppo_tv", "discovered"])
def test_one_update_without_recorded_log_probabilities_has_the_policy_gradient(
    learners: dict[str, PolicyLearner], everything: list[Sample], name: str
) -> None:
    """The ratio is 1 in value and the log-probability in its gradient, whatever is made of it elsewhere."""
    batch = [replace(s, previous=None) for s in asked(ALGORITHMS["grpo"], everything)]
    plain = {"correction": "none", "reduction": "token_mean"}
    _, found = gradient(learners["tree"], choose(name, plain), batch, 60)
    _, expected = gradient(learners["tree"], choose("reinforce", plain), batch, 60)
    torch.testing.assert_close(found, expected, atol=1e-12, rtol=0)


def test_a_policy_that_waits_for_its_critic_gets_no_gradient(
    learners: dict[str, PolicyLearner], everything: list[Sample]
) -> None:
    learner, algorithm = learners["tree"], choose("ppo", {"kl": "in_loss", "entropy": "bonus"})
    learner.discard()
    waiting = RowState.of(algorithm).coefficients(TERMS, policy=False)
    learner.accumulate(list(pack(asked(algorithm, everything), learner.packing)), algorithm, waiting)
    assert not bool(flat(learner.stepper.masters.parameters).any())
    assert bool(flat(learner.critic.stepper.masters.parameters).any())
