"""Log-probabilities, entropies and divergences by chunks equal those of the whole table, in value and in gradient."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from posttrain import logits
from posttrain.algorithms.choice import choose
from posttrain.learner.layout import Layout
from posttrain.learner.logprobs import Extras, chosen_logprobs, exact_kl
from posttrain.learner.references import References
from posttrain.models.checkpoint import load_policy
from posttrain.recipe import Model
from tests.learner.steps import accumulated, policy_gradient
from tests.tiny import randomise, samples, taking_trees, tiny_folder, tiny_learner

Tensors = tuple[Tensor, ...]
CHUNKS = pytest.mark.parametrize("chunk", [1, 5, 64])
EVERYTHING = Extras(entropy=True, uniform=True, collision=True)


@pytest.fixture(params=[2**20, 60, 1], ids=["whole chunks", "two rows", "single rows"])
def blocks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Logits that are worked on at a time, of a vocabulary of 29."""
    monkeypatch.setitem(logits.BLOCK, "cpu", request.param)


def made(positions: int = 13, vocabulary: int = 29, width: int = 6) -> tuple[Tensor, Tensor, Tensor]:
    """Hidden states, a head and targets."""
    torch.manual_seed(1)
    hidden = torch.randn(positions, width, dtype=torch.float64)
    return hidden, torch.randn(vocabulary, width, dtype=torch.float64), torch.randint(0, vocabulary, (positions,))


def gradients(function: Callable[[Tensor, Tensor], Tensor], hidden: Tensor, weight: Tensor) -> Tensors:
    """Of a scalar, in the hidden states and in the head."""
    inputs = [t.clone().requires_grad_() for t in (hidden, weight)]
    return torch.autograd.grad(function(*inputs), inputs)


def table(hidden: Tensor, weight: Tensor, temperature: float) -> Tensor:
    """`[M, V]`."""
    return (hidden @ weight.t() / temperature).log_softmax(-1)


def entropy(found: Tensor) -> Tensor:
    return -(found.exp() * found).sum(-1)


def collision(found: Tensor) -> Tensor:
    """Of two draws from each row of a table, the log of the chance that they are the same."""
    chances = [math.fsum(math.exp(x) ** 2 for x in row) for row in found.tolist()]
    return torch.tensor(chances, dtype=found.dtype).log()


@CHUNKS
@pytest.mark.usefixtures("blocks")
def test_log_probabilities_entropies_uniform_means_and_collisions_equal_the_full_table(chunk: int) -> None:
    hidden, weight, targets = made()
    hidden.requires_grad_()
    whole = table(hidden, weight, 0.7).detach()
    for asked in (Extras(), Extras(uniform=True), Extras(collision=True), EVERYTHING):
        found = chosen_logprobs(hidden, weight, targets, 0.7, chunk, asked)
        torch.testing.assert_close(found.logprobs.detach(), whole.gather(1, targets[:, None])[:, 0])
        torch.testing.assert_close(found.entropy.detach(), entropy(whole))
        assert found.logprobs.requires_grad
        assert found.entropy.requires_grad == asked.entropy
        assert not found.uniform.requires_grad
        assert not found.collision.requires_grad
        if asked.uniform:
            torch.testing.assert_close(found.uniform, whole.mean(-1))
        if asked.collision:
            torch.testing.assert_close(found.collision, collision(whole))
        else:
            assert not bool(found.collision.any())


def test_two_draws_collide_for_sure_where_one_token_is_certain_and_seldom_where_all_are_alike() -> None:
    """Logits of +-1e4 neither overflow nor vanish."""
    weight = torch.tensor([[1e4], [-1e4], [-1e4], [-1e4]], dtype=torch.float64)
    states = torch.tensor([[1.0], [0.0], [-1.0]], dtype=torch.float64)
    found = chosen_logprobs(states, weight, torch.zeros(3, dtype=torch.long), 1.0, 2, Extras(collision=True))
    assert found.collision.tolist() == pytest.approx([0.0, -math.log(4), -math.log(3)])


