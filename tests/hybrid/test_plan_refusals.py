"""Layouts that cannot be are refused with the numbers, and what would do."""

from __future__ import annotations

import pytest

from posttrain.errors import ModelError, RecipeError
from posttrain.hybrid.plan import FAMILIES, Architecture, Generation, Tensor, Training, degrees, make_plan, schedule
from tests.hybrid.made_plans import Made

SMOL = Made(layers=1, heads=9, kv_heads=3, head_dim=64, hidden=576, intermediate=1536, vocabulary=49152, tied=True)


def refusal(made: Made, training: Training, generation: Generation, tensors: list[Tensor] | None = None) -> str:
    with pytest.raises((RecipeError, ModelError)) as caught:
        make_plan(made.tensors() if tensors is None else tensors, made.architecture, training, generation)
    return str(caught.value)


def test_two_ranks_cannot_share_nine_heads_and_the_degrees_that_can_are_named() -> None:
    text = refusal(SMOL, Training(2), Generation(2))
    assert "tensor_parallel: 2 does not divide this llama model (num_attention_heads is 9); what does: 1, 3" in text
    # Nine would do for the heads, but not for 1536 / 9.
    assert "the intermediate size of mlp.gate_proj is 1536" in refusal(SMOL, Training(9), Generation(9))
    assert degrees(SMOL.tensors(), SMOL.architecture) == [1, 3]


@pytest.mark.parametrize(
    ("made", "degree", "said"),
    [
        (Made(heads=6, kv_heads=3, intermediate=12, vocabulary=192), 2, "num_key_value_heads is 3"),
        (Made(heads=4, kv_heads=2, intermediate=6), 4, "the intermediate size of mlp.gate_proj is 6"),
        (Made("phi3", heads=4, kv_heads=4, intermediate=6), 4, "the intermediate size of mlp.gate_up_proj is 6"),
        (Made("qwen3_moe", heads=4, experts=3), 4, "num_experts is 3, fewer than the ranks"),
        (Made("mixtral", heads=4, intermediate=6, experts=2), 4, "the intermediate size of experts.w1 is 6"),
        (
            Made(heads=3, kv_heads=3, intermediate=6, vocabulary=70),
            3,
            "vocab_size 70, padded to a multiple of 64, is 128",
        ),
    ],
)
def test_every_size_that_does_not_fit_is_named(made: Made, degree: int, said: str) -> None:
    assert said in refusal(made, Training(degree), Generation(degree))


def test_every_mistake_is_told_at_once() -> None:
    made = Made(heads=9, kv_heads=3, intermediate=7)
    text = refusal(made, Training(2), Generation(2))
    assert "num_attention_heads is 9" in text
    assert "mlp.gate_proj is 7" in text
    assert "mlp.down_proj is 7" in text


def test_worlds_that_cannot_be_are_refused_with_their_numbers() -> None:
    made = Made()
    text = refusal(made, Training(6, "rows"), Generation(2, 2))
    assert "2 x 2 replicas = 4 engine ranks, but 6 training processes" in text
    assert "1 (x 6), 2 (x 3), 3 (x 2), 6 (x 1)" in text
    make_plan(made.tensors(), made.architecture, Training(6, "rows"), Generation(2, 2, colocated=False))
    assert "tensor_parallel: 0 cannot be" in refusal(made, Training(1), Generation(0))
    assert "replicas: -1 cannot be" in refusal(made, Training(1), Generation(1, -1))
    for changes, said in (
        ({"ranks": 0}, "ranks: 0"),
        ({"ranks": 6, "shards": "rows", "replicas": 4}, "6 training ranks are no multiple of 4 replicas"),
        ({"ranks": 4, "replicas": 2}, "with shards whole"),
        ({"ranks": 4, "tensor": 2}, "dims: tensor parallelism needs"),
        ({"ranks": 4, "tensor": 3, "dims": ((".*", 0),)}, "3 of tensor parallelism"),
    ):
        with pytest.raises(RecipeError, match=said):
            Training(**changes)
    plan = make_plan(made.tensors(), made.architecture, Training(1), Generation())
    with pytest.raises(RecipeError, match="cap: 0 bytes"):
        schedule(plan, 0)


