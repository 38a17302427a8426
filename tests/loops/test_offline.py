"""Given answers are learnt as their formulas say: what the assistant said and nothing else."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from posttrain.algorithms.credit import assign_credit
from posttrain.algorithms.row import Algorithm
from posttrain.algorithms.table import ALGORITHMS
from posttrain.build import reading
from posttrain.build.wire import open_checkpoint, wired_offline
from posttrain.data.chat import Chat
from posttrain.errors import TrainingError
from posttrain.hybrid import Hybrid
from posttrain.learner.layout import Layout
from posttrain.learner.policy import PolicyLearner
from posttrain.loops.learning import annotate
from posttrain.loops.offline import offline
from posttrain.loops.reference_point import mismatched, reference_point
from posttrain.loops.sampled_kl import SampledKl
from posttrain.metrics import RunFolder
from posttrain.models.checkpoint import load_policy
from posttrain.recipe import Model, dump
from posttrain.rollout import Request
from posttrain.rollout.collect import Draw
from posttrain.rollout.local import LocalSampler
from posttrain.types import Group, Rollout, Sample, Sampling
from tests.data import assistant, learnt, read, tiny_tokenizer, user
from tests.learner.steps import TERMS, accumulated, loss, policy_gradient
from tests.offline_runs import checked, pairs, prepare, texts, thumbs, train
from tests.runs import metrics
from tests.tiny import VOCABULARY, prompt, randomise, tiny_folder, tiny_learner

SFT, KTO = ALGORITHMS["sft"], ALGORITHMS["kto"]
TALKS = [
    {"messages": [user("hi"), assistant("ab"), user("more"), assistant("cdef")]},
    {"messages": [user("one question"), assistant("g")]},
    {"messages": [user("x"), assistant("hijklm"), user("y"), assistant("n"), user("z"), assistant("op")]},
]
NEAR = 1e-6
"""transformers computes RMS norms in fp32 whatever the dtype."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_folder(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def talks(tmp_path: Path) -> list[Group]:
    return read(tmp_path, TALKS, Chat(tiny_tokenizer()))


def ids(text: str) -> list[int]:
    """The tiny tokenizer's ids of small letters."""
    return [20 + ord(c) - ord("a") for c in text]


def credited(learner: PolicyLearner, algorithm: Algorithm, groups: Sequence[Group]) -> list[Sample]:
    return assign_credit(algorithm, groups, annotate(learner, algorithm, groups, several=False), TERMS)[0]


def table(model: Any, rollout: Rollout) -> Tensor:
    """`[T, V]`: log-probabilities of what stands at each token, by one plain forward pass; none at the first."""
    found = model(torch.tensor([rollout.tokens])).logits[0].log_softmax(-1)
    return torch.cat([torch.zeros_like(found[:1]), found[:-1]])


def said(model: Any, rollout: Rollout) -> Tensor:
    """`[]`: the log-probability of everything that was said."""
    found = table(model, rollout)
    return sum((found[t, rollout.tokens[t]] for t, m in enumerate(rollout.mask) if m), torch.zeros(()))


class TestSupervised:
    def test_exactly_the_assistants_words_and_the_end_of_each_turn_are_learnt(self, talks: list[Group]) -> None:
        found = [learnt(group.rollouts[0]) for group in talks]
        stop = 1
        assert found[0] == [*ids("ab"), stop, *ids("cdef"), stop]
        assert found[1] == [*ids("g"), stop]
        assert found[2] == [*ids("hijklm"), stop, *ids("n"), stop, *ids("op"), stop]

    @pytest.mark.parametrize("layout", ["rows", "packed", "tree"])
    def test_loss_and_gradient_are_those_of_the_mean_over_these_tokens(
        self, folder: Path, talks: list[Group], layout: Layout
    ) -> None:
        # The budget cuts the three rows into two micro-batches.
        learner = tiny_learner(folder, torch.float64, layout, budget=70)
        report = accumulated(learner, credited(learner, SFT, talks), SFT)
        found = policy_gradient(learner)
        learner.discard()
        slow = -sum(said(learner.model, g.rollouts[0]) for g in talks) / sum(g.rollouts[0].length for g in talks)
        slow.backward()
        expected = policy_gradient(learner)
        assert loss(report) == pytest.approx(float(slow.detach()), abs=NEAR)
        assert float((found - expected).abs().max()) <= NEAR * float(expected.abs().max())

    @pytest.mark.parametrize("layout", ["packed", "tree", "rows"])
    def test_another_row_in_the_same_micro_batch_changes_nothing_for_the_first(
        self, folder: Path, talks: list[Group], layout: Layout
    ) -> None:
        learner = tiny_learner(folder, layout=layout)
        first, *others = [group.rollouts[0] for group in talks]
        changed = [
            replace(r, tokens=tuple(t if m else (t + 7) % VOCABULARY for t, m in zip(r.tokens, r.mask, strict=True)))
            for r in others
        ]
        before, after = learner.logprobs([first, *others]), learner.logprobs([first, *changed])
        assert torch.equal(before[0], after[0])
        assert not torch.equal(before[1], after[1])

    def test_the_loss_of_a_few_texts_falls(self, tmp_path: Path) -> None:
        train(prepare(tmp_path, "sft", texts(4), run={"steps": 12, "save_every": 0}))
        found = [line["learn/loss"] for line in metrics(tmp_path / "run")[1:]]
        assert found[-1] < 0.5 * found[0]
        rows = RunFolder(tmp_path / "run").read_rollouts("step", 1)
        assert {row["author"] for row in rows} == {"data"}
        spoken = [-p for r in rows for p, m in zip(r["learner_logprobs"], r["mask"], strict=True) if m]
        assert found[0] == pytest.approx(sum(spoken) / len(spoken), rel=1e-6)


