"""From prompts to advantages: which groups and responses are learnt from, and how much credit each token gets."""

from __future__ import annotations

from posttrain.algorithms.cells import Kind, Parameter, asks, positive

GIVEN = asks("given")
FLOOR = {"std_floor": Parameter(1e-6, low=0.0)}
RIGHT = {"right_score": Parameter(0.5, formula=False)}
GAMMA = {"gamma": Parameter(1.0, low=0.0, high=1.0)}
ROUNDS = {"max_rounds": Parameter(10, low=0)}
REWARD_CLIP = {"reward_clip": Parameter(10.0, low=0.0)}
WHITEN_FLOOR = {"whiten_floor": Parameter(1e-8, low=0.0)}

COLUMNS: dict[str, dict[str, Kind]] = {
    "source": {
        "sampled": Kind(None, about="Responses are sampled from the policy and graded.", asks=asks("sampler")),
        "given": Kind(None, about="Responses, and what they are worth, come with the rows of the data.", asks=GIVEN),
        "conditioned": Kind(
            None,
            about="As given, with a text before the question that says whether the answer is a good one.",
            asks=GIVEN | asks("conditioning"),
        ),
        "joined": Kind(
            None,
            about="The answers of a row, and responses to it that are sampled and graded, are one group.",
            asks=GIVEN | asks("sampler"),
        ),
    },
    "opponent": {
        "none": Kind(None, about="The policy alone responds."),
        "reference": Kind(
            None,
            {"opponent_responses": Parameter(1, low=0)},
            "opponent_responses of each group's sampled ones are drawn from the first reference policy.",
            asks=asks("sampler", "reference", "opponent"),
        ),
        "pool": Kind(
            None,
            {"opponent_responses": Parameter(1, low=0), "pool_size": Parameter(4, low=0)},
            "As reference, each step's opponent one of the pool_size last policies that the reference has been.",
            asks=asks("sampler", "reference", "opponent", "refresh"),
        ),
    },
    "selection": {
        "all": Kind(None, about="Every group is learnt from."),
        "mixed": Kind(None, about="Groups whose responses all score the same are dropped.", min_group=2),
        "dynamic": Kind(
            None,
            ROUNDS,
            "Groups whose responses all score the same are replaced by fresh ones, in max_rounds at most.",
            min_group=2,
        ),
        "greedy_wrong": Kind(
            None,
            {**ROUNDS, **RIGHT},
            "Only prompts whose greedy answer scores below right_score are sampled, fresh ones drawn in their place.",
            asks=asks("greedy"),
        ),
        "steady_spread": Kind(
            None,
            {
                "spread_factor": positive(0.5),
                "spread_decay": Parameter(0.99, low=0.0, high=1.0),
                "spread_warmup": Parameter(10, least=0),
            },
            "Groups whose std is below spread_factor x its running mean are dropped, after spread_warmup steps.",
            min_group=2,
        ),
        "implicit_margin": Kind(
            None,
            {"keep_fraction": Parameter(0.7, low=0.0, high=1.0)},
            "Of a step's pairs only keep_fraction are learnt, those with the largest log-ratio of best to worst (SeRA, "
            "2410.09362).",
            asks=asks("reference", "trainer"),
            min_group=2,
        ),
    },
    "shaping": {
        "none": Kind("shaping.none"),
        "overlong": Kind("shaping.overlong", {"overlong_buffer": positive(0.2), "overlong_penalty": positive(1.0)}),
    },
    "truncated": {
        "train": Kind(None, about="A response cut at the token limit is learnt like any other."),
        "mask": Kind(None, about="A cut response is compared, but not learnt from."),
        "penalise": Kind(None, {"truncated_penalty": positive(1.0)}, "A cut response scores truncated_penalty less."),
        "bootstrap": Kind(
            None, about="The critic's value after the last token stands for what was cut off.", asks=asks("critic")
        ),
    },
    "scaling": {
        "none": Kind(None, about="Scores are taken as they are."),
        "batch": Kind(None, REWARD_CLIP, "Scores minus the step's mean, by the step's std, within +-reward_clip."),
        "running": Kind(None, REWARD_CLIP, "Scores by their standard deviation over the run, within +-reward_clip."),
    },
    "credit": {
        "score": Kind("advantages.score", level="group"),
        "ones": Kind("advantages.ones", level="group"),
        "group_mean": Kind("advantages.group_mean", level="group", min_group=2),
        "group_norm": Kind("advantages.group_norm", FLOOR, level="group", min_group=2),
        "leave_one_out": Kind("advantages.leave_one_out", level="group", min_group=2),
        "length_weighted": Kind("advantages.length_weighted", level="group", takes=("lengths",), min_group=2),
        "mean_scaled": Kind("advantages.mean_scaled", level="group", min_group=2),
        "pass_at_k": Kind("advantages.pass_at_k", {"pass_k": Parameter(4, low=0)}, level="group", min_group="pass_k"),
        "component_norm": Kind(
            "advantages.component_norm", FLOOR, level="group", takes=("weights",), asks=asks("parts"), min_group=2
        ),
        "from_greedy": Kind("advantages.from_greedy", level="group", takes=("greedy",), asks=asks("greedy")),
        "from_baseline": Kind(
            "advantages.from_baseline",
            {"baseline_decay": Parameter(0.9, low=0.0, high=1.0, formula=False)},
            level="group",
            takes=("baseline",),
        ),
        "win_rate": Kind("advantages.win_rate", level="group", asks=asks("preference"), min_group=2),
        "batch_std": Kind("advantages.batch_std", FLOOR, level="step", min_group=2),
        "reward_to_go": Kind("returns.reward_to_go", GAMMA),
        "gae": Kind("returns.gae", {**GAMMA, "lam": Parameter(0.95, least=0.0, high=1.0)}, asks=asks("critic")),
        "length_adaptive_gae": Kind(
            "returns.length_adaptive_gae", {**GAMMA, "adaptive_alpha": positive(0.05)}, asks=asks("critic")
        ),
        "n_step": Kind("returns.n_step", {**GAMMA, "n_steps": Parameter(8, low=0)}, asks=asks("critic")),
        "above_value": Kind("offline.above_value", asks=asks("critic")),
        "step_differences": Kind("offline.step_differences", takes=("ends",), asks=asks("critic", "steps")),
        "v_trace": Kind(
            "returns.v_trace",
            {
                **GAMMA,
                "lam": Parameter(1.0, least=0.0, high=1.0),
                "rho_cap": positive(1.0),
                "c_cap": positive(1.0),
            },
            asks=asks("critic", "trainer", "behaviour"),
        ),
    },
    "whitening": {
        "none": Kind("whitening.none"),
        "batch_norm": Kind("whitening.batch_norm", WHITEN_FLOOR),
        "batch_scale": Kind("whitening.batch_scale", WHITEN_FLOOR),
    },
    "keep": {
        "all": Kind(None, about="Every graded response of a group is learnt from."),
        "best": Kind(None, about="The best response of each group only; the first of equals."),
        "best_random": Kind(None, about="The best response of each group and one other at random.", min_group=2),
        "best_worst": Kind(None, about="The best and the worst response of each group.", min_group=2),
        "right": Kind(
            None,
            {**RIGHT, "dedupe": Parameter("text", choices=("text", "never"))},
            "Responses that score right_score or more; equal texts of one prompt once.",
        ),
        "one_each": Kind(None, RIGHT, "One response at or above right_score and one below it.", min_group=2),
    },
}