def test_a_tensor_without_a_rule_is_named_not_guessed() -> None:
    made = Made()
    extra = Tensor("model.layers.0.self_attn.sinks", (4,), 4)
    assert "model.layers.0.self_attn.sinks: it is not known how vLLM cuts this" in refusal(
        made, Training(1), Generation(), [*made.tensors(), extra]
    )


def test_a_family_without_rules_is_named_with_those_that_have() -> None:
    config = {"model_type": "qwen2moe", "num_attention_heads": 2, "vocab_size": 3}
    with pytest.raises(ModelError, match=r"model_type: qwen2moe .*did you mean qwen2_moe.*llama, mistral"):
        Architecture.of(config)
    for family in FAMILIES:
        found = Architecture.of({**config, "model_type": family, "num_experts": 4})
        assert (found.family, found.heads, found.kv_heads, found.experts) == (family, 2, 2, 4)
        assert found.tied == family.startswith("gemma")


def test_an_incomplete_or_contradictory_checkpoint_is_refused_before_anything_is_sent() -> None:
    made = Made()
    one = (made, Training(1), Generation())
    without = [t for t in made.tensors() if t.name != "model.layers.1.self_attn.k_proj.weight"]
    assert "layers.1.self_attn.qkv_proj.weight: no tensor fills part 2 of 3" in refusal(*one, without)
    twice = [*made.tensors(), made.tensors()[0]]
    assert "model.embed_tokens.weight: named twice" in refusal(*one, twice)
    wide = [Tensor(t.name, (t.shape[0], 7), 4) if "v_proj" in t.name else t for t in made.tensors()]
    assert "v_proj.weight: makes model.layers.0.self_attn.qkv_proj.weight [16, 7]" in refusal(*one, wide)
    resized = [Tensor(t.name, (71, 6), 4) if "embed" in t.name else t for t in made.tensors()]
    assert "model.embed_tokens.weight: 71 rows, but vocab_size of the config is 70" in refusal(*one, resized)
    odd = [Tensor(t.name, (7, 6), 4) if "q_proj" in t.name else t for t in made.tensors()]
    assert "q_proj.weight: its 7 rows cannot be 4 heads" in refusal(*one, odd)
    moe = Made("qwen3_moe", experts=3)
    missing = [t for t in moe.tensors() if "experts.1.up" not in t.name]
    text = refusal(moe, Training(1), Generation(), missing)
    assert "layers.0.mlp.experts.routed_experts.w13_weight: no tensor fills part 2 of 2 of expert 1" in text
    text = refusal(Made("qwen3_moe", experts=2), Training(1), Generation(), moe.tensors())
    assert "expert 2 of a model whose config says 2 experts" in text


def test_a_head_of_its_own_cannot_go_into_an_engine_that_ties_it() -> None:
    made = Made(tied=True)
    head = Tensor("lm_head.weight", (70, 6), 4)
    assert "lm_head.weight: a tensor of its own" in refusal(made, Training(1), Generation(), [*made.tensors(), head])


def test_a_tied_head_is_sent_twice_only_where_the_engine_has_two() -> None:
    made, ties = Made(tied=True), {"lm_head.weight": "model.embed_tokens.weight"}
    alone = make_plan(made.tensors(), made.architecture, Training(1), Generation(), ties)
    assert alone.aliases == ties
    assert "lm_head.weight" not in alone.parameters
    untied = Architecture("llama", made.heads, made.kv_heads, made.vocabulary)
    both = make_plan(made.tensors(), untied, Training(1), Generation(), ties)
    assert both.aliases == {}
    moves = [m for _, _, m in both.moves() if m.parameter == "lm_head.weight"]
    assert [m.tensor for m in moves] == ["model.embed_tokens.weight"]
    with pytest.raises(ModelError, match=r"lm_head.weight: tied to nowhere"):
        make_plan(made.tensors(), untied, Training(1), Generation(), {"lm_head.weight": "nowhere"})
