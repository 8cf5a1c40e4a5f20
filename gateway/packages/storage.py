"""Storage of package files: a folder, S3, Google Cloud Storage or Azure Blob Storage, behind one API.

Credentials of an object store come from the environment, as for its own tools: AWS_ACCESS_KEY_ID,
AWS_REGION, GOOGLE_SERVICE_ACCOUNT, AZURE_STORAGE_ACCOUNT_NAME, ... or from the machine's role.
https://developmentseed.org/obstore/latest/
"""

import os
import re
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from pathlib import Path
from urllib.parse import unquote, urlsplit

import obstore
from obstore.exceptions import BaseError
from obstore.store import AzureStore, GCSStore, LocalStore, ObjectStore, S3Store, from_url

from gateway.errors import NotFound, PackageStorageUnavailable, SettingError
from gateway.threads import FILES

# A name that no package has.
_NO_OBJECT = "check"
_CHUNK = 8 * 1024 * 1024
_READ_CHUNK = 4 * 1024 * 1024
_UPLOADS = 2
_RETRIES = 3
_RETRY_TIME = timedelta(minutes=1)
# S3 and Google sign URLs for a week at most.
# https://docs.aws.amazon.com/AmazonS3/latest/userguide/using-presigned-url.html
MAX_SIGNATURE_AGE = timedelta(days=7)
_SIGNING = (S3Store, GCSStore, AzureStore)


class PackageStorage:
    """Stores objects by name. All calls may raise `PackageStorageUnavailable`."""

    def __init__(self, url: str) -> None:
        """Open `file:///folder`, `s3://bucket/folder`, `gs://…` or `az://…`. Raises `SettingError`."""
        parts = urlsplit(url)
        self._folder: Path | None = None
        self._store: ObjectStore
        try:
            if parts.scheme == "file":
                self._folder = Path(unquote(parts.path))
                self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
                self._store = LocalStore(self._folder, automatic_cleanup=True)
            else:
                # No client options: they would override those of the environment, such as AWS_ALLOW_HTTP.
                self._store = from_url(
                    url, retry_config={"max_retries": _RETRIES, "retry_timeout": _RETRY_TIME}
                )
        except (BaseError, OSError, ValueError) as error:
            raise SettingError(f"PUSHGATE_PACKAGES_URL cannot be used: {_first_line(error)}") from error

    @property
    def presigns(self) -> bool:
        """Whether `presign` returns URLs."""
        return isinstance(self._store, _SIGNING)

    async def put(self, name: str, path: Path) -> None:
        """Store a file under a name, atomically; in a folder it is synced to the disk."""
        with _translated():
            await obstore.put_async(self._store, name, path, chunk_size=_CHUNK, max_concurrency=_UPLOADS)
            if self._folder is not None:
                await FILES.run(_sync, self._folder / name)

    async def size(self, name: str) -> int | None:
        """Return the size of an object in bytes; None if it does not exist."""
        with _translated():
            try:
                return (await obstore.head_async(self._store, name))["size"]
            except FileNotFoundError:
                return None

    async def read(self, name: str, start: int, end: int) -> AsyncIterator[bytes]:
        """Open the bytes from `start` up to, but not including, `end`. Raises `NotFound` at once."""
        try:
            first = await self._part(name, start, end)
        except FileNotFoundError as error:
            raise NotFound("the package's file was deleted; the next execution builds it again") from error
        return self._parts(name, first, start + len(first), end)

    async def _parts(self, name: str, first: bytes, start: int, end: int) -> AsyncIterator[bytes]:
        """Request each part by itself, because one request for a slow client would time out."""
        yield first
        for at in range(start, end, _READ_CHUNK):
            yield await self._part(name, at, end)

    async def _part(self, name: str, start: int, end: int) -> bytes:
        with _translated(but=FileNotFoundError):
            return bytes(
                await obstore.get_range_async(
                    self._store, name, start=start, end=min(end, start + _READ_CHUNK)
                )
            )

    async def delete(self, name: str) -> None:
        """Remove an object; it need not exist."""
        with _translated():
            try:
                await obstore.delete_async(self._store, name)
            except FileNotFoundError:
                return

    async def names(self, *, before: datetime) -> list[str]:
        """Return the names of all objects that were stored before a moment."""
        found: list[str] = []
        with _translated():
            async for batch in obstore.list(self._store):
                found += [item["path"] for item in batch if item["last_modified"] < before]
        return found

    async def discard_unfinished(self, *, before: datetime) -> None:
        """Remove unfinished objects of killed processes from a folder; a bucket has lifecycle rules for that.

        https://docs.aws.amazon.com/AmazonS3/latest/userguide/mpu-abort-incomplete-mpu-lifecycle-config.html
        """
        if self._folder is not None:
            with _translated():
                await FILES.run(_discard, self._folder, before.timestamp())

    async def check(self) -> None:
        """Raise `PackageStorageUnavailable` if the storage does not answer, or is not writable."""
        if self._folder is None:
            await self.size(_NO_OBJECT)
        elif not await FILES.run(os.access, self._folder, os.W_OK | os.X_OK):
            raise PackageStorageUnavailable(
                f"the package storage cannot be used: {self._folder} does not exist, or is not writable"
            )

    async def presign(self, name: str, valid: timedelta) -> str | None:
        """Return a URL that gives anybody the object, for a week at most; None if the storage is a folder."""
        if not isinstance(self._store, _SIGNING):
            return None
        with _translated():
            return await obstore.sign_async(self._store, "GET", name, min(valid, MAX_SIGNATURE_AGE))


@contextmanager
def _translated(*, but: type[Exception] | tuple[()] = ()) -> Iterator[None]:
    try:
        yield
    except but:
        raise
    except (BaseError, OSError, ValueError) as error:
        raise PackageStorageUnavailable(
            f"the package storage cannot be used: {_first_line(error)}"
        ) from error


def _sync(path: Path) -> None:
    for item in (path, path.parent, path.parent.parent):
        descriptor = os.open(item, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _discard(folder: Path, before: float) -> None:
    """Remove old files with the names of obstore's unfinished writes, such as `object#1`."""
    for path in folder.glob("*/*#*"):
        if path.stat().st_mtime < before:
            path.unlink()


def _first_line(error: Exception) -> str:
    """Return the first line of an error, without the queries of URLs, which may be signatures."""
    return re.sub(r"\?[^\s\"')]*", "", str(error).strip().partition("\n")[0])[:300]