@CHUNKS
@pytest.mark.usefixtures("blocks")
@pytest.mark.parametrize("share", [0.0, 0.3])
def test_gradients_of_log_probabilities_and_entropies_equal_those_of_the_full_table(chunk: int, share: float) -> None:
    hidden, weight, targets = made()
    slopes = torch.randn(2, len(targets), dtype=torch.float64)

    def fast(h: Tensor, w: Tensor) -> Tensor:
        found = chosen_logprobs(h, w, targets, 0.7, chunk, EVERYTHING if share else None)
        return (slopes[0] * found.logprobs).sum() + (share * (slopes[1] * found.entropy).sum() if share else 0.0)

    def slow(h: Tensor, w: Tensor) -> Tensor:
        whole = table(h, w, 0.7)
        return (slopes[0] * whole.gather(1, targets[:, None])[:, 0]).sum() + share * (slopes[1] * entropy(whole)).sum()

    for a, b in zip(gradients(fast, hidden, weight), gradients(slow, hidden, weight), strict=True):
        torch.testing.assert_close(a, b)


def test_gradients_agree_with_finite_differences() -> None:
    hidden, weight, targets = made(5, 7, 3)
    other, other_weight = torch.randn(5, 4, dtype=torch.float64), torch.randn(7, 4, dtype=torch.float64)
    leaves = tuple(t.clone().requires_grad_() for t in (hidden, weight))
    assert torch.autograd.gradcheck(lambda h, w: chosen_logprobs(h, w, targets, 0.7, 2)[0], leaves)
    assert torch.autograd.gradcheck(lambda h, w: chosen_logprobs(h, w, targets, 0.7, 2, EVERYTHING)[:2], leaves)
    assert torch.autograd.gradcheck(lambda h, w: exact_kl(h, w, other, other_weight, 0.7, 2), leaves)


def test_an_entropy_that_is_not_sought_has_no_gradient() -> None:
    hidden, weight, targets = made()
    for extras in (None, Extras(uniform=True)):
        found = chosen_logprobs(hidden.requires_grad_(), weight, targets, 1.0, 5, extras)
        assert not found.entropy.requires_grad


@CHUNKS
@pytest.mark.usefixtures("blocks")
@pytest.mark.parametrize("temperature", [0.6, 1.0])
def test_the_exact_divergence_equals_that_of_the_full_tables_in_value_and_gradient(
    chunk: int, temperature: float
) -> None:
    """The reference may be wider than the policy: the vocabulary is what they share."""
    hidden, weight, _ = made()
    other, other_weight = torch.randn(13, 8, dtype=torch.float64), torch.randn(29, 8, dtype=torch.float64)
    slopes = torch.randn(13, dtype=torch.float64)
    q = table(other, other_weight, temperature)

    def slow(h: Tensor, w: Tensor) -> Tensor:
        p = table(h, w, temperature)
        return (p.exp() * (p - q)).sum(-1)

    def fast(h: Tensor, w: Tensor) -> Tensor:
        return exact_kl(h, w, other, other_weight, temperature, chunk)

    torch.testing.assert_close(fast(hidden, weight), slow(hidden, weight))
    assert bool((fast(hidden, weight) > 0).all())
    found, expected = (gradients(lambda h, w, f=f: (slopes * f(h, w)).sum(), hidden, weight) for f in (fast, slow))
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b)


def test_the_divergence_of_a_policy_from_itself_is_exactly_nothing_and_does_not_move_it() -> None:
    hidden, weight, _ = made()
    assert not bool(exact_kl(hidden, weight, hidden, weight, 0.7, 5).any())
    for found in gradients(lambda h, w: exact_kl(h, w, hidden, weight, 0.7, 5).sum(), hidden, weight):
        assert float(found.abs().max()) <= 1e-15


def test_half_precision_is_computed_in_full() -> None:
    hidden, weight, targets = (t.to(torch.bfloat16) if t.is_floating_point() else t for t in made())
    found = chosen_logprobs(hidden, weight, targets, 1.0, 5, EVERYTHING)
    assert {t.dtype for t in found} == {torch.float32}
    whole = (hidden @ weight.t()).float().log_softmax(-1)
    torch.testing.assert_close(found.logprobs, whole.gather(1, targets[:, None])[:, 0])
    torch.testing.assert_close(found.entropy, entropy(whole))
    torch.testing.assert_close(found.collision, collision(whole))
    assert exact_kl(hidden, weight, hidden, weight, 1.0, 5).dtype == torch.float32


