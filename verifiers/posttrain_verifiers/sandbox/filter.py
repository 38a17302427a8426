"""The seccomp filter of a program: the system calls that Python needs, and no others.

What is not listed fails: calls of before 2019 with EPERM, later ones with ENOSYS, on which the C library falls back to
older ones. So there are no sockets but pairs, and no exec, ptrace, mounts, namespaces, keys, bpf, perf, io_uring,
modules, userfaultfd, process_vm_*, shared memory of System V, memory files, splice, prctl or change of identity. A call
of another architecture ends the program.
"""

from __future__ import annotations

import errno
import os
import struct

from posttrain_verifiers.sandbox import kernel

_ALLOW = 0x7FFF0000
_ERRNO = 0x00050000
_KILL = 0x80000000

_LOAD = 0x20
_JUMP_EQUAL = 0x15
_JUMP_AT_LEAST = 0x35
_JUMP_ANY_BIT = 0x45
_RETURN = 0x06

_ALLOWED = (_RETURN, 0, 0, _ALLOW)
_REFUSED = (_RETURN, 0, 0, _ERRNO | errno.EPERM)
_AF_UNIX = 1

_NUMBER, _ARCHITECTURE, _FIRST, _SECOND = 0, 4, 16, 24
_FIRST_NEW = 424
"""From here on numbers are the same on all architectures."""
_X32 = 0x40000000
_NAMESPACES = (
    kernel.CLONE_NEWNS
    | kernel.CLONE_NEWUTS
    | kernel.CLONE_NEWIPC
    | kernel.CLONE_NEWUSER
    | kernel.CLONE_NEWPID
    | kernel.CLONE_NEWNET
    | kernel.CLONE_NEWCGROUP
)

MACHINES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
"""Audit names of the architectures there is a table for."""

CALLS = """
read 0 63, write 1 64, open 2 -, close 3 57, stat 4 -, fstat 5 80, lstat 6 -, poll 7 -, lseek 8 62, mmap 9 222,
mprotect 10 226, munmap 11 215, brk 12 214, rt_sigaction 13 134, rt_sigprocmask 14 135, rt_sigreturn 15 139,
pread64 17 67, pwrite64 18 68, readv 19 65, writev 20 66, access 21 -, pipe 22 -, select 23 -,
sched_yield 24 124, mremap 25 216, msync 26 227, madvise 28 233, dup 32 23, dup2 33 -, pause 34 -, nanosleep 35 101,
getitimer 36 102, alarm 37 -, setitimer 38 103, getpid 39 172, sendfile 40 71, sendto 44 206, recvfrom 45 207,
sendmsg 46 211, recvmsg 47 212, shutdown 48 210, getsockname 51 204, getpeername 52 205,
getsockopt 55 209, fork 57 -, vfork 58 -, exit 60 93, wait4 61 260, kill 62 129, uname 63 160, fcntl 72 25,
flock 73 32, fsync 74 82, fdatasync 75 83, truncate 76 45, ftruncate 77 46, getdents 78 -, getcwd 79 17, chdir 80 49,
fchdir 81 50, rename 82 -, mkdir 83 -, rmdir 84 -, creat 85 -, link 86 -, unlink 87 -, symlink 88 -, readlink 89 -,
chmod 90 -, fchmod 91 52, umask 95 166, gettimeofday 96 169, getrlimit 97 163, getrusage 98 165, sysinfo 99 179,
times 100 153, getuid 102 174, getgid 104 176, geteuid 107 175, getegid 108 177, setpgid 109 154, getppid 110 173,
getpgrp 111 -, setsid 112 157, getgroups 115 158, getresuid 118 148, getresgid 120 150, getpgid 121 155,
getsid 124 156, rt_sigpending 127 136, rt_sigtimedwait 128 137, rt_sigsuspend 130 133, sigaltstack 131 132,
statfs 137 43, fstatfs 138 44, getpriority 140 141, setrlimit 160 164, time 201 -, gettid 186 178, futex 202 98,
sched_getaffinity 204 123, epoll_create 213 -, getdents64 217 61, set_tid_address 218 96, restart_syscall 219 128,
fadvise64 221 223, clock_gettime 228 113, clock_getres 229 114, clock_nanosleep 230 115, exit_group 231 94,
epoll_wait 232 -, epoll_ctl 233 21, tgkill 234 131, utimes 235 -, waitid 247 95, openat 257 56, mkdirat 258 34,
newfstatat 262 79, unlinkat 263 35, renameat 264 38, linkat 265 37, symlinkat 266 36, readlinkat 267 78,
fchmodat 268 53, faccessat 269 48, pselect6 270 72, ppoll 271 73, set_robust_list 273 99, utimensat 280 88,
epoll_pwait 281 22, timerfd_create 283 85, eventfd 284 -, fallocate 285 47, timerfd_settime 286 86,
timerfd_gettime 287 87, eventfd2 290 19, epoll_create1 291 20, dup3 292 24, pipe2 293 59, preadv 295 69,
pwritev 296 70, getcpu 309 168, renameat2 316 276, getrandom 318 278, membarrier 324 283, statx 332 291, rseq 334 293,
close_range 436 436, faccessat2 439 439
"""
"""name, number on x86_64, number on aarch64."""
_CLONE = {"x86_64": 56, "aarch64": 220}
"""Without new namespaces."""
_PRLIMIT = {"x86_64": 302, "aarch64": 261}
"""Of the process itself; the hard limits hold."""
_SOCKETPAIR = {"x86_64": 53, "aarch64": 199}
"""Of the family AF_UNIX."""
_IOCTL = {"x86_64": 16, "aarch64": 29}
"""TCGETS, TIOCGWINSZ, FIONREAD, FIONBIO, FIONCLEX, FIOCLEX: what Python's own library asks."""
_REQUESTS = (0x5401, 0x5413, 0x541B, 0x5421, 0x5450, 0x5451)


