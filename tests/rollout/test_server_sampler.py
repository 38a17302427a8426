"""Servers by address: the same responses whoever draws them, weights whole or refused, and the wrong server named."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from posttrain.errors import ModelError, PosttrainError, SyncError
from posttrain.rollout.server import EngineLostError
from posttrain.rollout.server.bucket import MEMORY, PREFIX
from posttrain.rollout.server.proxy import listen
from posttrain.rollout.server.replica import Address
from posttrain.types import Sampling
from tests.rollout.servers import (
    ASKED,
    Hosts,
    answers,
    by_address,
    dead_port,
    expected,
    requests,
    said_weights,
    weights,
)
from tests.rollout.small_engine import SmallEngine
from tests.tiny import tiny_folder

TOKEN = "a-token-of-nobodys"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_folder(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def hosts(tmp_path: Path) -> Iterator[Hosts]:
    made = Hosts(tmp_path)
    yield made
    made.close()


def engine(folder: Path, **changes: object) -> SmallEngine:
    return SmallEngine(**{"weights": said_weights(folder), **changes})  # type: ignore[arg-type]


@pytest.mark.parametrize("replicas", [1, 3])
def test_responses_are_those_of_their_seeds_in_the_order_asked_however_many_servers(
    folder: Path, hosts: Hosts, replicas: int
) -> None:
    with by_address(folder, *(hosts.start(engine(folder, pace=1e-4)) for _ in range(replicas))) as sampler:
        with pytest.raises(SyncError, match="no complete set"):
            sampler.generate(requests(1), ASKED)
        for version in (3, 4, 5):
            sampler.load(weights(folder, version), version)
            asked = requests(60)
            found = sampler.generate(asked, ASKED)
            assert answers(found) == expected(folder, asked, version)
            for r, one in zip(asked, found, strict=True):
                assert one.tokens[:3] == r.prompt.tokens
                assert one.mask == (False,) * 3 + (True,) * one.length
                assert one.versions == (-1,) * 3 + (version,) * one.length
                assert (one.finish_reason == "stop") == (one.tokens[-1] == 1)
                assert (one.seed, one.sampling) == (r.seed, ASKED)
        assert sampler.generate([], ASKED) == []


def test_servers_share_the_work_by_what_they_take_and_none_takes_more(folder: Path, hosts: Hosts) -> None:
    small, large = engine(folder, pace=1e-3, capacity=2), engine(folder, pace=1e-3, capacity=6)
    with by_address(folder, hosts.start(small), hosts.start(large)) as sampler:
        sampler.load(weights(folder, 1), 1)
        sampler.generate(requests(120), ASKED)
    assert (small.most, large.most) == (2, 6)
    assert set(small.asked.values()) | set(large.asked.values()) == {1}
    assert sum(small.asked.values()) + sum(large.asked.values()) == 120
    assert 2 < sum(large.asked.values()) / sum(small.asked.values()) < 4.5


def test_weights_arrive_whole_in_buckets_of_any_size_and_leave_no_memory_behind(folder: Path, hosts: Hosts) -> None:
    made = [engine(folder), engine(folder)]
    for size in (1, 10_000, 10**9):
        with by_address(folder, *(hosts.start(e) for e in made), bucket=size) as sampler:
            sampler.load(weights(folder, size % 97), 7)
            for e in made:
                assert {n: torch.tensor(v) for n, v in e.weights.items()}.keys() == dict(weights(folder, 0)).keys()
                for name, tensor in weights(folder, size % 97):
                    assert e.weights[name] == tensor.flatten().tolist()
                assert e.version == "7"
    assert made[0].seen["/update_weights"] > len(said_weights(folder)) + 2
    assert not list(MEMORY.glob(f"{PREFIX}{os.getpid()}-*"))


FAULTS = {
    "dropped": lambda name, tensor: None,
    "renamed": lambda name, tensor: (name.replace("norm", "nrom"), tensor),
    "empty": lambda name, tensor: (name, tensor[:0]),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_faulty_stream_is_refused_by_name_and_only_a_full_sync_repairs_it(
    folder: Path, hosts: Hosts, fault: str
) -> None:
    made = engine(folder)
    victim = "model.layers.1.post_attention_layernorm.weight"

    def faulty() -> Iterator[tuple[str, Tensor]]:
        for name, tensor in weights(folder, 2):
            passed = FAULTS[fault](name, tensor) if name == victim else (name, tensor)
            if passed is not None:
                yield passed

    with by_address(folder, hosts.start(made)) as sampler:
        sampler.load(weights(folder, 1), 1)
        with pytest.raises(SyncError, match=r"post_attention_layernorm|post_attention_layernrom"):
            sampler.load(faulty(), 2)
        assert sampler.version is None
        assert not made.active
        with pytest.raises(SyncError, match="no complete set"):
            sampler.generate(requests(1), ASKED)
        sampler.load(weights(folder, 2), 2)
        assert answers(sampler.generate(requests(9), ASKED)) == expected(folder, requests(9), 2)


def test_a_trainer_that_fails_half_way_and_an_update_left_open_by_another_are_both_cleaned_up(
    folder: Path, hosts: Hosts
) -> None:
    made = engine(folder)

    def breaks() -> Iterator[tuple[str, Tensor]]:
        for i, item in enumerate(weights(folder, 1)):
            if i == 15:
                raise ConnectionError("the trainer went away")
            yield item

    with by_address(folder, hosts.start(made)) as sampler:
        with pytest.raises(ConnectionError):
            sampler.load(breaks(), 1)
        assert (sampler.version, made.active) == (None, False)
        made.active = True
        sampler.load(weights(folder, 1), 1)
        assert sampler.version == 1


def test_a_server_that_answers_with_other_weights_than_it_was_given_is_not_believed(folder: Path, hosts: Hosts) -> None:
    made = engine(folder)
    with by_address(folder, hosts.start(made)) as sampler:
        sampler.load(weights(folder, 1), 1)
        made.version = "8"
        with pytest.raises(SyncError, match="answered with weights 8, but was given 1"):
            sampler.generate(requests(3), ASKED)


def test_an_error_of_the_server_itself_is_told_and_is_no_loss(folder: Path, hosts: Hosts) -> None:
    made = engine(folder)
    with by_address(folder, hosts.start(made)) as sampler:
        sampler.load(weights(folder, 1), 1)
        made.without = ("/inference/v1/generate",)
        with pytest.raises(PosttrainError, match="answered 404"):
            sampler.generate(requests(3), ASKED)
        made.without = ()
        assert answers(sampler.generate(requests(3), ASKED)) == expected(folder, requests(3), 1)


def test_a_server_without_our_extension_reads_the_weights_from_a_folder(folder: Path, hosts: Hosts) -> None:
    plain, ours = engine(folder, native=False), engine(folder)
    with by_address(folder, hosts.start(plain, "127.0.0.1"), hosts.start(ours)) as sampler:
        for version in (1, 2):
            sampler.load(weights(folder, version), version)
            assert answers(sampler.generate(requests(20), ASKED)) == expected(folder, requests(20), version)
    assert plain.seen["/start_weight_update"] <= 1
    assert plain.weights.keys() == ours.weights.keys()
    assert "lm_head.weight" in plain.weights


def test_a_server_elsewhere_is_reached_through_its_proxy_and_its_buckets_are_sent(folder: Path, hosts: Hosts) -> None:
    made = engine(folder)
    door = hosts.background.run(listen(Address(hosts.start(made)), TOKEN, "0.0.0.0", 0))
    # Not a loopback address by its name, so that nothing is assumed to be shared.
    url = f"http://0.0.0.0:{door.addresses[0][1]}"
    try:
        with by_address(folder, url, token=TOKEN) as sampler:
            assert not sampler.replicas[0].shares
            sampler.load(weights(folder, 6), 6)
            assert answers(sampler.generate(requests(9), ASKED)) == expected(folder, requests(9), 6)
        with pytest.raises(ModelError, match="refuses the token"), by_address(folder, url, token=TOKEN + "x"):
            pass
        with pytest.raises(ModelError, match="without a token"), by_address(folder, url):
            pass
    finally:
        hosts.background.run(door.cleanup())


WRONG = {
    "version": ({"posttrain": "0.0.1"}, r"runs posttrain 0\.0\.1, this is "),
    "vocabulary": ({"vocabulary": 97}, "another model .*a vocabulary of 97 tokens, not 96"),
    "shapes": ({"weights": {"model.norm.weight": [65]}}, r"model.norm.weight of shape \(65,\), not \(64,\)"),
    "names": ({"weights": {"encoder.weight": [1]}}, r"1 tensors that this model has not \(encoder.weight"),
    "dtype": ({"dtype": "bfloat16"}, "computes in bfloat16, hardware.dtype is float32"),
    "length": ({"max_length": 63}, "takes 63 tokens, .* up to 64; start it with --max-model-len=64"),
    "logprobs": ({"logprobs": "raw_logprobs"}, "--logprobs-mode=processed_logprobs"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_the_wrong_server_is_refused_naming_where_it_is_and_what_it_has(folder: Path, hosts: Hosts, wrong: str) -> None:
    changes, message = WRONG[wrong]
    url = hosts.start(engine(folder, **changes))
    with pytest.raises(ModelError, match=message) as raised, by_address(folder, url):
        pass
    assert url in str(raised.value)


def test_routes_that_are_missing_are_named_with_the_version_and_how_to_start_it(folder: Path, hosts: Hosts) -> None:
    made = engine(folder)
    made.without = ("/finish_weight_update", "/weight_info")
    url = hosts.start(made)
    with (
        pytest.raises(ModelError, match=r"has no /finish_weight_update, /weight_info \(vLLM 0\.32\.0\).*DEV_MODE"),
        by_address(folder, url),
    ):
        pass


def test_a_plain_server_whose_route_for_ids_is_closed_is_told_how_to_open_it(folder: Path, hosts: Hosts) -> None:
    made = engine(folder, native=False)
    made.closed = True
    with pytest.raises(ModelError, match="start it with --enable-scale-out"), by_address(folder, hosts.start(made)):
        pass


def refused(folder: Path, url: str) -> str:
    """Why no sampler comes of this address."""
    with pytest.raises(PosttrainError) as raised, by_address(folder, url):
        pass
    return str(raised.value)


def test_a_dead_port_a_silent_server_and_no_address_are_refused_in_time(folder: Path, hosts: Hosts) -> None:
    started = time.monotonic()
    port = dead_port()
    assert f"nothing answers at http://127.0.0.1:{port}" in refused(folder, f"http://127.0.0.1:{port}")
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        assert "did not answer within 2 s" in refused(folder, url)
    assert "'localhost:8000' is no address; write http://HOST:PORT" in refused(folder, "localhost:8000")
    made = engine(folder)
    made.dead = True
    assert "the engine of unix:" in refused(folder, hosts.start(made))
    assert time.monotonic() - started < 20


def test_a_server_given_by_address_that_goes_away_leaves_its_work_to_the_others(folder: Path, hosts: Hosts) -> None:
    first, second = engine(folder, pace=2e-3), engine(folder, pace=2e-3)
    urls = hosts.start(first), hosts.start(second)
    with by_address(folder, *urls) as sampler:
        sampler.load(weights(folder, 1), 1)
        stopper = threading.Timer(0.15, hosts.stop, [urls[0]])
        stopper.start()
        asked = requests(100)
        assert answers(sampler.generate(asked, ASKED)) == expected(folder, asked, 1)
        stopper.join()
        assert max((first.asked + second.asked).values()) <= 2
        sampler.load(weights(folder, 2), 2)
        assert answers(sampler.generate(asked, ASKED)) == expected(folder, asked, 2)
        hosts.stop(urls[1])
        with pytest.raises(EngineLostError) as lost:
            sampler.generate(asked, ASKED)
        assert lost.value.finished == {}
        with pytest.raises(SyncError, match="no complete set"):
            sampler.generate(asked, ASKED)
        with pytest.raises(EngineLostError, match=r"nothing answers at unix:"):
            sampler.load(weights(folder, 3), 3)


def test_an_engine_that_dies_behind_a_server_that_still_answers_is_lost_too(folder: Path, hosts: Hosts) -> None:
    made = engine(folder, pace=5e-3)
    with by_address(folder, hosts.start(made)) as sampler:
        sampler.load(weights(folder, 1), 1)
        threading.Timer(0.1, setattr, [made, "dead", True]).start()
        with pytest.raises(EngineLostError) as lost:
            sampler.generate(requests(80), ASKED)
        assert 0 < len(lost.value.finished) < 80
        whole = expected(folder, requests(80), 1)
        for i, r in lost.value.finished.items():
            assert answers([r]) == [whole[i]]


def test_prefixes_are_kept_apart_by_version_and_by_run(folder: Path, hosts: Hosts) -> None:
    made = engine(folder)
    url = hosts.start(made)
    for _ in range(2):
        with by_address(folder, url) as sampler:
            for version in (1, 2):
                sampler.load(weights(folder, version), version)
                sampler.generate(requests(3), ASKED)
    assert list(made.salts.values()) == [3] * 4


def test_greedy_and_filters_reach_the_server_as_they_are(folder: Path, hosts: Hosts) -> None:
    made = engine(folder)
    with by_address(folder, hosts.start(made)) as sampler:
        sampler.load(weights(folder, 1), 1)
        sampling = Sampling(temperature=1.7, max_tokens=3)
        asked = requests(20)
        assert answers(sampler.generate(asked, sampling)) == expected(folder, asked, 1, sampling)
