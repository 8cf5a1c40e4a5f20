"""Interpreter settings of a process that serves webhooks."""

import platform
import subprocess
import sys

import pytest

# Small blocks among the large ones: if all of them are in one heap, it cannot shrink.
_PROGRAM = """
from gateway.server.server import prepare_interpreter

def resident():
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * 4096

prepare_interpreter()
manifest = b"x" * (24 << 20)
del manifest
before = resident()
large = [(b"x" * (4 << 20), b"x" * 4096) for _ in range(20)]
small = [one for _, one in large]
del large
print(resident() - before)
"""


# What several threads allocate at the same time, and in how many heaps the C library has put it.
_THREADS = """
import ctypes, tempfile, threading
from gateway.server.server import prepare_interpreter

def allocate():
    together.wait()
    kept.append([b"x" * 2000 for _ in range(1000)])
    together.wait()

prepare_interpreter()
together, kept = threading.Barrier(8), []
threads = [threading.Thread(target=allocate) for _ in range(8)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
library = ctypes.CDLL(None)
library.fopen.restype = ctypes.c_void_p
with tempfile.NamedTemporaryFile() as file:
    stream = ctypes.c_void_p(library.fopen(file.name.encode(), b"w"))
    library.malloc_info(0, stream)
    library.fclose(stream)
    print(file.read().count(b"<heap nr="))
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries have no such thresholds")
def test_large_blocks_go_back_to_the_system() -> None:
    """Also after a larger one was freed, and with small ones between them that stay."""
    done = subprocess.run([sys.executable, "-c", _PROGRAM], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 8 * 1024 * 1024


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries have one heap")
def test_threads_share_their_heaps() -> None:
    """A heap per thread would keep its peak size."""
    done = subprocess.run([sys.executable, "-c", _THREADS], capture_output=True, text=True, check=True)
    assert int(done.stdout) <= 2
