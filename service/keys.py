"""API keys: who may ask. Keys are compared as digests, in constant time."""

import hashlib
import hmac
from collections.abc import Mapping

from saccade.errors import SettingsError, Unauthorized
from service.settings import Settings


class Keys:
    """Lets everybody in where no key file is set."""

    def __init__(self, settings: Settings) -> None:
        """Raises SettingsError for a file without keys, and for a public address with neither keys nor consent."""
        self._digests: list[bytes] = []
        if settings.api_keys_file is not None:
            try:
                lines = settings.api_keys_file.read_text(encoding="utf-8-sig").splitlines()
            except (OSError, UnicodeDecodeError) as error:
                raise SettingsError(f"SACCADE_API_KEYS_FILE: {settings.api_keys_file}: {error}") from error
            keys = [line.strip() for line in lines if line.strip() and not line.strip().startswith("#")]
            if not keys:
                raise SettingsError(f"SACCADE_API_KEYS_FILE: {settings.api_keys_file} holds no key")
            if not all(key.isascii() for key in keys):
                raise SettingsError(f"SACCADE_API_KEYS_FILE: {settings.api_keys_file} holds a key that is not ASCII")
            self._digests = [_digest(key) for key in keys]
        elif not settings.loopback and not settings.allow_anonymous:
            raise SettingsError(
                f"SACCADE_HOST is {settings.host}, which others can reach: set SACCADE_API_KEYS_FILE, "
                "or SACCADE_ALLOW_ANONYMOUS=true to serve everybody"
            )

    @property
    def set(self) -> bool:
        """Whether a key is asked for."""
        return bool(self._digests)

    def check(self, headers: Mapping[str, str]) -> None:
        """Raises Unauthorized unless the request carries one of the keys."""
        if not self._digests:
            return
        scheme, _, bearer = headers.get("authorization", "").partition(" ")
        given = [headers.get("x-api-key", ""), bearer.strip() if scheme.lower() == "bearer" else ""]
        if not any(given):
            raise Unauthorized("this service wants a key: send `Authorization: Bearer KEY` or `X-API-Key: KEY`")
        digests = [_digest(key) for key in given]
        # all of them, so that the time tells nothing
        matches = [hmac.compare_digest(digest, known) for digest in digests for known in self._digests]
        if not any(matches):
            raise Unauthorized("the key is not known here")


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest()