def numbers(machine: str) -> dict[str, int]:
    """The system calls that are allowed whatever their arguments. Raises OSError on a machine there is no table for."""
    if machine not in MACHINES:
        raise OSError(errno.ENOSYS, f"no seccomp filter for {machine}, only for {', '.join(MACHINES)}")
    column = 1 + list(MACHINES).index(machine)
    rows = [row.split() for row in CALLS.replace("\n", " ").split(",")]
    return {row[0]: int(row[column]) for row in rows if row[column] != "-"}


def instructions(machine: str = "") -> bytes:
    """The filter, as the kernel takes it."""
    machine = machine or os.uname().machine
    allowed = numbers(machine)
    lines = [
        (_LOAD, 0, 0, _ARCHITECTURE),
        (_JUMP_EQUAL, 1, 0, MACHINES[machine]),
        (_RETURN, 0, 0, _KILL),
        (_LOAD, 0, 0, _NUMBER),
        (_JUMP_AT_LEAST, 0, 1, _X32),
        (_RETURN, 0, 0, _KILL),
    ]
    lines += _checked(_CLONE[machine], _FIRST, [(_JUMP_ANY_BIT, 0, 1, _NAMESPACES), _REFUSED, _ALLOWED])
    lines += _checked(_PRLIMIT[machine], _FIRST, [(_JUMP_EQUAL, 0, 1, 0), _ALLOWED, _REFUSED])
    lines += _checked(_SOCKETPAIR[machine], _FIRST, [(_JUMP_EQUAL, 0, 1, _AF_UNIX), _ALLOWED, _REFUSED])
    known = [line for request in _REQUESTS for line in ((_JUMP_EQUAL, 0, 1, request), _ALLOWED)]
    lines += _checked(_IOCTL[machine], _SECOND, [*known, _REFUSED])
    lines += _searched(_runs(sorted(allowed.values())))
    return b"".join(struct.pack("HBBI", *line) for line in lines)


def _checked(number: int, argument: int, lines: list[tuple[int, int, int, int]]) -> list[tuple[int, int, int, int]]:
    """What decides over a system call by one of its arguments."""
    return [(_JUMP_EQUAL, 0, len(lines) + 1, number), (_LOAD, 0, 0, argument), *lines]


def _runs(numbers: list[int]) -> list[tuple[int, int]]:
    """First and last of each run of consecutive numbers."""
    starts = [n for n in numbers if n - 1 not in numbers]
    ends = [n for n in numbers if n + 1 not in numbers]
    return list(zip(starts, ends, strict=True))


def _searched(runs: list[tuple[int, int]]) -> list[tuple[int, int, int, int]]:
    """Allow a number in one of the runs, found by halving: the kernel tries every number when it takes a filter in."""
    if len(runs) > 1:
        lower, upper = _searched(runs[: len(runs) // 2]), _searched(runs[len(runs) // 2 :])
        return [(_JUMP_AT_LEAST, len(lower), 0, runs[len(runs) // 2][0]), *lower, *upper]
    first, last = runs[0]
    refused = [(_JUMP_AT_LEAST, 0, 1, _FIRST_NEW), (_RETURN, 0, 0, _ERRNO | errno.ENOSYS), _REFUSED]
    return [(_JUMP_AT_LEAST, 0, 2, first), (_JUMP_AT_LEAST, 1, 0, last + 1), _ALLOWED, *refused]
