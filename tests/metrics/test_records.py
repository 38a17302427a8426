"""A roll-out's record holds everything, to the last bit."""

import json

import pytest
import torch

from posttrain.metrics.records import record
from posttrain.types import Group, Prompt, Rollout, Sampling, Verdict

KEYS = [
    "step", "group", "index", "prompt_id", "source", "prompt", "completion", "tokens", "mask", "engine_logprobs",
    "versions", "finish_reason", "author", "seed", "sampling", "score", "offset", "status", "steps",
    "greedy_score", "parts", "reason",
    "advantages", "learner_logprobs", "reference_logprobs", "previous_logprobs", "values", "returns",
    "updates",
]  # fmt: skip


def group() -> Group:
    prompt = Prompt("p-1", (5, 6), "1 + 1 =", {"answer": "2"}, "sums")
    said = Rollout(
        (5, 6, 7, 8),
        (False, False, True, True),
        " 2",
        "stop",
        (0.0, 0.0, -0.1, -2.5),
        (-1, -1, 3, 4),
        seed=11,
        sampling=Sampling(max_tokens=4),
    )
    given = Rollout((5, 6, 9), (False, False, True), "…", "given")
    return Group(
        prompt,
        (said, given),
        (Verdict(1.0, parts={"math": 1.0, "format": None}), Verdict(None, "timeout", reason="10 s")),
    )


def test_a_record_reads_back_as_the_roll_out_it_was():
    learner = torch.tensor([0.0, 0.0, -0.1, -2.5]).float()
    learnt = {
        "advantages": torch.tensor([0.0, 0.0, 1 / 3, 1 / 3]),
        "learner_logprobs": learner,
        "updates": [{"update": 0, "logprobs": learner}, {"update": 1, "logprobs": (learner * 1.01).tolist()}],
    }
    made = record(2, 9, 4, group(), 0, learnt=learnt)
    assert list(made) == KEYS
    back = json.loads(json.dumps(made))
    assert back == made
    assert (back["step"], back["group"], back["index"]) == (2, 4, 9)
    assert (back["prompt_id"], back["source"], back["prompt"], back["completion"]) == ("p-1", "sums", "1 + 1 =", " 2")
    assert (back["tokens"], back["mask"], back["versions"]) == ([5, 6, 7, 8], [0, 0, 1, 1], [-1, -1, 3, 4])
    assert back["engine_logprobs"] == [0.0, 0.0, -0.1, -2.5]
    assert back["sampling"] == {"temperature": 1.0, "max_tokens": 4, "top_p": 1.0, "top_k": 0, "min_p": 0.0}
    assert (back["score"], back["status"], back["parts"]) == (1.0, "ok", {"math": 1.0, "format": None})
    assert back["reference_logprobs"] is None
    assert back["previous_logprobs"] is None
    assert torch.equal(torch.tensor(back["learner_logprobs"]), learner)
    assert torch.equal(torch.tensor(back["updates"][1]["logprobs"]), learner * 1.01)


def test_float32_survives_json_bit_for_bit():
    values = torch.randn(2000, generator=torch.Generator().manual_seed(0)).mul(10).exp().log()
    rollout = Rollout(tuple(range(2000)), (True,) * 2000, "", "stop")
    whole = Group(Prompt("p", (), ""), (rollout,), (Verdict(0.0),))
    made = record(1, 0, 0, whole, 0, learnt={"learner_logprobs": values})
    assert torch.equal(torch.tensor(json.loads(json.dumps(made))["learner_logprobs"]), values)


def test_what_was_not_learnt_or_not_sampled_is_null_and_never_zero():
    made = record(1, 0, 0, group(), 1, learnt=None)
    assert list(made) == KEYS
    for key in ("engine_logprobs", "versions", "seed", "sampling", "score", "offset", *KEYS[-5:]):
        assert made[key] is None
    assert (made["status"], made["reason"]) == ("timeout", "10 s")


def test_wrong_lengths_and_unknown_names_are_refused():
    with pytest.raises(ValueError, match="advantages has 3 entries for 4 tokens"):
        record(1, 0, 0, group(), 0, learnt={"advantages": [0.0] * 3})
    with pytest.raises(ValueError, match=r"no place for advantage;"):
        record(1, 0, 0, group(), 0, learnt={"advantage": [0.0] * 4})
