"""The published ssh host keys of the large providers, and the host keys of a connection.

A test compares the published keys with these fingerprints:
https://docs.github.com/en/authentication/keeping-your-account-and-data-secure/githubs-ssh-key-fingerprints
https://docs.gitlab.com/user/gitlab_com/#ssh-host-keys-fingerprints
https://support.atlassian.com/bitbucket-cloud/docs/configure-ssh-and-two-step-verification/
https://learn.microsoft.com/en-us/azure/devops/repos/git/use-ssh-keys-to-authenticate
"""

import re

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import load_ssh_public_key

from gateway.errors import Invalid

_GITHUB = "github.com,[ssh.github.com]:443"
_GITLAB = "gitlab.com,[altssh.gitlab.com]:443"
_BITBUCKET = "bitbucket.org,[altssh.bitbucket.org]:443"
_AZURE = "ssh.dev.azure.com,vs-ssh.visualstudio.com"

KNOWN_HOSTS = f"""\
{_GITHUB} ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIOMqqnkVzrm0SdG6UOoqKLsabgH5C9okWi0dh2l9GKJl
{_GITHUB} ecdsa-sha2-nistp256 AAAAE2VjZHNhLXNoYTItbmlzdHAyNTYAAAAIbmlzdHAyNTYAAABBBEmKSENjQEezOmxkZMy7opKgwFB\
9nkt5YRrYMjNuG5N87uRgg6CLrbo5wAdT/y6v0mKV0U2w0WZ2YB/++Tpockg=
{_GITLAB} ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAfuCHKVTjquxvt6CM6tdG4SLp1Btn/nOeHHE5UOzRdf
{_BITBUCKET} ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIIazEu89wgQZ4bqs3d63QSMzYVa0MuJ2e2gKTKqu+UUO
{_AZURE} ssh-rsa AAAAB3NzaC1yc2EAAAADAQABAAABAQC7Hr1oTWqNqOlzGJOfGJ4NakVyIzf1rXYd4d7wo6jBlkLvCA4odBlL0mDUyZ0/\
QUfTTqeu+tm22gOsv+VrVTMk6vwRU75gY/y9ut5Mb3bR5BV58dKXyq9A9UeB5Cakehn5Zgm6x1mKoVyf+FFn26iYqXJRgzIZZcZ5V6hrE0Qg\
39kZm4az48o0AUbf6Sp4SLdvnuMa2sVNwHBboS7EJkm57XQPVU3/QpyNLHbWDdzwtrlS+ez30S3AdYhLKEOxAG8weOnyrtLJAUen9mTkol8o\
II1edf7mWWbWVf0nBmly21+nZcmCTISQBtdcyPaEno7fFQMDD26/s0lfKob4Kw8H
"""

_MARKERS = frozenset({"@cert-authority", "@revoked"})
# Hashed names and patterns may stand for any host.
_ANY_NAME = re.compile(r"\||[*?]")


def read_host_keys(text: str, *, known_as: str) -> tuple[str, list[int]]:
    """Return the valid known_hosts lines of a text, and the numbers of the lines without a readable key.

    Like ssh, leave out lines without a readable key. Raises `Invalid`, with one sentence, if no line is for
    this host. The format: https://man.openbsd.org/sshd.8#SSH_KNOWN_HOSTS_FILE_FORMAT
    """
    lines: list[str] = []
    unreadable: list[int] = []
    names: list[str] = []
    for number, line in enumerate(re.split(r"\r\n|\r|\n", text), start=1):
        words = line.split()
        if not words or words[0].startswith("#"):
            continue
        hosts, *key = (words[1:] if words[0] in _MARKERS else words) or [""]
        if _is_key(key[:2]):
            lines.append(line.strip())
            names += hosts.lower().split(",")
        elif words[0] == "@revoked":
            # Without this line ssh would accept the key that it revokes.
            raise Invalid(f"host_keys: line {number} revokes a key that cannot be read")
        else:
            unreadable.append(number)
    if not lines and unreadable:
        raise Invalid("host_keys: each line must have a host, a type and a key, as ssh-keyscan prints them")
    if not any(name == known_as or _ANY_NAME.search(name) for name in names):
        unread = f" (line {unreadable[0]} cannot be read)" if unreadable else ""
        raise Invalid(f"host_keys: no line is for {known_as}{unread}; ssh-keyscan prints the lines of a host")
    return "\n".join([*lines, ""]), unreadable


def _is_key(words: list[str]) -> bool:
    try:
        load_ssh_public_key(" ".join(words).encode())
    except (ValueError, UnsupportedAlgorithm):
        return False
    return True
