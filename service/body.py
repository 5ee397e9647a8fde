"""The body of a request -> the bytes of its picture: raw, multipart or JSON. Limits hold while the body arrives."""

import io
import re
import time
from collections.abc import AsyncGenerator, Callable, Coroutine, Mapping
from typing import Any, cast

import orjson
from starlette.datastructures import Headers, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect
from starlette.types import Receive

from saccade.decode import decode_base64
from saccade.errors import BodyTooLarge, InvalidImage, InvalidParameter, NotAcceptable, UnsupportedMediaType

RAW = ("image/jpeg", "image/png", "image/webp", "image/gif", "image/bmp", "image/tiff", "application/octet-stream")
MULTIPART = "multipart/form-data"
JSON = "application/json"
FIELD = "image"

# What `curl --data-binary @file` says when it is told nothing.
_CURL = "application/x-www-form-urlencoded"


_JSON_OPENING = re.compile(rb'[ \t\r\n]{0,99}\{[ \t\r\n]{0,99}"%s"[ \t\r\n]{0,99}:[ \t\r\n]{0,99}"' % FIELD.encode())
_JSON_CLOSING = re.compile(rb'"[ \t\r\n]{0,99}\}[ \t\r\n]{0,99}')
"""Around the text of the only document that is taken (RFC 8259)."""

_PIECE = 2**18
"""Of base64: half a millisecond's worth. A multiple of four, so that each piece is whole."""

_NO_WEIGHT = re.compile(r"q\s*=\s*0(\.0*)?")


class _InMemoryParser(MultiPartParser):
    """Never spools to disk: the body is bounded already, and a container's root may be read-only."""

    spool_max_size = 2**62


async def read_picture(headers: Mapping[str, str], receive: Receive, max_bytes: int) -> bytes | Callable[[], bytes]:
    """Reads the body: the picture's bytes, or what turns it into them and may be called in another thread.

    Raises UnsupportedMediaType, BodyTooLarge, InvalidImage, ClientDisconnect; the function raises InvalidImage and
    InvalidParameter.
    """
    content_type = headers.get("content-type", "")
    media_type = content_type.partition(";")[0].strip().lower()
    encoding = headers.get("content-encoding", "identity").lower()
    if encoding != "identity":
        raise UnsupportedMediaType(f"Content-Encoding {encoding[:80]!r} is not supported: send the picture as it is")
    if media_type in ("", _CURL) or media_type.startswith("image/") or media_type in RAW:
        return await read_body(headers, receive, max_bytes)
    if media_type == JSON:
        body = await read_body(headers, receive, max_bytes)
        return lambda: _from_json(body)
    if media_type == MULTIPART:
        body = await read_body(headers, receive, max_bytes)
        return lambda: _at_once(_from_multipart(content_type, body))
    known = ", ".join((*RAW, MULTIPART, JSON))
    raise UnsupportedMediaType(f"Content-Type {media_type[:80]!r} is not supported; there are {known}")


async def read_body(headers: Mapping[str, str], receive: Receive, max_bytes: int) -> bytes:
    """The whole body, refused as soon as it is known to be over the limit. Raises BodyTooLarge, ClientDisconnect."""
    declared = headers.get("content-length", "")
    if declared.isdigit() and int(declared) > max_bytes:
        raise BodyTooLarge(f"the body has {declared} bytes; the limit is {max_bytes}")
    body: io.BytesIO | None = None  # grows in place, and gives its bytes without a copy
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        chunk: bytes = message.get("body", b"")
        more = message.get("more_body", False)
        size = len(chunk) + (body.tell() if body else 0)
        if size > max_bytes:
            raise BodyTooLarge(f"the body has at least {size} bytes; the limit is {max_bytes}")
        if body is None and not more:
            return chunk
        body = body or io.BytesIO()
        body.write(chunk)
        if not more:
            return body.getvalue()


def check_accept(accept: str | None) -> None:
    """Raises NotAcceptable where the caller takes no JSON."""
    if accept is None or not accept.strip():
        return
    for entry in accept.split(","):
        media_type, *parameters = (part.strip().lower() for part in entry.split(";"))
        if media_type in ("*/*", "application/*", JSON) and not any(map(_NO_WEIGHT.fullmatch, parameters)):
            return
    raise NotAcceptable(f"the answer is {JSON}; the request accepts only {accept[:200]!r}")


def _from_json(body: bytes) -> bytes:
    """Found, not parsed: twenty megabytes of `[{},{},…]` would become objects of thirty times as many bytes, made while
    nothing else runs.
    """
    opening = _JSON_OPENING.match(body)
    end = body.find(b'"', opening.end()) if opening else -1
    if opening is None or end < 0 or not _JSON_CLOSING.fullmatch(body, end):
        raise InvalidParameter(
            f'the JSON body must be {{"{FIELD}": base64 text}} and nothing else, not {_quoted(body)}'
        )
    text = body[opening.end() : end]
    if b"\\" in text:
        try:
            text = orjson.loads(b'"%s"' % text).encode()  # PHP escapes slashes, .NET the plus sign
        except orjson.JSONDecodeError as error:
            raise InvalidParameter(f"the body is not JSON: {error}") from error
    return _from_base64(text)


def _from_base64(text: bytes) -> bytes:
    """In pieces, each of which holds up whatever else runs in Python, the event loop too."""
    pieces = [text[start : start + _PIECE] for start in range(0, len(text), _PIECE)]
    if any(b"=" in piece for piece in pieces[:-1]):
        raise InvalidImage("the picture is not valid base64: it goes on after its padding")
    decoded = []
    for piece in pieces:
        decoded.append(decode_base64(piece.decode("latin-1")))
        if len(pieces) > 1:
            time.sleep(0)  # lets go of the GIL, which a thread that asks for it would have after five milliseconds only
    return b"".join(decoded)


def _quoted(body: bytes) -> str:
    shown = body[:60].decode("utf-8", "replace")
    return f"{shown!r}{'…' if len(body) > 60 else ''}"


def _at_once(work: Coroutine[Any, Any, bytes]) -> bytes:
    """What a coroutine gives that waits for nothing: the parser is one only since bodies may come in pieces."""
    try:
        work.send(None)
    except StopIteration as done:
        return cast(bytes, done.value)
    work.close()
    raise RuntimeError("the parser of multipart bodies waited although all of the body is there")


async def _from_multipart(content_type: str, body: bytes) -> bytes:
    async def once() -> AsyncGenerator[bytes, None]:
        yield body

    try:
        parser = _InMemoryParser(
            Headers({"content-type": content_type}), once(), max_files=1, max_fields=8, max_part_size=2**16
        )
        form = await parser.parse()
    except (MultiPartException, KeyError, ValueError) as error:
        message = (
            "its Content-Type has no boundary" if isinstance(error, KeyError) else getattr(error, "message", error)
        )
        raise InvalidParameter(f"the multipart body cannot be read: {message}") from error
    try:
        upload = form.get(FIELD)
        if not isinstance(upload, UploadFile):
            if upload is not None:
                raise InvalidImage(f"the multipart field {FIELD!r} is text: send a file, with a filename")
            has = [name[:80] for name in list(form)[:5]]
            raise InvalidImage(f"the multipart body has no whole file field {FIELD!r}; it has {has}")
        return await upload.read()
    finally:
        await form.close()
