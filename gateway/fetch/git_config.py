"""The environment and the options of every git: nothing of a repository or a user's machine configures it."""

import os
from collections.abc import Mapping
from pathlib import Path

_MAX_THREADS = 4
_KEPT_VARIABLES = (
    # The operator's network: its proxy, and the certificate authorities to trust.
    "HTTPS_PROXY",
    "https_proxy",
    "NO_PROXY",
    "no_proxy",
    "SSL_CERT_FILE",
    "SSL_CERT_DIR",
)
# https://git-scm.com/docs/git-fsck#_fsck_messages: problems that `git clone` accepts and that old, widely
# used repositories contain. They are harmless in a bare mirror: the code that reads commits, trees and
# .gitmodules makes no assumptions about them. Names that would lead a checkout out of its folder or into its
# own repository are still refused. A git that does not have one of these settings prints a warning.
TOLERATED = (
    "badDate",
    "badDateOverflow",
    "badEmail",
    "badFilemode",
    "badGpgsig",
    "badHeaderContinuation",
    "badName",
    "badObjectSha1",
    "badParentSha1",
    "badTagName",
    "badTimezone",
    "badTree",
    "badTreeSha1",
    "badType",
    "duplicateEntries",
    "emptyName",
    "extraHeaderEntry",
    "gitattributesBlob",
    "gitattributesLarge",
    "gitattributesLineLength",
    "gitattributesMissing",
    "gitattributesSymlink",
    "gitignoreSymlink",
    "gitmodulesBlob",
    "gitmodulesLarge",
    "gitmodulesMissing",
    "gitmodulesName",
    "gitmodulesParse",
    "gitmodulesPath",
    "gitmodulesUpdate",
    "gitmodulesUrl",
    "largePathname",
    "mailmapSymlink",
    "missingAuthor",
    "missingCommitter",
    "missingEmail",
    "missingNameBeforeEmail",
    "missingObject",
    "missingSpaceBeforeDate",
    "missingSpaceBeforeEmail",
    "missingTag",
    "missingTagEntry",
    "missingTaggerEntry",
    "missingTree",
    "missingType",
    "missingTypeEntry",
    "multipleAuthors",
    "nulInCommit",
    "nullSha1",
    "treeNotSorted",
    "unknownType",
    "zeroPaddedDate",
    "zeroPaddedFilemode",
)


def environment(home: Path) -> dict[str, str]:
    """Return the environment of every git; `home` is an empty folder of ours."""
    return {
        **{name: os.environ[name] for name in _KEPT_VARIABLES if name in os.environ},
        "PATH": os.environ.get("PATH", os.defpath),
        "HOME": str(home),
        "XDG_CONFIG_HOME": str(home),
        "LC_ALL": "C.UTF-8",
        "GIT_CONFIG_NOSYSTEM": "1",
        "GIT_CONFIG_GLOBAL": os.devnull,
        "GIT_ATTR_NOSYSTEM": "1",
        "GIT_TERMINAL_PROMPT": "0",
        "GIT_ASKPASS": "false",
        "SSH_ASKPASS": "false",
        "GIT_SSH_COMMAND": "false",
        "GIT_NO_REPLACE_OBJECTS": "1",
        "GIT_OPTIONAL_LOCKS": "0",
        "GIT_LITERAL_PATHSPECS": "1",
    }


def options(*, allow_http: bool) -> list[str]:
    """Return the options that every git gets: they override the configuration of repositories."""
    # Debian's git is linked with GnuTLS, which ignores OpenSSL's variable.
    authorities = os.environ.get("SSL_CERT_FILE")
    settings = {
        **({"http.sslCAInfo": authorities} if authorities else {}),
        "core.hooksPath": os.devnull,
        "core.fsmonitor": "false",
        "credential.helper": "",
        "protocol.allow": "never",
        "protocol.https.allow": "always",
        "protocol.ssh.allow": "always",
        "protocol.http.allow": "always" if allow_http else "never",
        # Fetch from the connection's URL and nowhere else: a redirect is reported, not followed.
        "http.followRedirects": "false",
        "http.lowSpeedLimit": "1000",
        "http.lowSpeedTime": "60",
        "transfer.fsckObjects": "true",
        "transfer.bundleURI": "false",
        "fetch.recurseSubmodules": "false",
        "submodule.recurse": "false",
        # Mapped packs and the memory of threads have to fit into git's memory limit on any machine.
        "core.packedGitWindowSize": "32m",
        "core.packedGitLimit": "256m",
        "pack.windowMemory": "256m",
        "pack.threads": str(min(_MAX_THREADS, os.cpu_count() or 1)),
        "gc.auto": "0",
        "maintenance.auto": "false",
    }
    return _as_options(settings)


def fetch_options() -> list[str]:
    """Return the further options of a git that fetches; others start faster without them."""
    return _as_options({f"fetch.fsck.{problem}": "ignore" for problem in TOLERATED})


def _as_options(settings: Mapping[str, str]) -> list[str]:
    return [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