@pytest.mark.usefixtures("blocks")
def test_gradients_in_half_precision_do_not_depend_on_blocks() -> None:
    """Row by row the same operations; only the products of a chunk see all of its rows."""
    hidden, weight, targets = (t.bfloat16() if t.is_floating_point() else t for t in made())

    def fast(h: Tensor, w: Tensor) -> Tensor:
        found = chosen_logprobs(h, w, targets, 0.7, 5, EVERYTHING)
        return (found.logprobs + 0.3 * found.entropy).sum()

    def slow(h: Tensor, w: Tensor) -> Tensor:
        whole = ((h @ w.t()).float() / 0.7).log_softmax(-1)
        return (whole.gather(1, targets[:, None])[:, 0] + 0.3 * entropy(whole)).sum()

    for found, expected in zip(*(gradients(f, hidden, weight) for f in (fast, slow)), strict=True):
        # A slope is rounded to bf16 once on either way, and a sum of 13 or 29 of them once more.
        torch.testing.assert_close(found, expected, rtol=2**-6, atol=2**-6 * float(expected.abs().max()))


@pytest.mark.parametrize("exact", [False, True])
def test_nothing_of_the_size_of_the_table_is_kept_for_the_backward_pass(exact: bool) -> None:
    # A table of half precision would be twice what may be kept.
    positions, vocabulary, width, chunk = 512, 12288, 8, 64
    hidden = torch.randn(positions, width, dtype=torch.bfloat16, requires_grad=True)
    weight = torch.randn(vocabulary, width, dtype=torch.bfloat16, requires_grad=True)
    kept: dict[int, int] = {}

    def pack_hook(tensor: Tensor) -> Tensor:
        kept[tensor.data_ptr()] = tensor.numel() * tensor.element_size()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack_hook, lambda t: t):
        if exact:
            exact_kl(hidden, weight, hidden.detach() + 1, weight.detach() + 1, 1.0, chunk)
        else:
            chosen_logprobs(hidden, weight, torch.randint(0, vocabulary, (positions,)), 1.0, chunk, EVERYTHING)
    assert sum(kept.values()) <= 2 * chunk * vocabulary * 4


@pytest.mark.parametrize("layout", ["tree", "rows", "packed"])
def test_uniform_means_are_those_of_a_plain_forward_pass(tmp_path: Path, layout: Layout) -> None:
    learner = tiny_learner(tiny_folder(tmp_path), torch.float64, layout, budget=30, temperature=0.6)
    rollouts = [s.rollout for s in samples()]
    for found, rollout in zip(learner.uniform(rollouts), rollouts, strict=True):
        with torch.no_grad():
            whole = (learner.model(torch.tensor([rollout.tokens])).logits[0] / 0.6).log_softmax(-1)
        for t, said in enumerate(rollout.mask):
            assert float(found[t]) == pytest.approx(float(whole[t - 1].mean()) if said else 0.0, abs=1e-6)


@pytest.mark.parametrize("tied", [False, True])
def test_an_exact_penalty_reaches_heads_that_are_tied_and_heads_that_are_not(tmp_path: Path, tied: bool) -> None:
    """Alone in the loss: the advantages are nothing."""
    folder = tiny_folder(tmp_path, tied=tied)
    learner = tiny_learner(folder, torch.float64, budget=30, temperature=0.7)
    reference = taking_trees(load_policy(folder, Model(path=str(folder)), torch.float64, "cpu"))
    randomise(reference, 5, 0.05)
    learner.references = References([reference])
    batch = [s for s in samples() if bool(s.mask.any())]
    for s in batch:
        s.advantages.zero_()
    algorithm = choose(
        "grpo", {"kl": "in_loss", "kl_estimator": "exact", "kl_coefficient": 0.5, "reduction": "token_mean"}
    )
    report = accumulated(learner, batch, algorithm)
    found = policy_gradient(learner)
    learner.discard()
    each = []
    for s in batch:
        ids = torch.tensor([s.rollout.tokens])
        p, q = ((m(ids).logits[0] / 0.7).log_softmax(-1) for m in (learner.model, reference))
        each += [(p[t - 1].exp() * (p[t - 1] - q[t - 1])).sum() for t in s.mask.nonzero()[:, 0].tolist()]
    mean = sum(each) / len(each)
    (0.5 * mean).backward()
    assert report.values()["learn/kl"] == pytest.approx(float(mean.detach()), abs=1e-6)
    torch.testing.assert_close(found, policy_gradient(learner), atol=1e-6, rtol=1e-6)
    assert len(learner.stepper.masters.parameters) == 20 + (not tied)
