"""Prove that an image runs with few rights: `python -m tests.image IMAGE`, or `make image`.

As its own user and as two other ones, without capabilities and without the network, on a read-only root: each
proof is a line of a shell in the container. The variable CONTAINERS is the program that runs it, `docker` by
default, with its options.
"""

import os
import shlex
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence

# The user of the image, one that OpenShift chooses, and one that nobody has heard of.
USERS = ("10001:10001", "1000640000:0", "65533:0")
# What a Pod with the policy `restricted` and a read-only root has at most.
RESTRICTED = (
    "--read-only",
    "--tmpfs=/tmp",
    "--cap-drop=all",
    "--security-opt=no-new-privileges",
    "--network=none",
)
_READY = """
import sys, time, urllib.request
for _ in range(60):
    try:
        sys.exit(urllib.request.urlopen("http://127.0.0.1:8080/readyz", timeout=4).status != 200)
    except OSError:
        time.sleep(0.5)
sys.exit(1)
"""
_NAMELESS = 4242
PROOFS: Mapping[str, str] = {
    "has no capability, and can gain none": "grep -Eq '^CapEff:\\s*0+$' /proc/self/status"
    " && grep -Eq '^CapBnd:\\s*0+$' /proc/self/status && grep -Eq '^NoNewPrivs:\\s*1$' /proc/self/status",
    "writes only to its data and /tmp": "grep -Eq '^\\S+ / \\S+ ro,' /proc/mounts"
    " && touch /var/lib/pushgate/x /tmp/x && ! touch /x 2>/dev/null && ! touch /opt/pushgate/x 2>/dev/null",
    "makes a database": "pushgate migrate",
    "is ready, and ends in order": f"pushgate serve & python -c {shlex.quote(_READY)} && kill $! && wait $!",
    "has git": "git init --quiet /tmp/a && git -C /tmp/a -c user.name=a -c user.email=a@b commit --quiet"
    " --allow-empty --message a && git clone --quiet /tmp/a /tmp/b",
    # ssh refuses users without a name before it connects. Podman adds the container's user to /etc/passwd, so
    # the image must also name a user that only it can name.
    "has ssh, and a name for each user": f"getent passwd {_NAMELESS} >/dev/null"
    " && ssh -o BatchMode=yes -p 1 127.0.0.1 2>&1 | grep -q 'Connection refused'",
    "can export traces": "python -c 'import opentelemetry.exporter.otlp.proto.http.trace_exporter'",
}
# Root sees all folders.
_PRIVILEGED = "find / -xdev -type f -perm /6000"
_SECONDS = 300
# https://docs.docker.com/engine/containers/run/#exit-status
_NO_CONTAINER = 125
_MB = 1_000_000


def main() -> int:
    """Return 1 if a proof fails; print a line for each."""
    image, containers = sys.argv[1], shlex.split(os.environ.get("CONTAINERS", "docker"))
    failed = 0
    for what, problem in _checked(containers, image):
        failed += problem is not None
        sys.stdout.write(f"ok      {what}\n" if problem is None else f"FAILED  {what}: {problem}\n")
        sys.stdout.flush()
    size = _run([*containers, "image", "inspect", "--format", "{{.Size}}", image])
    sys.stdout.write(f"{image} has {int(size.stdout) / _MB:.0f} MB, uncompressed\n")
    return bool(failed)


def _checked(containers: Sequence[str], image: str) -> Iterator[tuple[str, str | None]]:
    """Yield what was proved, each with why it failed, or None."""
    run = [*containers, "run", "--rm"]
    found = _run([*run, "--user=0:0", "--entrypoint=sh", image, "-c", _PRIVILEGED])
    yield "no program is setuid or setgid", _problem(found) or (" ".join(found.stdout.split()) or None)
    for user in USERS:
        for what, script in PROOFS.items():
            command = [*run, *RESTRICTED, f"--user={user}", "--entrypoint=sh", image, "-c", script]
            yield f"{user} {what}", _problem(_run(command))


def _run(command: Sequence[str]) -> subprocess.CompletedProcess[str]:
    """Run a command. End the process if that cannot be done, for example without the image."""
    try:
        ended = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS, check=False)
    except FileNotFoundError:
        sys.exit(f"{command[0]} is not installed: CONTAINERS=podman runs the image with Podman")
    if ended.returncode == _NO_CONTAINER:
        sys.exit(f"{command[0]} cannot run the image: {ended.stderr.strip()}")
    return ended


def _problem(ended: subprocess.CompletedProcess[str]) -> str | None:
    """Return the last line of a command that has failed, or None."""
    if ended.returncode == 0:
        return None
    lines = (ended.stderr.strip() or ended.stdout.strip()).splitlines()
    return f"status {ended.returncode}, {lines[-1] if lines else 'without a word'}"


if __name__ == "__main__":
    sys.exit(main())
