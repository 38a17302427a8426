"""The port at which the ranks of a machine meet."""

from __future__ import annotations

import socket

import pytest
from torch.distributed import TCPStore

from posttrain.build.launch import kept_port


def test_the_port_is_kept_for_the_one_that_listens_there() -> None:
    with kept_port() as port:
        with socket.socket() as other, pytest.raises(OSError, match="in use"):
            other.bind(("127.0.0.1", port))
        store = TCPStore("127.0.0.1", port, 1, is_master=True)
        store.set("asked", "answered")
        assert store.get("asked") == b"answered"


def test_a_port_that_nobody_keeps_can_be_anybodys() -> None:
    with kept_port() as port:
        pass
    with socket.socket() as other:
        other.bind(("127.0.0.1", port))
