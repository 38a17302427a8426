"""The seccomp filter, executed here instruction by instruction as the kernel does."""

from __future__ import annotations

import errno
import struct

import pytest

from posttrain_verifiers.sandbox import filter

ALLOW, KILL, ERRNO = 0x7FFF0000, 0x80000000, 0x00050000
REFUSED, UNKNOWN = ERRNO | errno.EPERM, ERRNO | errno.ENOSYS


def judged(machine: str, number: int, first: int = 0, second: int = 0, architecture: int | None = None) -> int:
    """What the filter says of a system call with these arguments."""
    code = filter.instructions(machine)
    data = {0: number, 4: filter.MACHINES[machine] if architecture is None else architecture, 16: first, 24: second}
    value = at = 0
    while True:
        operation, yes, no, constant = struct.unpack_from("HBBI", code, at * 8)
        at += 1
        if operation == 0x06:
            return constant
        if operation == 0x20:
            value = data[constant]
        else:
            holds = {0x15: value == constant, 0x35: value >= constant, 0x45: bool(value & constant)}[operation]
            at += yes if holds else no


@pytest.mark.parametrize("machine", filter.MACHINES)
def test_each_call_is_allowed_or_refused_as_the_table_says(machine: str) -> None:
    allowed = filter.numbers(machine)
    asked = {filter._CLONE[machine], filter._PRLIMIT[machine], filter._SOCKETPAIR[machine], filter._IOCTL[machine]}
    assert not asked & set(allowed.values())
    for number in set(range(600)) - asked:
        known = UNKNOWN if number >= 424 else REFUSED
        assert judged(machine, number) == (ALLOW if number in allowed.values() else known), number


@pytest.mark.parametrize("machine", filter.MACHINES)
def test_arguments_decide_where_a_call_is_harmless_only_with_some(machine: str) -> None:
    clone, prlimit = filter._CLONE[machine], filter._PRLIMIT[machine]
    assert judged(machine, clone, 0x3D0F00) == ALLOW  # a thread
    assert judged(machine, clone, 17) == ALLOW  # a fork
    for namespace in (0x20000, 0x2000000, 0x4000000, 0x8000000, 0x10000000, 0x20000000, 0x40000000):
        assert judged(machine, clone, namespace | 17) == REFUSED
    assert (judged(machine, prlimit, 0), judged(machine, prlimit, 1)) == (ALLOW, REFUSED)
    assert [judged(machine, filter._SOCKETPAIR[machine], family) for family in (1, 2, 16, 30)] == [ALLOW] + [
        REFUSED
    ] * 3
    requests = {0x5401: ALLOW, 0x5421: ALLOW, 0x5412: REFUSED, 0x8912: REFUSED, 0x40085203: REFUSED}
    for request, verdict in requests.items():  # TCGETS, FIONBIO, TIOCSTI, SIOCGIFCONF, RNDADDENTROPY
        assert judged(machine, filter._IOCTL[machine], second=request) == verdict


@pytest.mark.parametrize("machine", filter.MACHINES)
def test_calls_of_another_architecture_end_the_program(machine: str) -> None:
    for other in (0x40000003, 0x40000028, *(a for m, a in filter.MACHINES.items() if m != machine)):
        assert judged(machine, 0, architecture=other) == KILL
    assert judged(machine, 0x40000000) == KILL
    assert judged(machine, 0x40000000 + 41) == KILL


def test_the_filter_allows_the_same_calls_on_both_architectures() -> None:
    ours, theirs = filter.numbers("x86_64"), filter.numbers("aarch64")
    assert set(theirs) <= set(ours)
    old = "open stat lstat poll access pipe select dup2 pause alarm fork vfork getdents rename mkdir rmdir creat link"
    old += " unlink symlink readlink chmod getpgrp time epoll_create epoll_wait utimes eventfd"
    # What the newer architecture never had.
    assert set(ours) - set(theirs) == set(old.split())
    for table in (ours, theirs):
        assert len(set(table.values())) == len(table)
        refused = {"socket", "execve", "ptrace", "mount", "unshare", "setns", "prctl", "bpf", "keyctl", "memfd_create"}
        assert not refused & set(table)
    with pytest.raises(OSError, match="riscv64"):
        filter.numbers("riscv64")
