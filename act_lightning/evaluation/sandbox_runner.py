"""What a sandbox's interpreter runs, given as text: it needs the standard library only, and imports nothing of ours.

The first process encloses itself and waits. Its child limits itself, says that it is ready, and runs the program that
it read from standard input. As the first process of a namespace or container, the one that waits takes all others with
it when it ends.
"""

from __future__ import annotations

import ctypes
import json
import os
import platform
import resource
import signal
import sys
import time
from typing import Any

_READONLY, _NOSUID, _NODEV, _NOEXEC, _REMOUNT, _BIND, _RECURSIVE, _PRIVATE = 1, 2, 4, 8, 32, 4096, 16384, 1 << 18
_KEPT = ((_NOSUID, 0), (_NODEV, 0), (_NOEXEC, 0), (1024, 0), (2048, 0), (4096, 1 << 21))  # of statvfs; relatime differs
_PARENT_DEATH_SIGNAL, _SUBREAPER, _NO_NEW_PRIVILEGES = 1, 36, 38
_DEVICES = ("null", "zero", "urandom", "random")


def main() -> None:
    """Run a program as the options say, which are the first argument."""
    options, result = json.loads(sys.argv[1]), os.dup(1)
    try:
        source = sys.stdin.read()
        on_linux = platform.system() == "Linux"
        if options.get("root"):
            enclose(options["root"], options["uid"])
        if on_linux:
            call("prctl", _NO_NEW_PRIVILEGES, 1, 0, 0, 0)
            if options["reap"]:
                call("prctl", _SUBREAPER, 1, 0, 0, 0)
        if options["folder"]:
            os.chdir(options["folder"])
        with open("probe", "wb") as probe:
            probe.write(bytes(1 << 16))
        os.remove("probe")
        nothing = os.open(os.devnull, os.O_RDWR)
        child = os.fork()
        if child == 0:
            work(source, options, result, nothing)
        for descriptor in (0, 1, 2, result):
            os.dup2(nothing, descriptor)
        status = wait(child, options["seconds"] + 1)
        if options["reap"] and on_linux:
            reap()
    except BaseException as error:
        os.write(result, f"failed: {type(error).__name__}: {error}\n".encode("utf-8", "replace"))
        os._exit(3)
    os._exit(status)


def work(source: str, options: dict[str, Any], result: int, nothing: int) -> None:
    """In the child: limit this process, run the program, and end."""
    try:
        for descriptor in (0, 1, 2):
            os.dup2(nothing, descriptor)
        if platform.system() == "Linux":
            call("prctl", _PARENT_DEATH_SIGNAL, int(signal.SIGKILL), 0, 0, 0)
        limit(options["limits"])
        sys.stdin, sys.stdout, sys.stderr = (open(number, mode, closefd=False) for number, mode in enumerate("rww"))
        os.write(result, b"ready\n")
    except BaseException as error:
        os.write(result, f"failed: {type(error).__name__}: {error}\n".encode("utf-8", "replace"))
        os._exit(3)
    try:
        exec(compile(source, "<answer>", "exec"), {"__name__": "answer"})
        os.write(result, options["marker"].encode())
    except BaseException:
        os._exit(1)
    os._exit(0)


def limit(limits: dict[str, int]) -> None:
    """Set the limits of this process, no higher than those that it has; macOS does not know all of them."""
    for name, value in limits.items():
        kind = getattr(resource, f"RLIMIT_{name}", None)
        if kind is None:
            continue
        hard = resource.getrlimit(kind)[1]
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        try:
            resource.setrlimit(kind, (value, value))
        except (OSError, ValueError):
            if platform.system() == "Linux":
                raise


def wait(child: int, seconds: float) -> int:
    """The exit status of the child, which is killed when its time is over."""
    deadline = time.monotonic() + seconds
    while True:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if pid == child:
            return os.waitstatus_to_exitcode(status) & 0xFF
        if time.monotonic() > deadline:
            os.kill(child, signal.SIGKILL)
            return 1
        if pid == 0:
            time.sleep(0.005)


def reap() -> None:
    """Kill what the child started and left, which is handed to this process."""
    for _ in range(100):
        children = []
        for name in filter(str.isdigit, os.listdir("/proc")):
            try:
                with open(f"/proc/{name}/stat", encoding="utf-8", errors="replace") as file:
                    parent = int(file.read().rpartition(")")[2].split()[1])
            except OSError:
                continue
            if parent == os.getpid():
                children.append(int(name))
        if not children:
            return
        for pid in children:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


def call(name: str, *arguments: object) -> None:
    """Call a function of the C library, and raise what went wrong."""
    libc = ctypes.CDLL(None, use_errno=True)
    if getattr(libc, name)(*arguments):
        code = ctypes.get_errno()
        raise OSError(code, f"{name}: {os.strerror(code)}")


def enclose(paths: list[str], uid: int | None) -> None:
    """Give this process a root of its own with ``paths`` to read and an empty ``/tmp``, and take its rights away."""

    def mount(source: str, target: str, kind: str | None, flags: int, data: str | None = None) -> None:
        texts = (None if text is None else text.encode() for text in (source, target, kind))
        call("mount", *texts, ctypes.c_ulong(flags), None if data is None else data.encode())

    mount("none", "/", None, _RECURSIVE | _PRIVATE)
    places = ("/mnt", "/media", "/srv", "/run", "/var/tmp", "/tmp")
    root = next(
        place
        for place in places
        if os.path.isdir(place) and not any(f"{path}/".startswith(f"{place}/") for path in paths)
    )
    mount("tmpfs", root, "tmpfs", _NOSUID | _NODEV, "size=1m,mode=755")
    for path in [*paths, *(f"/dev/{name}" for name in _DEVICES)]:
        target = root + path
        if not os.path.exists(path) or os.path.exists(target):
            continue
        os.makedirs(os.path.dirname(target), exist_ok=True)
        if os.path.islink(path) and path.count("/") == 1:  # /bin -> usr/bin
            os.symlink(os.readlink(path), target)
            continue
        if os.path.isdir(path):
            os.mkdir(target)
        else:
            os.close(os.open(target, os.O_CREAT | os.O_WRONLY))
        mount(path, target, None, _BIND | _RECURSIVE)
        if os.path.isdir(path):
            flags = os.statvfs(path).f_flag
            kept = sum(new or old for old, new in _KEPT if flags & old)
            mount("none", target, None, _BIND | _REMOUNT | _READONLY | _NOSUID | kept)
    os.mkdir(f"{root}/tmp")
    mount("tmpfs", f"{root}/tmp", "tmpfs", _NOSUID | _NODEV, "size=64m,mode=1777")
    os.chroot(root)
    os.chdir("/tmp")
    if uid is not None:
        os.setgroups([])
        os.setgid(uid)
        os.setuid(uid)
    else:
        header = (ctypes.c_uint32 * 2)(0x20080522, 0)
        call("capset", header, (ctypes.c_uint32 * 6)())


if __name__ == "__main__":
    main()
