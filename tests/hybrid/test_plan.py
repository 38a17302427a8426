"""The plan against gather-then-slice, over worlds, layouts, shapes, ties and fusions."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from posttrain.hybrid.plan import Generation, Plan, Tensor, Training, make_plan, schedule
from tests.hybrid.made_plans import Made, execute, sliced, stored

SHARDED = (
    (r".*[qkv]_proj\.\w+|.*(gate|up)_proj\.weight|.*embed_tokens.*|lm_head.*", 0),
    (r".*(o|down)_proj\.weight", 1),
)


@st.composite
def models(draw: st.DrawFn, degree: int) -> Made:
    """A model that tensor parallelism of `degree` fits."""
    kv = draw(st.sampled_from([n for n in (1, 2, 3, 4, 6, 8) if max(n, degree) % min(n, degree) == 0]))
    heads = kv * draw(st.integers(1, 3))
    while heads % degree:
        heads += kv
    family = draw(st.sampled_from(["llama", "qwen2", "phi3", "mixtral", "qwen3_moe"]))
    moe = family in ("mixtral", "qwen3_moe")
    return Made(
        family,
        layers=draw(st.integers(1, 2)),
        heads=heads,
        kv_heads=kv,
        head_dim=draw(st.integers(1, 3)),
        hidden=draw(st.integers(1, 7)),
        intermediate=degree * draw(st.integers(1, 3)),
        # 64 is cut by 2, 4, 8 only; 192 by 3 and 6; 320 by 5; 448 by 7.
        vocabulary=draw(st.integers(1, 64)) + {3: 128, 6: 128, 5: 256, 7: 384}.get(degree, 0),
        experts=(degree if family == "qwen3_moe" else 1) + draw(st.integers(0, 2)) if moe else 0,
        stacked=moe and draw(st.booleans()),
        tied=draw(st.booleans()),
        bias=family == "qwen2",
    )


@st.composite
def cases(draw: st.DrawFn) -> tuple[Made, Training, Generation, int]:
    degree = draw(st.integers(1, 8))
    replicas = draw(st.integers(1, 8 // degree))
    colocated = draw(st.booleans())
    ranks = degree * replicas if colocated else draw(st.integers(1, 8))
    tensor = draw(st.sampled_from([n for n in range(1, ranks + 1) if ranks % n == 0]))
    shards = draw(st.sampled_from(["whole", "rows", "flat"]))
    groups = ranks // tensor
    copies = 1 if shards == "whole" else draw(st.sampled_from([n for n in range(1, groups + 1) if groups % n == 0]))
    made = draw(models(degree))
    dims = SHARDED if tensor > 1 else ()
    training = Training(ranks, shards, copies, tensor, dims)
    machine = draw(st.sampled_from([None, 1, 2, 3])) if colocated else None
    return made, training, Generation(degree, replicas, colocated, machine), draw(st.sampled_from([1, 2, 4, 8]))


def plan_of(case: tuple[Made, Training, Generation, int]) -> Plan:
    made, training, generation, itemsize = case
    ties = {"lm_head.weight": "model.embed_tokens.weight"} if made.tied else {}
    return make_plan(made.tensors(itemsize), made.architecture, training, generation, ties)


@given(cases())
@settings(max_examples=150)
def test_executing_the_plan_is_gathering_and_slicing_with_every_element_written_once(
    case: tuple[Made, Training, Generation, int],
) -> None:
    made, _, generation, _ = case
    plan, arrays = plan_of(case), made.arrays()
    target, times = execute(plan, arrays)
    for rank in range(generation.ranks):
        t = rank % generation.tensor
        wanted = sliced(made, arrays, generation.tensor, t)
        assert set(target[rank]) == set(wanted)
        for name, array in wanted.items():
            np.testing.assert_array_equal(target[rank][name], array, err_msg=f"{name} on rank {rank}")
            # The checkpoint has no zero, so what is zero is padding.
            np.testing.assert_array_equal(times[rank][name], array != 0, err_msg=f"{name} on rank {rank}")
            padding = plan.parameters[name].padding(t)
            covered = np.zeros(array.shape, bool)
            if padding is not None:
                covered[tuple(slice(*r) for r in padding)] = True
            np.testing.assert_array_equal(covered, array == 0)


@given(cases())
@settings(max_examples=100)
def test_no_rank_receives_more_than_what_it_holds_and_does_not_store(
    case: tuple[Made, Training, Generation, int],
) -> None:
    made, training, generation, itemsize = case
    plan, arrays = plan_of(case), made.arrays()
    received, sent = [0] * generation.ranks, [0] * training.ranks
    copied = [0] * generation.ranks
    for source, destination, move in plan.moves():
        assert move.nbytes == np.prod(move.shape) * itemsize
        if generation.colocated and source == destination:
            copied[destination] += move.nbytes
        else:
            received[destination] += move.nbytes
            sent[source] += move.nbytes
    assert plan.sent() == sent
    for rank, traffic in enumerate(plan.traffic()):
        wanted = np.concatenate(
            [a.ravel() for a in sliced(made, arrays, generation.tensor, rank % generation.tensor).values()]
        )
        wanted = wanted[wanted != 0]
        own = {n for k, a in arrays.items() for n in stored(a, k, training, rank)} if generation.colocated else set()
        bound = itemsize * sum(n not in own for n in wanted)
        assert (traffic.holds, traffic.local, traffic.received) == (
            wanted.size * itemsize,
            copied[rank],
            received[rank],
        )
        assert traffic.received == traffic.bound == bound


@given(cases(), st.integers(1, 3000))
@settings(max_examples=100)
def test_rounds_carry_the_plan_under_the_cap_and_both_ends_see_the_same_messages(
    case: tuple[Made, Training, Generation, int], cap: int
) -> None:
    made, training, generation, _ = case
    plan, arrays = plan_of(case), made.arrays()
    times = schedule(plan, cap)
    all_moves, messages, peak = [], 0, 0
    to_rank = [0] * generation.ranks
    for number in times.rounds:
        everything = number.messages()
        assert [m for r in range(training.ranks) for m in number.messages(source=r)] == everything
        by_target = sorted(everything, key=lambda m: (m.destination, m.source))
        assert [m for r in range(generation.ranks) for m in number.messages(destination=r)] == by_target
        sent, received = [0] * training.ranks, [0] * generation.ranks
        for message in everything:
            assert message.local == (generation.colocated and message.source == message.destination)
            assert message.nbytes == sum(move.nbytes for move in message.moves) > 0
            all_moves += [(message.source, message.destination, move) for move in message.moves]
            if not message.local:
                messages += 1
                to_rank[message.destination] += 1
                sent[message.source] += message.nbytes
                received[message.destination] += message.nbytes
        both = [s + r for s, r in zip(sent, received, strict=True)] if generation.colocated else sent + received
        peak = max(peak, *both)
    assert times.messages == messages
    assert times.busiest == max(to_rank)
    assert times.peak == peak
    target, _ = execute(plan, arrays, all_moves)
    for rank in range(generation.ranks):
        for name, array in sliced(made, arrays, generation.tensor, rank % generation.tensor).items():
            np.testing.assert_array_equal(target[rank][name], array)


def test_a_cap_is_kept_by_every_rank_in_both_directions() -> None:
    made = Made(layers=4, heads=8, kv_heads=4, head_dim=16, hidden=64, intermediate=128, vocabulary=1000)
    # A row of the widest tensor is 512 bytes.
    for training in (Training(4, "rows"), Training(4, "flat"), Training(4), Training(4, "rows", replicas=2)):
        for generation in (Generation(2, 2), Generation(2, 1, False), Generation(1, 3, False)):
            plan = make_plan(made.tensors(), made.architecture, training, generation)
            for cap in (20_000, 100_000, 10**9):
                times = schedule(plan, cap)
                for number in times.rounds:
                    for rank in range(4):
                        assert sum(m.nbytes for m in number.messages(source=rank) if not m.local) <= cap
                        assert sum(m.nbytes for m in number.messages(destination=rank) if not m.local) <= cap
                assert times.peak <= (2 * cap if generation.colocated else cap)
            assert len(times.rounds) == 1


def test_tensors_travel_in_the_order_of_the_checkpoint() -> None:
    made = Made(layers=3)
    plan = make_plan(made.tensors(), made.architecture, Training(2, "rows"), Generation(2))
    order = [t.name for t in made.tensors()]
    seen = [m.tensor for number in schedule(plan, 300).rounds for msg in number.messages(0, 1) for m in msg.moves]
    assert len(seen) == 10
    assert [order.index(name) for name in seen] == sorted(order.index(name) for name in seen)


def test_replicas_share_the_sending_evenly() -> None:
    made = Made(layers=6, heads=4, kv_heads=4, hidden=16, intermediate=32, vocabulary=640)
    largest = max(t.nbytes for t in made.tensors())
    for ranks in range(1, 9):
        for generation in (
            Generation(1, 1, False),
            Generation(2, 1, False),
            Generation(2, 2, False),
            Generation(1, 3, False),
        ):
            plan = make_plan(made.tensors(), made.architecture, Training(ranks), generation)
            sent = plan.sent()
            assert sum(sent) == sum(t.received for t in plan.traffic())
            assert max(sent) - min(sent) <= largest // generation.tensor
    # Replicas of shards, apart: both holders of a shard send about half of it.
    plan = make_plan(made.tensors(), made.architecture, Training(8, "rows", replicas=2), Generation(2, 1, False))
    sent = plan.sent()
    for shard in range(4):
        assert abs(sent[shard] - sent[4 + shard]) <= largest // 4


def test_a_colocated_rank_that_holds_everything_copies_and_nothing_is_sent() -> None:
    made = Made()
    plan = make_plan(made.tensors(), made.architecture, Training(4), Generation(2, 2))
    assert all(t.received == t.bound == 0 < t.local == t.holds for t in plan.traffic())
    assert plan.sent() == [0] * 4
    times = schedule(plan, 1)
    assert (times.messages, times.peak, len(times.rounds)) == (0, 0, 1)


def test_shards_come_from_the_same_machine_where_one_there_has_them() -> None:
    made = Made(hidden=8, heads=4)
    training = Training(8, "rows", replicas=2)
    for per_machine, across in ((4, 0), (None, 1)):
        plan = make_plan(made.tensors(), made.architecture, training, Generation(4, 2, True, per_machine))
        crossing = sum(move.nbytes for s, d, move in plan.moves() if s // 4 != d // 4)
        assert (crossing > 0) == bool(across)
        assert all(t.received == t.bound for t in plan.traffic())


def test_bytes_to_a_rank_are_about_the_model_over_the_tensor_parallelism() -> None:
    """A Llama of 8 billion parameters: what every rank needs whole (norms) is little."""
    tensors = big(32, 4096, 14336, 128256, 32, 8)
    total = sum(t.nbytes for t in tensors)
    assert 8.0e9 < total / 2 < 8.1e9
    architecture = Made(heads=32, kv_heads=8, vocabulary=128256).architecture
    for training in (Training(64, "rows"), Training(64, "flat"), Training(64, "rows", replicas=8)):
        plan = make_plan(tensors, architecture, training, Generation(8, 8))
        for traffic in plan.traffic():
            assert traffic.received == traffic.bound < traffic.holds < 1.001 * total / 8
        assert max(plan.sent()) < 1.1 * total / 8


def big(layers: int, hidden: int, inner: int, vocabulary: int, heads: int, kv: int) -> list[Tensor]:
    made = Made("llama", layers, heads, kv, hidden // heads, hidden, inner, vocabulary)
    return made.tensors(2)
