"""What a reward model says of single tokens, of bins, and of its own states: against loops, one token at a time."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from posttrain.objectives import scores, values


def wide(numbers: list) -> Tensor:
    return torch.tensor(numbers, dtype=torch.float64)


class TestSteps:
    @given(
        st.lists(
            st.tuples(st.lists(st.floats(-6, 6, width=32), min_size=2, max_size=2), st.sampled_from([0.0, 0.3, 1.0])),
            min_size=1,
            max_size=6,
        )
    )
    def test_value_and_gradient(self, rows: list) -> None:
        outputs = wide([said for said, _ in rows]).requires_grad_()
        found = scores.step_bce(outputs, wide([label for _, label in rows]))
        weights = torch.arange(1.0, len(rows) + 1).double()
        (slopes,) = torch.autograd.grad((found * weights).sum(), outputs)
        for i, (said, label) in enumerate(rows):
            p = [1 / (1 + math.exp(-x)) for x in said]
            loss = sum(-label * math.log(q) - (1 - label) * math.log(1 - q) for q in p) / 2
            assert float(found[i].detach()) == pytest.approx(loss, rel=1e-9, abs=1e-9)
            assert slopes[i].tolist() == pytest.approx([(i + 1) * (q - label) / 2 for q in p], rel=1e-9, abs=1e-9)

    def test_finite_differences(self) -> None:
        torch.manual_seed(0)
        outputs = torch.randn(5, 2, dtype=torch.float64).requires_grad_()
        assert torch.autograd.gradcheck(lambda x: scores.step_bce(x, wide([0, 1, 0.4, 1, 0])), (outputs,))

    def test_what_is_far_off_has_a_finite_loss_and_a_gradient_back(self) -> None:
        outputs = torch.tensor([[1e4], [-1e4]]).requires_grad_()
        found = scores.step_bce(outputs, torch.tensor([0.0, 1.0]))
        assert found.tolist() == [1e4, 1e4]
        assert torch.autograd.grad(found.sum(), outputs)[0].tolist() == [[1.0], [-1.0]]

    def test_no_token_gives_no_loss(self) -> None:
        assert scores.step_bce(torch.zeros(0, 1), torch.zeros(0)).shape == (0,)


class TestBins:
    def test_it_is_the_mean_cross_entropy_with_each_scores_histogram(self) -> None:
        torch.manual_seed(0)
        outputs = torch.randn(5, 7, dtype=torch.float64).requires_grad_()
        worth, names = [0.2, -0.4, 0.9, 0.5, 0.2], [3, 1, 3, 3, 8]
        found = scores.hl_gauss(outputs, wide(worth), torch.tensor(names), -0.5, 1.5, 0.6)
        (slopes,) = torch.autograd.grad((found * wide([1, 2, 3])).sum(), outputs)
        expected = [0.0, 0.0, 0.0]
        for i, (score, name) in enumerate(zip(worth, names, strict=True)):
            at, width, sigma = [1, 3, 8].index(name), 2 / 7, 0.6 * 2 / 7
            below = [math.erf((-0.5 + b * width - score) / sigma / math.sqrt(2)) for b in range(8)]
            target = [(below[b + 1] - below[b]) / (below[7] - below[0]) for b in range(7)]
            total = sum(math.exp(x) for x in outputs[i].tolist())
            p = [math.exp(x) / total for x in outputs[i].tolist()]
            expected[at] -= sum(q * math.log(x) for q, x in zip(target, p, strict=True)) / names.count(name)
            slope = [(at + 1) * (x - q) / names.count(name) for q, x in zip(target, p, strict=True)]
            assert slopes[i].tolist() == pytest.approx(slope, rel=1e-9, abs=1e-12)
        assert found.tolist() == pytest.approx(expected, rel=1e-9)

    def test_finite_differences(self) -> None:
        torch.manual_seed(1)
        outputs = torch.randn(4, 5, dtype=torch.float64).requires_grad_()
        worth, groups = wide([0.1, 0.9, 0.4, 1.0]), torch.tensor([1, 0, 1, 1])
        assert torch.autograd.gradcheck(lambda x: scores.hl_gauss(x, worth, groups), (outputs,))

    def test_its_minimum_is_read_as_the_score(self) -> None:
        worth = wide([0.15, 0.5, 0.8])
        outputs = values.histogram(worth, 51, -0.5, 1.5, 0.75).clamp_min(1e-300).log().requires_grad_()
        found = scores.hl_gauss(outputs, worth, torch.arange(3), -0.5, 1.5)
        # A softmax minus its target: what is left is the rounding of exp and log.
        assert float(torch.autograd.grad(found.sum(), outputs)[0].abs().max()) < 1e-12
        # A Gaussian of 3/4 of a bin, summed over bins, has its mean where it stands, to about 1e-6 of a bin.
        torch.testing.assert_close(values.read_hl_gauss(outputs, -0.5, 1.5), worth, atol=1e-6, rtol=0)


class Made:
    """Two groups whose responses lie interleaved, and noise where the mask is False."""

    def __init__(self, lengths: list[int], names: list[int], worth: list[float], seed: int) -> None:
        draw = torch.Generator().manual_seed(seed)
        order = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
        self.mask = torch.rand(len(order), generator=draw) > 0.3
        self.segment, self.groups, self.scores = order, torch.tensor(names), wide(worth)
        self.states = torch.randn(len(order), 4, generator=draw, dtype=torch.float64).requires_grad_()

    def loss(self, states: Tensor | None = None, temperature: float = 0.1) -> Tensor:
        given = self.states if states is None else states
        return scores.contrastive(given, self.segment, self.mask, self.scores, self.groups, temperature)


def slow_contrastive(states: list[list[float]], made: Made, temperature: float) -> list[float]:
    cosine = lambda a, b: sum(x * y for x, y in zip(a, b, strict=True)) / math.hypot(*a) / math.hypot(*b)  # noqa: E731
    said: dict[int, list[list[float]]] = {i: [] for i in range(len(made.scores))}
    for token, response in enumerate(made.segment.tolist()):
        if made.mask[token]:
            said[response].append(states[token])
    losses = []
    for name in sorted(set(made.groups.tolist())):
        members = [i for i, n in enumerate(made.groups.tolist()) if n == name]
        worth = [float(made.scores[i]) for i in members]
        best, worst = said[members[worth.index(max(worth))]], said[members[worth.index(min(worth))]]
        terms = []
        for t in range(len(best) - 1):
            goal = t + math.ceil((len(best) - 1 - t) / 2)
            if not worst or max(worth) == min(worth):
                continue
            other = worst[goal] if goal < len(worst) else worst[-1]
            gap = (cosine(best[t], best[goal]) - cosine(best[t], other)) / temperature
            terms.append(math.log(1 + math.exp(-gap)))
        losses.append(sum(terms) / len(terms) if terms else 0.0)
    return losses


class TestContrast:
    @given(
        st.lists(
            st.tuples(st.integers(1, 9), st.sampled_from([2, 5]), st.sampled_from([0.0, 0.5, 1.0])),
            min_size=1,
            max_size=7,
        ),
        st.integers(0, 1000),
        st.sampled_from([0.1, 0.7]),
    )
    def test_value_and_gradient_over_ragged_interleaved_groups(self, rows: list, seed: int, temperature: float) -> None:
        made = Made(*(list(column) for column in zip(*rows, strict=True)), seed=seed)
        found = made.loss(temperature=temperature)
        plain = made.states.tolist()
        assert found.tolist() == pytest.approx(slow_contrastive(plain, made, temperature), rel=1e-9, abs=1e-12)
        weights = torch.arange(1, len(found) + 1).double()
        (slopes,) = torch.autograd.grad((found * weights).sum(), made.states)
        token, entry, step = seed % len(plain), seed % 4, 1e-5
        ends = []
        for sign in (1, -1):
            plain[token][entry] = float(made.states[token, entry].detach()) + sign * step
            ends.append(sum(k * x for k, x in enumerate(slow_contrastive(plain, made, temperature), start=1)))
        # Central differences are off by step^2 / 6 times a third derivative of about 1 / (temperature x length)^3, and
        # the shortest state here has length .2.
        assert float(slopes[token, entry]) == pytest.approx((ends[0] - ends[1]) / (2 * step), abs=1e-5, rel=1e-5)

    def test_finite_differences(self) -> None:
        made = Made([6, 4, 7, 3], [1, 0, 0, 1], [0.0, 1.0, 0.2, 0.7], seed=3)
        assert torch.autograd.gradcheck(lambda x: made.loss(x, 0.5), (made.states,))

    def test_the_best_is_drawn_to_its_own_future_and_away_from_the_worsts(self) -> None:
        states = wide([[1.0, 0.1], [0.2, 1.0], [0.3, 1.0]]).requires_grad_()  # best: two tokens; worst: one
        segment, mask = torch.tensor([0, 0, 1]), torch.ones(3, dtype=torch.bool)
        loss = scores.contrastive(states, segment, mask, wide([1.0, 0.0]), torch.tensor([4, 4]), 0.5)
        (slopes,) = torch.autograd.grad(loss.sum(), states)
        after = (states - 0.01 * slopes).detach()
        near = lambda s, i: float(torch.cosine_similarity(s[0], s[i], dim=0).detach())  # noqa: E731
        assert near(after, 1) > near(states, 1)
        assert near(after, 2) < near(states, 2)

    def test_the_length_of_a_state_does_not_matter(self) -> None:
        made = Made([6, 4], [0, 0], [0.0, 1.0], seed=1)
        sizes = torch.logspace(-3, 4, len(made.mask), dtype=torch.float64)[:, None]
        assert made.loss().item() > 0.01
        torch.testing.assert_close(made.loss(made.states * sizes), made.loss())

    @pytest.mark.parametrize(
        ("lengths", "worth"), [([1, 5], [1.0, 0.0]), ([5, 5], [0.5, 0.5]), ([5, 0], [1.0, 0.0]), ([5, 5, 0], [0, 0, 0])]
    )
    def test_nothing_to_contrast_gives_exactly_nothing_and_can_be_differentiated(
        self, lengths: list[int], worth: list[float]
    ) -> None:
        made = Made(lengths, [0] * len(lengths), worth, seed=0)
        made.mask.fill_(True)
        found = made.loss()
        assert found.tolist() == [0.0]
        assert float(torch.autograd.grad(found.sum(), made.states)[0].abs().max()) == 0.0

    @pytest.mark.parametrize("size", [0.0, 1e-20, 1e4])
    def test_states_of_any_size_have_finite_gradients(self, size: float) -> None:
        states = (size * torch.tensor([[1.0, 2.0], [1.0, -1.0], [0.5, 0.2]])).requires_grad_()
        loss = scores.contrastive(
            states, torch.tensor([0, 0, 1]), torch.ones(3, dtype=torch.bool), torch.tensor([1.0, 0.0]), torch.zeros(2)
        )
        (slopes,) = torch.autograd.grad(loss.sum(), states)
        assert bool(loss.isfinite().all() and slopes.isfinite().all())
