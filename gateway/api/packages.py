"""`GET /packages/{id}`: the file of a package, with the Bearer token or a signed URL of this package.

Ranges as in https://www.rfc-editor.org/rfc/rfc9110#name-range-requests, one at a time: a request for
several ranges gets the whole file.
"""

import base64
import re
from dataclasses import dataclass

from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from gateway.api.auth import check_signature
from gateway.api.conditions import is_known
from gateway.api.openapi import BINARY, Operation
from gateway.api.problems import NO_SUCH_RANGE, problem
from gateway.crypto.signed_tokens import SignedTokens
from gateway.packages.storage import PackageStorage
from gateway.store import packages
from gateway.store.database import Database
from gateway.store.packages import KeptPackage

_TYPES = {"tar.gz": "application/gzip", "tar.zst": "application/zstd"}
_RANGE = re.compile(r"bytes=(\d{0,15})-(\d{0,15})")


@dataclass(frozen=True, slots=True, kw_only=True)
class PackageFiles:
    """The endpoint for package files."""

    database: Database
    storage: PackageStorage
    signed_tokens: SignedTokens

    def operations(self) -> list[Operation]:
        """Return the operation."""
        return [
            Operation(
                method="GET",
                path="/packages/{id}",
                endpoint=self.get_package,
                query=("format", "expires", "signature"),
                headers=("Range", "If-Range", "If-None-Match"),
                media_types=(*_TYPES.values(), BINARY),
                errors=(416,),
                is_file=True,
                is_signed=True,
            )
        ]

    async def get_package(self, request: Request) -> Response:
        """`GET /packages/{id}`: download a package, with the token or a signed URL."""
        query = request.query_params
        package_id = request.path_params["id"]
        subject = packages.subject(package_id, query.get("format", ""))
        check_signature(request, subject, self.signed_tokens)
        wanted = query.get("format", "tar.gz")
        kept = await self.database.read(packages.get, package_id=package_id, package_format=wanted)
        headers = _headers(kept)
        if BINARY in request.headers.get("accept", ""):
            headers["content-type"] = BINARY
        if is_known(request, headers["etag"]):
            return Response(status_code=304, headers=headers)
        start, end = 0, kept.size
        status = 200
        # If-Range: a range is of no use to a client that has another version of the file.
        if request.method == "GET" and request.headers.get("if-range", headers["etag"]) == headers["etag"]:
            found = _range(request.headers.get("range"), kept.size)
            if found is not None:
                start, end = found
                status = 206
                if start >= end:
                    unsatisfied = {"content-range": f"bytes */{kept.size}"}
                    return problem(NO_SUCH_RANGE, f"the package has {kept.size} bytes", unsatisfied)
                headers["content-range"] = f"bytes {start}-{end - 1}/{kept.size}"
        headers["content-length"] = str(end - start)
        if request.method == "HEAD":
            # Before the storage is read.
            return Response(status_code=status, headers=headers)
        return StreamingResponse(await self.storage.read(kept.object, start, end), status, headers)


def _headers(kept: KeptPackage) -> dict[str, str]:
    digest = base64.b64encode(bytes.fromhex(kept.sha256)).decode()
    return {
        "content-type": _TYPES[kept.format],
        "content-disposition": f'attachment; filename="{kept.id}.{kept.format}"',
        "etag": f'"{kept.sha256}"',
        "accept-ranges": "bytes",
        "cache-control": "private, max-age=31536000, immutable",
        "last-modified": f"{kept.made_at:%a, %d %b %Y %H:%M:%S} GMT",
        # https://www.rfc-editor.org/rfc/rfc9530
        "repr-digest": f"sha-256=:{digest}:",
    }


def _range(header: str | None, size: int) -> tuple[int, int] | None:
    """Return the start and the end of a range; empty if it is unsatisfiable, None to send the whole file."""
    found = _RANGE.fullmatch(header or "")
    if found is None or not (found[1] or found[2]):
        return None
    if not found[1]:
        return max(0, size - int(found[2])), size
    start = int(found[1])
    if found[2] and int(found[2]) < start:
        return None
    return min(start, size), min(int(found[2]) + 1, size) if found[2] else size
