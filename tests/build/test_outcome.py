"""Figures of a stage: found in what a command printed, and told in few lines."""

from __future__ import annotations

import json

import pytest

from posttrain.build.outcome import main_figures
from posttrain.build.process import figures_in
from posttrain.errors import PosttrainError


def test_figures_are_found_between_what_an_engine_logs() -> None:
    figures = json.dumps({"eval/accuracy": 0.5, "of": {"a": 1}}, indent=1)
    for before in ("", "INFO { started\n", '{\n "other": 1\n}\n'):
        assert figures_in(before + figures + "\nINFO } ended\n") == {"eval/accuracy": 0.5, "of": {"a": 1}}
    for nothing in ("", "INFO\n", "[1]"):
        with pytest.raises(PosttrainError, match="printed no figures"):
            figures_in(nothing)


def test_main_figures_are_those_after_a_run_or_with_an_interval_or_else_all() -> None:
    after = {"accuracy_after": 0.5, "accuracy_after_low": 0.4, "accuracy_after_high": 0.6}
    counted = {"pairs": 3, "steps": 4, "seconds": 5.0, "step": 4, "algorithm": "x"}
    before = {"accuracy_before": 0.25, "greedy_before": None, "greedy_after": None, "loss_after": 1.23456}
    assert main_figures(before | after | counted) == ["loss 1.235", "accuracy 0.25 -> 0.5 [0.400, 0.600]"]
    assert main_figures({"eval/a": 1, "eval/a_low": 0.5, "eval/a_high": 2, "n": 9}) == ["eval/a 1 [0.500, 2.000]"]
    assert main_figures(counted) == ["pairs 3"]
