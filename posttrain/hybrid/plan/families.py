"""Where vLLM (0.32) puts each tensor of a checkpoint, by architecture: parameter, and how it is cut."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from posttrain.errors import ModelError

VOCABULARY_PADDING = 64
"""vLLM pads embedding and head to a multiple of it (`DEFAULT_VOCAB_PADDING_SIZE`)."""

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"


@dataclass(frozen=True, slots=True)
class Rule:
    """Tensors whose whole name matches `pattern` go to `parameter`, cut as `kind` says (`landing.py`); both may name
    groups of the pattern by number, from {0}. A group named `expert` is the index in the parameter's leading dimension.
    """

    pattern: re.Pattern[str]
    parameter: str
    kind: str


def _rules(*lines: tuple[str, str, str]) -> tuple[Rule, ...]:
    """A leading `@` in a pattern stands for a layer; in a parameter, for the layer that was matched."""
    layer = r"(model\.layers\.\d+\.)"
    return tuple(
        Rule(re.compile(pattern.replace("@", layer)), parameter.replace("@", "{0}"), kind)
        for pattern, parameter, kind in lines
    )


_ENDS = _rules(
    (r"model\.embed_tokens\.weight", EMBEDDING, "vocabulary"),
    (r"lm_head\.(weight|bias)", "lm_head.{0}", "vocabulary"),
    (r"model\.norm\.weight", "model.norm.weight", "whole"),
    (r"@(\w+_layernorm)\.weight", "@{1}.weight", "whole"),
)
_OUTPUT = _rules(
    (r"@self_attn\.o_proj\.weight", "@self_attn.o_proj.weight", "input"),
    (r"@self_attn\.o_proj\.bias", "@self_attn.o_proj.bias", "whole"),
)
_ATTENTION = _OUTPUT + _rules(
    (r"@self_attn\.(q|k|v)_proj\.(weight|bias)", "@self_attn.qkv_proj.{2}", "{1}"),
    (r"@self_attn\.(q_norm|k_norm)\.weight", "@self_attn.{1}.weight", "whole"),
)
_DOWN = _rules(
    (r"@mlp\.down_proj\.weight", "@mlp.down_proj.weight", "input"),
    (r"@mlp\.down_proj\.bias", "@mlp.down_proj.bias", "whole"),
)
_MLP = _DOWN + _rules((r"@mlp\.(gate|up)_proj\.(weight|bias)", "@mlp.gate_up_proj.{2}", "{1}"))
_DENSE = _ENDS + _ATTENTION + _MLP
_FUSED = (
    _ENDS
    + _OUTPUT
    + _DOWN
    + _rules(
        (r"@self_attn\.qkv_proj\.weight", "@self_attn.qkv_proj.weight", "qkv"),
        (r"@mlp\.gate_up_proj\.weight", "@mlp.gate_up_proj.weight", "gate_up"),
    )
)


def _experts(block: str, gate: str, up: str, down: str) -> tuple[Rule, ...]:
    """Routed experts: one by one as checkpoints have them, or stacked as transformers (5) holds them in memory."""
    at = rf"@(?:{block}|mlp)\.experts"
    to = f"@{block}.experts.routed_experts"
    return _rules(
        (rf"{at}\.(?P<expert>\d+)\.{gate}\.weight", f"{to}.w13_weight", "gate"),
        (rf"{at}\.(?P<expert>\d+)\.{up}\.weight", f"{to}.w13_weight", "up"),
        (rf"{at}\.(?P<expert>\d+)\.{down}\.weight", f"{to}.w2_weight", "input"),
        (rf"{at}\.gate_up_proj", f"{to}.w13_weight", "gate_up"),
        (rf"{at}\.down_proj", f"{to}.w2_weight", "input"),
        (rf"@(?:{block}|mlp)\.gate\.weight", f"@{block}.gate.weight", "whole"),
    )


_MIXTRAL = _ENDS + _ATTENTION + _experts("block_sparse_moe", "w1", "w3", "w2")
_QWEN_MOE = (
    _DENSE
    + _experts("mlp", "gate_proj", "up_proj", "down_proj")
    + _rules(
        (r"@mlp\.shared_expert\.(gate|up)_proj\.weight", "@mlp.shared_expert.gate_up_proj.weight", "{1}"),
        (r"@mlp\.shared_expert\.down_proj\.weight", "@mlp.shared_expert.down_proj.weight", "input"),
        (r"@mlp\.shared_expert_gate\.weight", "@mlp.shared_expert_gate.weight", "whole"),
    )
)

FAMILIES: Mapping[str, tuple[Rule, ...]] = {
    **dict.fromkeys(("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text"), _DENSE),
    "phi3": _FUSED,
    "mixtral": _MIXTRAL,
    **dict.fromkeys(("qwen2_moe", "qwen3_moe"), _QWEN_MOE),
}
"""By `model_type` of the checkpoint's config."""

AN_EXPERT_A_RANK = ("qwen2_moe", "qwen3_moe")
"""Families of which vLLM wants no more ranks than experts, although every rank holds a slice of every expert."""


@dataclass(frozen=True, slots=True)
class Architecture:
    """What the cuts depend on beside the tensors' shapes."""

    family: str
    heads: int
    kv_heads: int
    vocabulary: int
    experts: int = 0
    tied: bool = False
    """The engine's head is its embedding: one storage, so a head is never sent. vLLM unties it, whatever the config
    says, where the checkpoint it is started from has a head of its own that differs from the embedding.
    """

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> Architecture:
        """From a checkpoint's config.json (or `config.to_dict()`). Raises ModelError for a family without rules."""
        family = str(config.get("model_type"))
        if family not in FAMILIES:
            near = get_close_matches(family, FAMILIES, 1)
            raise ModelError(
                f"model_type: {family} has no rules for cutting its tensors"
                + (f" (did you mean {near[0]}?)" if near else "")
                + f"; the families that have are {', '.join(FAMILIES)}"
            )
        heads = int(config["num_attention_heads"])
        return cls(
            family,
            heads,
            int(config.get("num_key_value_heads") or heads),
            int(config["vocab_size"]),
            int(config.get("num_local_experts") or config.get("num_experts") or 0),
            bool(config.get("tie_word_embeddings", family.startswith("gemma"))),
        )

    def rule(self, name: str) -> tuple[Rule, re.Match[str]]:
        """The rule for a tensor. Raises ModelError where there is none: nothing is sent that might land wrongly."""
        for rule in FAMILIES[self.family]:
            if match := rule.pattern.fullmatch(name):
                return rule, match
        raise ModelError(
            f"{name}: it is not known how vLLM cuts this tensor of a {self.family} model; its rule belongs into "
            "FAMILIES of posttrain/hybrid/plan/families.py"
        )
