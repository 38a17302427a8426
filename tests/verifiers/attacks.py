"""Programs that try to pass without squaring a number, or to leave something behind.

Each is wrong as a function (`solve(7)` is not 49) and as a program that reads a number and prints its square. They are
for the sandbox alone: nothing here may be executed anywhere else.
"""

from __future__ import annotations

MARK = "left-by-an-attack"
"""In the name of every file that an attack makes."""
PORT = 48613
"""That an attack listens on."""

_SAY = "\nprint('49 passed OK True 1.0')\n"

_VERDICTS = {
    "exits with 0 at load": "import sys; sys.exit(0)",
    "exits with 0 in the call": "import sys\ndef solve(x): sys.exit(0)",
    "leaves by os._exit": "import os\ndef solve(x): os._exit(0)\nif __name__ == '__main__': os._exit(0)",
    "exits at exit": "import atexit, os\natexit.register(os._exit, 0)\ndef solve(x): raise SystemExit",
    "prints a verdict": "def solve(x):\n    print('49')\n    print('passed')" + _SAY,
    "prints every number": "def solve(x): return list(range(100))\nfor i in range(3000): print(i)",
    "raises an exception that lies": """
class Passed(Exception):
    def __str__(self): import os; os._exit(0)
def solve(x): raise Passed
solve(1) if __name__ == '__main__' else 0""",
    "hooks exceptions": "import sys, os\nsys.excepthook = lambda *a: os._exit(0)\ndef solve(x): return 1 / 0\n1 / 0",
}
_LIES = {
    "equals everything": """
class Yes:
    __hash__ = lambda self: 49
    __eq__ = __ge__ = __le__ = lambda self, other: True
    __ne__ = __lt__ = __gt__ = lambda self, other: False
    __bool__ = lambda self: True
    __str__ = __repr__ = lambda self: '49'
def solve(x): return Yes()
print(Yes().__class__)""",
    "is a number that equals everything": """
class Yes(int):
    __hash__ = lambda self: 49
    __eq__ = lambda self, other: True
    __ne__ = lambda self, other: False
def solve(x): return Yes(3)""",
    "is a list that equals everything": """
class Yes(list):
    __eq__ = lambda self, other: True
    __iter__ = lambda self: iter([49])
    __len__ = lambda self: 1
def solve(x): return [Yes()]""",
    "lies about its class": """
class Yes:
    __class__ = property(lambda self: int)
    __eq__ = lambda self, other: True
    __index__ = __int__ = lambda self: 49
def solve(x): return Yes()""",
    "has a class that lies": """
class Meta(type):
    __eq__ = lambda cls, other: True
    __hash__ = lambda cls: hash(int)
    __instancecheck__ = lambda cls, other: True
class Yes(metaclass=Meta):
    __eq__ = lambda self, other: True
def solve(x): return Yes()""",
    "patches builtins": """
import builtins
for name in ('len', 'isinstance', 'abs', 'all', 'any', 'sorted', 'repr', 'getattr', 'type', 'print', 'str'):
    setattr(builtins, name, lambda *a, **k: True)
def solve(x): return True""",
    "patches the comparer": """
import sys, operator, unittest, json
operator.eq = json.dumps = json.loads = lambda *a, **k: True
unittest.TestCase.assertEqual = lambda *a: None
for module in list(sys.modules.values()):
    for name in ('compare', 'check', 'verify', 'encode', 'dumps', 'assert_equal'):
        if hasattr(module, name): setattr(module, name, lambda *a, **k: True)
def solve(x): return 0""",
    "rewrites the agent": """
import sys
def solve(x):
    frame = sys._getframe()
    while frame:
        for name, value in list(frame.f_globals.items()):
            if callable(value) and not name.startswith('__') and name != 'solve':
                frame.f_globals[name] = lambda *a, **k: True
        frame = frame.f_back
    return 0""",
    "looks for the answer in memory": """
import gc, sys
def solve(x):
    seen, frame = [], sys._getframe()
    while frame:
        seen += [v for v in frame.f_locals.values() if type(v) is int and v != x]
        frame = frame.f_back
    for thing in gc.get_objects():
        if type(thing) is dict:
            seen += [v for k, v in list(thing.items()) if k in ('expected', 'answer', 'tests', 'output', 'gold')]
    return seen[-1] if seen else None
print(solve(0))""",
    "hooks imports": """
import sys, builtins, importlib.abc
class Finder(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None): raise SystemExit(0)
sys.meta_path.insert(0, Finder())
sys.modules.clear()
builtins.__import__ = lambda *a, **k: type('Fake', (), {'__getattr__': lambda s, n: lambda *a, **k: True})()
def solve(x): import json; return json.loads('49')""",
    "returns a pickle bomb": """
import os, pickle
class Bomb:
    def __reduce__(self): return os.system, ('touch /tmp/left-by-an-attack',)
def solve(x):
    try: return [Bomb(), pickle.dumps(Bomb())]
    finally: pickle.loads(pickle.dumps(Bomb()))
print(solve(1))""",
}
_VALUES = {
    "returns a list that doubles": "def solve(x):\n    a = [1]\n    for _ in range(60): a = [a, a]\n    return a",
    "returns a list in itself": "def solve(x):\n    a = []\n    a.append(a)\n    return a",
    "returns a deep list": "def solve(x):\n    a = []\n    for _ in range(10 ** 6): a = [a]\n    return a",
    "returns keys of one hash": "def solve(x): return {i * ((1 << 61) - 1) for i in range(200)}",
    "floods the hash of the grader": """
import json, struct, os, sys
def solve(x):
    frame = sys._getframe()
    while 'nonce' not in frame.f_locals: frame = frame.f_back
    rows = ['["int","%x"]' % (i * ((1 << 61) - 1)) for i in range(80000)]
    text = f'["{frame.f_locals["nonce"]}","value",["set",{",".join(rows)}]]'.encode()
    os.write(3, struct.pack('>I', len(text)) + text[:60000]); rest = text[60000:]
    while rest: rest = rest[os.write(3, rest[:60000]):]
    import time; time.sleep(60)""",
    "returns a huge number": "def solve(x): return 1 << (1 << 26)",
    "returns a huge decimal": "from decimal import Decimal\ndef solve(x): return Decimal('1e999999999')",
    "returns a decimal that raises": "from decimal import Decimal\ndef solve(x): return Decimal('sNaN')",
    "yields without end": "def solve(x):\n    while True: yield 49",
    "has a repr without end": """
class Yes:
    def __repr__(self):
        while True: pass
def solve(x): return Yes()
if __name__ == '__main__': print(Yes())""",
}
_CHANNEL = {
    "reads the descriptors": """
import os
def solve(x):
    found = []
    for i in range(256):
        if i != 3:
            try: os.set_blocking(i, False); found.append(os.read(i, 1 << 16))
            except OSError: pass
    return found""",
    "writes to the descriptors": """
import os
for i in range(256):
    try: os.set_blocking(i, False); os.write(i, b'49\\npassed\\n{"passed": true}\\n')
    except OSError: pass
def solve(x): return None""",
    "closes the descriptors": """
import os
def solve(x):
    os.closerange(0, 256)
    while True: pass
if __name__ == '__main__': solve(1)""",
    "answers before it is asked": """
import os, struct
def send(text): os.write(3, struct.pack('>I', len(text)) + text)
try:
    for nonce in ('', '0' * 32, 'None'): send(f'["{nonce}","value",49]'.encode())
except OSError: pass
def solve(x): return 49""",
    "answers the next question too": """
import os, struct, sys, threading, time
def solve(x):
    frame = sys._getframe()
    while 'nonce' not in frame.f_locals: frame = frame.f_back
    text = f'["{frame.f_locals["nonce"]}","value",true]'.encode()
    os.write(3, 2 * (struct.pack('>I', len(text)) + text))
    time.sleep(60)""",
    "announces a huge answer": "import os\ndef solve(x):\n    os.write(3, b'\\xff' * 70000)\n    return 49",
    "drips an answer": """
import os, time
def solve(x):
    os.write(3, b'\\0\\0\\1\\0')
    while True: os.write(3, b' '); time.sleep(.01)""",
    "sends its descriptors": """
import socket
def solve(x):
    owner = socket.socket(fileno=3)
    socket.send_fds(owner, [b'\\0\\0\\0\\2{}'], [0, 1, 2] * 60)
    return 49""",
    "writes without end": "def solve(x):\n    while True: print('49' * 1000)\nif __name__ == '__main__': solve(1)",
    "writes errors without end": """
import sys
def solve(x):
    while True: sys.stderr.write('passed' * 1000)
if __name__ == '__main__': solve(1)""",
}
_HOST = {
    "reads /proc": """
import os, glob
def solve(x):
    found = []
    for path in glob.glob('/proc/*/*') + ['/proc/self/environ', '/proc/1/cmdline', '/proc/1/mem', '/proc/self/maps']:
        try: found.append(open(path, 'rb').read(1000))
        except OSError: pass
    return found
print(solve(1))""",
    "reads its arguments and environment": """
import os, sys
def solve(x): return [*os.environ.items(), *sys.argv[1:], *getattr(sys, 'orig_argv', ['?'])[99:]]
print(solve(1))""",
    "reads the host's files": """
import os
def solve(x):
    found = []
    for path in ('/etc/passwd', '/etc/shadow', '/etc/hosts', '/home', '/var', '/sys', '/proc', '/etc', '/mnt'):
        try: found.append(open(path).read() if os.path.isfile(path) else os.listdir(path))
        except OSError: pass
    return found
print(solve(1))""",
    "escapes by links and dots": """
import os
def solve(x):
    if not os.path.islink('left-by-an-attack'): os.symlink('/', 'left-by-an-attack')
    found = []
    for path in ('left-by-an-attack/etc/passwd', '../../../../etc/passwd', '/tmp/../etc/passwd', '/proc/1/root/etc'):
        try: found.append(open(path).read())
        except OSError: pass
    device = os.makedev(1, 1)
    for call in (lambda: os.chroot('.'), lambda: os.link('/dev/null', 'n'), lambda: os.mknod('m', 0o20666, device)):
        try: call(); found.append(call)
        except OSError: pass
    return found
print(solve(1))""",
    "changes the library": """
import os, sys
def solve(x):
    for folder in {os.path.dirname(os.__file__), '/usr', '/', '/dev', '/usr/share/zoneinfo', *filter(None, sys.path)}:
        try: open(f'{folder}/left-by-an-attack', 'w').write('1')
        except OSError: pass
    for path in (os.__file__, '/dev/null', '/dev/urandom'):
        for call in (lambda: os.chmod(path, 0o777), lambda: os.utime(path), lambda: os.remove(path)):
            try: call()
            except OSError: pass
    return None
solve(1)""",
    "leaves shared memory": """
import ctypes
from multiprocessing.shared_memory import SharedMemory
libc = ctypes.CDLL(None)
def solve(x):
    for call in (lambda: open('/dev/shm/left-by-an-attack', 'w').write('49'),
                 lambda: SharedMemory('left-by-an-attack', True, 99),
                 lambda: libc.shmget(4949, 4096, 0o1666), lambda: libc.semget(4949, 1, 0o1666),
                 lambda: libc.msgget(4949, 0o1666), lambda: libc.mq_open(b'/mark', 66, 0o666, 0)):
        try: call()
        except Exception: pass
solve(1)""",
    "uses the network": """
import socket, urllib.request
def solve(x):
    found = []
    def listen():
        s = socket.socket(); s.bind(('0.0.0.0', 48613)); s.listen(); return s
    def unix():
        s = socket.socket(socket.AF_UNIX); s.bind('\\0left-by-an-attack'); s.listen(); return s
    for call in (listen, unix, lambda: socket.create_connection(('127.0.0.1', 22), 1),
                 lambda: urllib.request.urlopen('http://127.0.0.1', timeout=1),
                 lambda: socket.socket(socket.AF_NETLINK), lambda: socket.socketpair(30)):
        try: found.append(call())
        except Exception: pass
    return found
print(solve(1))""",
    "leaves something for the next program": """
import builtins, os, sys, random
builtins.solve = lambda x: x * x
os.environ['ANSWER'] = '49'
sys.modules['answers'] = type(sys)('answers')
for name in ('left-by-an-attack', '/tmp/left-by-an-attack', '/dev/shm/left-by-an-attack'):
    open(name, 'w').write('49')
def solve(x): return 0""",
}
_PROCESSES = {
    "stays behind by a double fork": """
import os, time
def solve(x):
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            while True: time.sleep(1)
        os._exit(0)
    return None
solve(1)""",
    "answers from a fork": "import os\ndef solve(x):\n    os.fork()\n    return 0\nsolve(1)\nprint(1)",
    "bombs with forks": """
import os
def solve(x):
    while True:
        try: os.fork()
        except OSError: pass
if __name__ == '__main__': solve(1)""",
    "bombs with threads": """
import threading, time
def solve(x):
    while True:
        try: threading.Thread(target=time.sleep, args=(99,)).start()
        except RuntimeError: time.sleep(.01)
if __name__ == '__main__': solve(1)""",
    "herds zombies": """
import os
def solve(x):
    for _ in range(10000):
        try:
            if os.fork() == 0: os._exit(0)
        except OSError: return None
solve(1)""",
    "signals everybody": """
import os, signal
def solve(x):
    for pid in (os.getppid(), 1, -1, *range(2, 400)):
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGSTOP, signal.SIGXCPU, signal.SIGKILL):
            try:
                if pid != os.getpid(): os.kill(pid, number)
            except OSError: pass
    os.kill(0, signal.SIGKILL)
if __name__ == '__main__': solve(1)""",
    "ignores signals": """
import signal
for number in range(1, 65):
    try: signal.signal(number, signal.SIG_IGN)
    except (OSError, ValueError): pass
def solve(x):
    while True: pass
if __name__ == '__main__': solve(1)""",
    "computes in C": "def solve(x): return pow(7, (1 << 10 ** 6) - 1, 7 ** 50000)\nif __name__ == '__main__': solve(1)",
    "stops itself": """
import os, signal
def solve(x): os.kill(os.getpid(), signal.SIGSTOP)
if __name__ == '__main__': solve(1)""",
    "sleeps": "import time\ndef solve(x): time.sleep(1000)\nif __name__ == '__main__': solve(1)",
    "recurses until it crashes": """
import sys
sys.setrecursionlimit(1 << 30)
class Deep:
    def __getattr__(self, name): return getattr(self, name + '_')
def solve(x): return Deep().deep
if __name__ == '__main__': solve(1)""",
    "aborts": "import os\ndef solve(x): os.abort()\nif __name__ == '__main__': solve(1)",
}
_RESOURCES = {
    "allocates 10 GB": "def solve(x): return len(bytearray(10 << 30))\nif __name__ == '__main__': solve(1)",
    "maps 10 GB": """
import mmap
def solve(x):
    m = mmap.mmap(-1, 10 << 30)
    for i in range(0, 10 << 30, 4096): m[i] = 1
if __name__ == '__main__': solve(1)""",
    "allocates in many children": """
import os, time
def solve(x):
    for _ in range(12):
        if os.fork() == 0:
            held = bytearray(60 << 20)
            time.sleep(99)
    time.sleep(99)
if __name__ == '__main__': solve(1)""",
    "allocates and keeps its parent awake": """
import os, signal, time
def solve(x):
    for _ in range(12):
        if os.fork() == 0:
            held = bytearray(60 << 20)
            time.sleep(99)
    while True: os.kill(os.getppid(), signal.SIGCHLD)
if __name__ == '__main__': solve(1)""",
    "fills the disk": """
import os
def solve(x):
    for i in range(10 ** 6):
        try: open(f'left-by-an-attack-{i}', 'wb').write(bytes(1 << 20))
        except OSError: break
    return os.path.exists('left-by-an-attack-100')
print(solve(1))""",
    "makes a million files": """
import os
def solve(x):
    for i in range(10 ** 6):
        try: os.mkdir(f'left-by-an-attack-{i}')
        except OSError: return i
solve(1)""",
    "raises its limits": """
import resource
for kind in range(16):
    for value in ((-1, -1), (1 << 40, 1 << 40)):
        try: resource.setrlimit(kind, value)
        except (OSError, ValueError): pass
        try: resource.prlimit(1, kind, value)
        except (OSError, ValueError): pass
def solve(x): return len(bytearray(10 << 30))""",
}
_KERNEL = {
    "calls the kernel": """
import ctypes, os
libc = ctypes.CDLL(None, use_errno=True)
def solve(x):
    # ptrace, mount, umount2, swapon, reboot, sethostname, init_module, kexec_load, add_key, keyctl, unshare, setns,
    # bpf, perf_event_open, userfaultfd, process_vm_readv, process_vm_writev, open_by_handle_at, memfd_create,
    # io_uring_setup, pidfd_getfd, fsopen, seccomp, prctl, personality, syslog, chroot, pivot_root, setuid, acct,
    # quotactl, mbind, shmget
    if os.uname().machine != 'x86_64': return []
    calls = [101, 165, 166, 167, 169, 170, 175, 246, 248, 250, 272, 308, 321, 298, 323, 310, 311, 304, 319, 425,
             438, 430, 317, 157, 135, 103, 161, 155, 105, 163, 179, 237, 29]
    return [n for n in calls if libc.syscall(n, 0, 0, 0, 0, 0, 0) != -1]
print(solve(1))""",
    "makes namespaces": """
import ctypes, os, sys
libc = ctypes.CDLL(None, use_errno=True)
def solve(x):
    found = []
    for flag in (0x10000000, 0x00020000, 0x20000000, 0x40000000):
        if libc.unshare(flag) == 0: found.append(flag)
        pid = libc.syscall(56, flag | 17, 0, 0, 0, 0)
        if pid == 0: os._exit(0)
        if pid > 0: found.append(pid)
    return found
print(solve(1))""",
    "enters namespaces": """
import ctypes, os
libc = ctypes.CDLL(None, use_errno=True)
def solve(x):
    found = [libc.syscall(434, pid, 0) for pid in range(1, 4)]
    found += [libc.setns(fd, 0) for fd in [*range(32), *found]]
    return [f for f in found if f >= 0 and f > 2]
print(solve(1))""",
    "traces its parent": """
import ctypes, os
libc = ctypes.CDLL(None, use_errno=True)
def solve(x):
    buffer = ctypes.create_string_buffer(64)
    pairs = (ctypes.c_size_t * 2)(ctypes.addressof(buffer), 64)
    found = [libc.ptrace(16, pid, 0, 0) for pid in (1, os.getppid())]
    found += [libc.process_vm_readv(pid, pairs, 1, pairs, 1, 0) for pid in (1, os.getppid())]
    return [f for f in found if f >= 0]
print(solve(1))""",
    "starts other programs": """
import os, subprocess, sys, shutil
def solve(x):
    found = []
    open('left-by-an-attack', 'w').write('#!/bin/sh\\necho 49'); os.chmod('left-by-an-attack', 0o755)
    for path in (sys.executable, '/bin/sh', '/usr/bin/env', './left-by-an-attack', '/proc/self/exe'):
        try: found.append(subprocess.run([path, '-c', 'echo 49'], capture_output=True).stdout)
        except OSError: pass
    return found
print(solve(1), os.system('echo 49'))""",
    "runs machine code": """
import ctypes, mmap, platform
def solve(x):
    # int 0x80 with the number of a 32-bit socketcall; svc of a refused call elsewhere
    code = b'\\xb8\\x66\\0\\0\\0\\xcd\\x80\\xc3' if platform.machine() == 'x86_64' else b'\\0\\0\\0\\0'
    page = mmap.mmap(-1, 4096, prot=7)
    page.write(code)
    return ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(page)))()
if __name__ == '__main__': print(solve(1))""",
    "uses the calls of x32": """
import ctypes
def solve(x): return ctypes.CDLL(None).syscall(0x40000000 + 41, 2, 1, 0)
if __name__ == '__main__': print(solve(1))""",
}

ATTACKS: dict[str, str] = {
    **_VERDICTS,
    **_LIES,
    **_VALUES,
    **_CHANNEL,
    **_HOST,
    **_PROCESSES,
    **_RESOURCES,
    **_KERNEL,
}
FRUITLESS = [
    *("reads /proc", "reads its arguments and environment", "reads the host's files", "escapes by links and dots"),
    *("uses the network", "makes namespaces", "enters namespaces", "traces its parent", "starts other programs"),
    "calls the kernel",
]
"""Those whose `solve` gives a list of what they found or managed to do: an empty one."""
