"""The parts that the web and the worker roles share."""

from dataclasses import dataclass
from datetime import timedelta

from gateway.crypto.keyring import Keyring
from gateway.crypto.signed_tokens import SignedTokens
from gateway.data_dir import DataDir
from gateway.fetch.commit import CommitReader
from gateway.fetch.git import Git, require_git
from gateway.fetch.limits import GitLimits
from gateway.fetch.mirror import Mirrors
from gateway.packages.signing import PackageSigner
from gateway.packages.storage import PackageStorage
from gateway.plan.manifest import MAX_MANIFEST_BYTES
from gateway.publish.status_urls import VALID_FOR, StatusUrls
from gateway.publish.topology import Topology
from gateway.settings import Settings
from gateway.store.database import Database
from gateway.store.notify import Notifier


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """The parts that the web and the worker roles share. None of them runs a task.

    `git_version` is empty in a process that does not fetch.
    `reports` wakes those who follow what runners report.
    """

    settings: Settings
    database: Database
    keyring: Keyring
    admin_token: str
    pushes: Notifier
    requests: Notifier
    reports: Notifier
    git: Git
    git_version: str
    mirrors: Mirrors
    reader: CommitReader
    storage: PackageStorage
    signed_tokens: SignedTokens
    signer: PackageSigner
    status_urls: StatusUrls
    topology: Topology


def shared_parts(settings: Settings, opened: DataDir) -> Parts:
    """Build the shared parts on an open data folder."""
    git_version = "" if settings.role == "web" else require_git()
    git = _build_git(settings)
    storage = PackageStorage(settings.packages)
    url_valid = timedelta(days=settings.package_url_days)
    signed_tokens = SignedTokens(opened.keyring.package_url_key(), valid=url_valid)
    return Parts(
        settings=settings,
        database=opened.database,
        keyring=opened.keyring,
        admin_token=opened.admin_token,
        pushes=Notifier(),
        requests=Notifier(),
        reports=Notifier(),
        git=git,
        git_version=git_version,
        mirrors=Mirrors(git, settings.data_dir / "mirrors"),
        reader=CommitReader(git, manifest_limit=MAX_MANIFEST_BYTES, signers=settings.signers_file),
        storage=storage,
        signed_tokens=signed_tokens,
        signer=PackageSigner(
            database=opened.database,
            storage=storage,
            signed_tokens=signed_tokens,
            base_url=settings.base_url,
            valid=url_valid,
            keep=timedelta(days=settings.package_keep_days),
        ),
        status_urls=StatusUrls(
            signed_tokens=SignedTokens(opened.keyring.status_url_key(), valid=VALID_FOR),
            base_url=settings.base_url,
        ),
        topology=Topology.of(settings),
    )


def _build_git(settings: Settings) -> Git:
    return Git(
        home=settings.data_dir / "git-home",
        allow_http=settings.fetch_allow_http,
        timeout=settings.fetch_timeout,
        hosts=settings.fetch_hosts,
        limits=GitLimits.of(settings),
    )
