"""The shape of a decoder: its tensors, and the arithmetic of a token, from its config."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import Any

from posttrain.errors import ModelError

NEEDED = ("hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size")
BIASED = ("qwen2", "qwen2_moe")
"""Families whose queries, keys and values have a bias that no key of their config tells of."""
NORMED = ("qwen3", "qwen3_moe", "gemma3_text")
"""Families that normalise queries and keys."""
SANDWICHED = ("gemma2", "gemma3_text")
"""Families with a norm after attention and MLP too."""


@dataclass(frozen=True)
class Experts:
    """Routed MLPs of a layer."""

    count: int
    active: int
    """Of them, how many compute a token."""
    width: int
    shared: int = 0
    """Width of the one that computes every token; 0 where there is none."""


@dataclass(frozen=True)
class Shape:
    """Sizes of a decoder with gated MLPs, dense or of experts."""

    family: str
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_size: int
    width: int
    """Of the MLP's intermediate states."""
    vocabulary: int
    tied: bool
    experts: Experts | None = None
    context: int | None = None

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> Shape:
        """From a config.json. Raises ModelError naming the sizes that it lacks."""
        text = config.get("text_config") or config
        if lacking := [key for key in NEEDED if not isinstance(text.get(key), int)]:
            raise ModelError(
                f"model.path: its config has no {', '.join(lacking)}, so its shape is not known; only decoders of the "
                "Llama kind, dense or of experts, can be planned"
            )
        heads, family = text["num_attention_heads"], str(text.get("model_type"))
        experts = _experts(text)
        return cls(
            family,
            text["hidden_size"],
            text["num_hidden_layers"],
            heads,
            text.get("num_key_value_heads") or heads,
            text.get("head_dim") or text["hidden_size"] // heads,
            text.get("intermediate_size") or (experts.width if experts else 4 * text["hidden_size"]),
            text["vocab_size"],
            bool(text.get("tie_word_embeddings", family.startswith("gemma"))),
            experts,
            text.get("max_position_embeddings"),
        )

    @property
    def queries(self) -> int:
        """Width of a layer's queries, and of what attention puts out."""
        return self.heads * self.head_size

    @property
    def keys(self) -> int:
        """Width of a layer's keys; of its values too."""
        return self.kv_heads * self.head_size

    @property
    def norms(self) -> int:
        """Norms of hidden states in a layer."""
        return 4 if self.family in SANDWICHED else 2

    def tensors(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        """Name and shape of every tensor, a tied head left out, experts stacked as transformers holds them."""
        yield "model.embed_tokens.weight", (self.vocabulary, self.hidden)
        for index in range(self.layers):
            for name, shape in self.layer():
                yield f"model.layers.{index}.{name}", shape
        yield "model.norm.weight", (self.hidden,)
        if not self.tied:
            yield "lm_head.weight", (self.vocabulary, self.hidden)

    def layer(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        """Name and shape of every tensor of one layer."""
        yield from self.projections()
        if self.family in BIASED:
            sizes = (("q", self.queries), ("k", self.keys), ("v", self.keys))
            yield from ((f"self_attn.{name}_proj.bias", (size,)) for name, size in sizes)
        if self.family in NORMED:
            yield from ((f"self_attn.{name}_norm.weight", (self.head_size,)) for name in "qk")
        names = ["input_layernorm", "post_attention_layernorm"]
        names += ["pre_feedforward_layernorm", "post_feedforward_layernorm"] if self.norms == 4 else []
        yield from ((f"{name}.weight", (self.hidden,)) for name in names)
        if self.experts:
            count, width = self.experts.count, self.experts.width
            yield "mlp.gate.weight", (count, self.hidden)
            yield "mlp.experts.gate_up_proj", (count, 2 * width, self.hidden)
            yield "mlp.experts.down_proj", (count, self.hidden, width)
            if self.experts.shared:
                yield "mlp.shared_expert_gate.weight", (1, self.hidden)

    def projections(self) -> Iterator[tuple[str, tuple[int, int]]]:
        """The matrices of one layer that every token is multiplied with: what adapters are put beside."""
        yield "self_attn.q_proj.weight", (self.queries, self.hidden)
        yield "self_attn.k_proj.weight", (self.keys, self.hidden)
        yield "self_attn.v_proj.weight", (self.keys, self.hidden)
        yield "self_attn.o_proj.weight", (self.hidden, self.queries)
        width = self.experts.shared if self.experts else self.width
        if width:
            block = "mlp.shared_expert" if self.experts else "mlp"
            words = ("gate_proj", "up_proj", "down_proj")
            for word, shape in zip(words, self._mlp(width), strict=True):
                yield f"{block}.{word}.weight", shape

    def _mlp(self, width: int) -> tuple[tuple[int, int], tuple[int, int], tuple[int, int]]:
        """Gate, up and down."""
        return (width, self.hidden), (width, self.hidden), (self.hidden, width)

    @property
    def parameters(self) -> int:
        """Numbers in all tensors, each once."""
        ends = self.embedding_parameters * (1 if self.tied else 2) + self.hidden
        return self.layers * self.layer_parameters + ends

    @cached_property
    def layer_parameters(self) -> int:
        return sum(prod(shape) for _, shape in self.layer())

    @property
    def embedding_parameters(self) -> int:
        """Of the embedding; of a head of its own, as many again."""
        return self.vocabulary * self.hidden

    @cached_property
    def largest(self) -> int:
        """Numbers of the largest tensor."""
        return max(self.embedding_parameters, *(prod(shape) for _, shape in self.layer()))

    @property
    def active(self) -> int:
        """Numbers of the layers' matrices that compute one token."""
        routed = 0
        if self.experts:
            routed = 3 * self.experts.active * self.experts.width * self.hidden + self.experts.count * self.hidden
        return self.layers * (sum(prod(shape) for _, shape in self.projections()) + routed)

    def flops(self, context: float, head: bool = True) -> float:
        """Of a token's forward pass that looks at `context` tokens: 2 for each matrix entry, and 2 for each entry of
        queries against keys and weights against values; a backward pass is twice as much.
        """
        attention = 4 * self.layers * self.queries * context
        return 2.0 * (self.active + (self.embedding_parameters if head else 0)) + attention

    def adapter_parameters(self, rank: int, targets: str | tuple[str, ...]) -> int:
        """Of low-rank adapters beside the layers' projections: rank x (rows + columns) each (2106.09685)."""
        return self.layers * sum(rank * sum(shape) for _, shape in self.adapted(targets))

    def adapted(self, targets: str | tuple[str, ...]) -> list[tuple[str, tuple[int, int]]]:
        """Of one layer's projections those that get an adapter."""
        chosen = list(self.projections())
        if isinstance(targets, str):
            return chosen
        return [(name, shape) for name, shape in chosen if name.split(".")[-2] in targets]

    def kv_bytes(self, itemsize: int) -> int:
        """Keys and values of one token in all layers."""
        return 2 * self.layers * self.keys * itemsize


def _experts(text: Mapping[str, Any]) -> Experts | None:
    count = text.get("num_local_experts") or text.get("num_experts")
    if not count:
        return None
    width = text.get("moe_intermediate_size") or text["intermediate_size"]
    shared = text.get("shared_expert_intermediate_size") or 0
    return Experts(int(count), int(text.get("num_experts_per_tok") or 2), int(width), int(shared))