@pytest.mark.parametrize("lora", [None, {"rank": 4}], ids=["full", "lora"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_reference_is_the_policy_exactly_until_it_moves(tmp_path: Path, lora: Any, dtype: str) -> None:
    """So the first loss of DPO is ln 2, whatever the answers are."""
    changes = {"model": {"lora": lora}, "hardware": {"dtype": dtype}, "run": {"steps": 2, "save_every": 0}}
    train(prepare(tmp_path, "dpo", pairs(8), **changes))
    _, first, second = metrics(tmp_path / "run")
    assert first["learn/log_ratio"] == 0.0
    assert first["learn/margin"] == 0.0
    assert first["learn/preferred"] == 0.5
    assert first["learn/loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert second["learn/log_ratio"] != 0.0


def asked(question: Sequence[int], answer: Sequence[int]) -> Sample:
    mask = (False,) * len(question) + (True,) * len(answer)
    rollout = Rollout((*question, *answer), mask, "", "given", author="data")
    return Sample(rollout, 0, torch.tensor(mask), torch.zeros(len(mask)))


UNPAIRED = [asked((2, 3), (4, 5, 6)), asked((2, 3), (7,)), asked((8, 9, 10), (11, 12)), asked((13,), (14, 15))]


class TestReferencePoint:
    def test_each_prompt_is_followed_by_what_was_said_to_the_next_other_one(self) -> None:
        found = mismatched(UNPAIRED)
        assert [r.tokens for r in found] == [(2, 3, 11, 12), (2, 3, 11, 12), (8, 9, 10, 14, 15), (13, 4, 5, 6)]
        assert [sum(not m for m in r.mask) for r in found] == [2, 2, 3, 1]

    def test_one_prompt_alone_has_none(self) -> None:
        with pytest.raises(TrainingError, match=r"raise optimizer\.prompts_per_step"):
            mismatched(UNPAIRED[:2])

    def test_it_is_the_mean_summed_log_ratio_and_never_below_nothing(self, folder: Path) -> None:
        signs = set()
        for seed in range(4):
            learner = tiny_learner(folder, torch.float64, reference=True)
            reference = load_policy(folder, Model(path=str(folder)), torch.float64, "cpu")
            randomise(learner.model, seed)
            with torch.no_grad():
                sums = [float(said(learner.model, r) - said(reference, r)) for r in mismatched(UNPAIRED)]
            mean = sum(sums) / len(sums)
            signs.add(mean > 0)
            assert reference_point(learner, KTO, UNPAIRED, (1.0,)) == pytest.approx(max(mean, 0.0), abs=1e-5)
        assert signs == {True, False}

    def test_a_run_of_kto_notes_it_and_starts_from_nothing(self, tmp_path: Path) -> None:
        train(prepare(tmp_path, "kto", thumbs(8), run={"steps": 2, "save_every": 0}))
        found = [line["learn/reference_point"] for line in metrics(tmp_path / "run")[1:]]
        assert found[0] == 0.0
        assert found[1] >= 0.0

    def test_the_shift_of_bco_is_the_mean_log_ratio_of_the_run_so_far(self, tmp_path: Path) -> None:
        train(prepare(tmp_path, "bco", thumbs(12), run={"steps": 3, "save_every": 0}))
        folder = RunFolder(tmp_path / "run")
        ratios = []
        for step in folder.rollout_steps():
            for row in folder.read_rollouts("step", step):
                both = zip(row["learner_logprobs"], row["reference_logprobs"], row["mask"], strict=True)
                ratios.append(sum(p - r for p, r, m in both if m))
        kept = json.loads((folder.checkpoint_path(3) / "state.json").read_text())["row"]
        assert kept["log_ratio_count"] == len(ratios) == 12
        assert kept["log_ratio_mean"] == pytest.approx(sum(ratios) / len(ratios), rel=1e-5)


def drawing(folder: Path, responses: int, tokens: int) -> tuple[PolicyLearner, SampledKl]:
    """A policy that has left its reference, and the term on what it says."""
    learner = tiny_learner(folder, torch.float64, reference=True)
    randomise(learner.model, 3, scale=0.05)
    sampler = LocalSampler(
        load_policy(folder, Model(path=str(folder)), torch.float64, "cpu"), learner.tokenizer, (1,), 64
    )
    draw = Draw(2, responses, Sampling(max_tokens=tokens), seed=0)
    return learner, SampledKl(Hybrid(learner, sampler), draw, 0.3, (1.0,))


ASKED = [Group(prompt((2, 3, 4)), (), ()), Group(prompt((5, 6)), (), ())]


class TestSampledKl:
    @pytest.mark.parametrize("responses", [1, 3])
    def test_its_gradient_is_that_of_reinforce_with_baselines_from_the_others(
        self, folder: Path, responses: int
    ) -> None:
        learner, term = drawing(folder, responses, tokens=4)
        term.draw(ASKED, step=1)
        assert [len(group) for group in term.rollouts] == [responses] * 2
        report = term.accumulate(learner, 1).values()
        found = policy_gradient(learner)
        learner.discard()
        reference = load_policy(folder, Model(path=str(folder)), torch.float64, "cpu")
        total, ratios = torch.zeros((), dtype=torch.float64), []
        for group in term.rollouts:
            own = [said(learner.model, r) for r in group]
            with torch.no_grad():
                apart = [float(p - said(reference, r)) for p, r in zip(own, group, strict=True)]
            ratios += apart
            for k, logprob in enumerate(own):
                others = [a for j, a in enumerate(apart) if j != k]
                total = total + (apart[k] - (sum(others) / len(others) if others else 0.0)) * logprob
        (0.3 * total / (2 * responses)).backward()
        expected = policy_gradient(learner)
        assert report["learn/sampled_kl"] == pytest.approx(sum(ratios) / len(ratios), abs=1e-5)
        assert float((found - expected).abs().max()) <= 1e-5 * float(expected.abs().max())

    def test_in_expectation_it_is_the_gradient_of_the_divergence_itself(self, folder: Path) -> None:
        learner, term = drawing(folder, responses=400, tokens=1)
        term.draw(ASKED, step=1)
        report = term.accumulate(learner, 1).values()
        found = policy_gradient(learner)
        learner.discard()
        reference = load_policy(folder, Model(path=str(folder)), torch.float64, "cpu")
        exact = torch.zeros((), dtype=torch.float64)
        for group in ASKED:
            asked_ids = torch.tensor([group.prompt.tokens])
            own = learner.model(asked_ids).logits[0, -1].log_softmax(-1)
            with torch.no_grad():
                other = reference(asked_ids).logits[0, -1].log_softmax(-1)
            exact = exact + (own.exp() * (own - other)).sum() / len(ASKED)
        (0.3 * exact).backward()
        expected = policy_gradient(learner)
        # 800 draws: the direction is right to a few degrees, and a wrong sign would be -1.
        assert float(torch.cosine_similarity(found, expected, dim=0)) > 0.9
        assert report["learn/sampled_kl"] == pytest.approx(float(exact.detach()), rel=0.3)

    def test_the_same_step_draws_the_same_responses_and_another_one_others(self, folder: Path) -> None:
        _, term = drawing(folder, 2, tokens=4)
        drawn = []
        for step in (1, 1, 2):
            term.draw(ASKED, step)
            drawn.append([r.tokens for group in term.rollouts for r in group])
        assert drawn[0] == drawn[1] != drawn[2]


class Watched(LocalSampler):
    """An engine that notes what it is asked to do."""

    def __init__(self, own: LocalSampler) -> None:
        super().__init__(own.model, own.tokenizer, own.stops, own.batch_size)
        self.asked: list[str] = []

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> list[Rollout]:
        self.asked.append("generate")
        return super().generate(requests, sampling)

    def sleep(self) -> None:
        self.asked.append("sleep")

    def wake(self) -> None:
        self.asked.append("wake")


def test_what_samples_sleeps_while_the_policy_learns(tmp_path: Path) -> None:
    sampled = {"rollout": {"engine": "transformers", "max_tokens": 5}, "run": {"steps": 2, "save_every": 0}}
    asked = checked(prepare(tmp_path, "hypo", pairs(8), **sampled))
    folder, checkpoint = RunFolder(asked.recipe.run.folder), open_checkpoint(asked.recipe)
    folder.open(dump(asked.recipe))
    with wired_offline(asked, folder, [], reading.read(asked, checkpoint), checkpoint) as parts:
        assert parts.engine is not None
        parts.engine.sampler = watched = Watched(parts.engine.sampler)
        offline(parts)
    assert watched.asked == ["wake", "generate", "sleep"] * 2
