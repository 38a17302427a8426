"""Objectives of whole groups: pairs, lists, single answers with a thumb, and games against another policy."""

from __future__ import annotations

from dataclasses import replace

from posttrain.algorithms.cells import Kind, Parameter, asks, positive

CONTRAST = {"contrast_beta": positive(0.1)}
SMOOTHING = {"label_smoothing": Parameter(0.0, least=0.0, high=0.499)}
SMOOTHED = {"label_smoothing": Parameter(1e-3, low=0.0, high=0.499)}
TARGET = {"target_temperature": positive(1.0)}
RIGHT = {"right_score": Parameter(0.5)}
GAMMA = {"simpo_gamma": Parameter(0.5, least=0.0)}
SEQUENCES = ("sequences",)
OFFSETS = ("offsets",)


def _set(
    function: str, parameters: dict[str, Parameter] | None = None, *wants: str, takes: tuple[str, ...] = ()
) -> Kind:
    """A loss that compares the responses of a group."""
    return Kind(function, parameters or {}, level="set", takes=takes, asks=asks(*wants), min_group=2)


def _pair(function: str, parameters: dict[str, Parameter], *wants: str, takes: tuple[str, ...] = ()) -> Kind:
    """A loss of the best and the worst response of a group."""
    return _set(f"preferences.{function}", parameters, "pairs", *wants, takes=takes)


def _single(function: str, parameters: dict[str, Parameter], *wants: str) -> Kind:
    """A loss of each response by itself."""
    return Kind(function, parameters, level="set", takes=SEQUENCES, asks=asks(*wants))


SETS: dict[str, Kind] = {
    "rebel": _set("contrasts.rebel", {"rebel_eta": positive(1.0)}, "previous"),
    "copg": _set("contrasts.copg", CONTRAST),
    "agro": _set("contrasts.agro", CONTRAST),
    "best_worst_sigmoid": _set("contrasts.best_worst_sigmoid", CONTRAST | SMOOTHING, "pairs"),
    "best_worst_squared": _set("contrasts.best_worst_squared", CONTRAST, "pairs"),
    "squared_log_ratio": _set("contrasts.squared_log_ratio", {"kimi_tau": positive(0.1)}, "previous"),
    "hinge": _pair("hinge", CONTRAST),
    "nca_pair": _pair("nca_pair", CONTRAST),
    "exo_pair": _pair("exo_pair", CONTRAST | SMOOTHED),
    "robust": _pair("robust", CONTRAST | {"label_smoothing": Parameter(0.1, least=0.0, high=0.499)}),
    "bco_pair": _pair("bco_pair", CONTRAST, "shift", takes=SEQUENCES),
    "sppo_hard": _pair("sppo_hard", CONTRAST),
    "aot": _pair("aot", CONTRAST | SMOOTHING, takes=SEQUENCES),
    "aot_unpaired": _pair("aot_unpaired", CONTRAST | SMOOTHING),
    "apo_zero": _pair("apo_zero", CONTRAST),
    "apo_down": _pair("apo_down", CONTRAST),
    "discopop": _pair("discopop", CONTRAST | {"discopop_tau": Parameter(0.05, low=0.0, high=0.5)}),
    "positive_sigmoid": _pair("positive_sigmoid", CONTRAST | {"positive_penalty": positive(5.0)}),
    "margin_sigmoid": _set("margins.margin_sigmoid", CONTRAST | SMOOTHING, "pairs", "margins", takes=OFFSETS),
    "mpo": _pair(
        "mpo", CONTRAST | {"sigmoid_weight": positive(0.8), "bco_weight": positive(0.2)}, "shift", takes=SEQUENCES
    ),
    "simpo": _pair("simpo", {"contrast_beta": positive(2.0)} | GAMMA),
    "alphapo": _pair("alphapo", CONTRAST | {"alphapo_alpha": Parameter(0.0)} | GAMMA),
    "orpo": _pair("orpo", {"odds_weight": positive(0.1)}),
    "modpo": _set(
        "margins.modpo",
        CONTRAST | {"objective_weight": Parameter(0.5, low=0.0, high=1.0)},
        "pairs",
        "margins",
        takes=OFFSETS,
    ),
    "cpl": _pair("cpl", CONTRAST | {"cpl_lambda": Parameter(1.0, low=0.0, high=1.0)}),
    "pairwise_logistic": _set("lists.pairwise_logistic", CONTRAST, "pairs"),
    "pairwise_hinge": _set("lists.pairwise_hinge", CONTRAST, "pairs"),
    "lambda_rank": _set("lists.lambda_rank", CONTRAST, "pairs"),
    "list_mle": _set("lists.list_mle", CONTRAST, "pairs"),
    "exo": _set("lists.exo", CONTRAST | TARGET),
    "exo_best": _set("lists.exo_best", CONTRAST | SMOOTHED, "pairs"),
    "k_way": _set("lists.k_way", CONTRAST | TARGET),
    "kto": _single(
        "unpaired.kto",
        {**CONTRAST, "desirable_weight": positive(1.0), "undesirable_weight": positive(1.0), **RIGHT},
        "mismatched",
    ),
    "kto_apo_zero": _single(
        "unpaired.kto_apo_zero",
        {**CONTRAST, "desirable_weight": positive(1.0), "undesirable_weight": positive(1.0), **RIGHT},
    ),
    "bco": _single("unpaired.bco", CONTRAST | RIGHT, "shift"),
    "dro": _single("offline.dro", {"dro_tau": positive(1.0)}, "critic"),
    "sppo": _set("selfplay.sppo", CONTRAST),
    "soft_pairs": _set("selfplay.soft_pairs", CONTRAST),
    "spin": _set("selfplay.spin", CONTRAST, takes=SEQUENCES),
    "xpo": _set("selfplay.xpo", CONTRAST | {"xpo_alpha": positive(1e-5)}, "pairs", takes=SEQUENCES),
    "spac": _set("selfplay.spac", CONTRAST | {"spac_lambda": positive(1.0)}, "pairs", takes=SEQUENCES),
}

OF_DIFFERENCES = (
    "agro",
    "best_worst_sigmoid",
    "best_worst_squared",
    "copg",
    "discopop",
    "exo",
    "exo_best",
    "exo_pair",
    "hinge",
    "k_way",
    "lambda_rank",
    "list_mle",
    "margin_sigmoid",
    "modpo",
    "pairwise_hinge",
    "pairwise_logistic",
    "rebel",
    "robust",
    "soft_pairs",
    "spac",
    "spin",
    "xpo",
)
"""Elsewhere a divergence's constant does not cancel, or the log-ratio itself is what the loss means."""
SETS |= {name: replace(SETS[name], differences=True) for name in OF_DIFFERENCES}
