"""`python -m service.health`: is the service of this container ready? Exit code 0 if it is, 1 and a sentence if not.

The standard library alone, as it is run every few seconds beside the service.
"""

import contextlib
import http.client
import ipaddress
import json
import os
import sys
from collections.abc import Mapping

_TIMEOUT_S = 4


def main() -> int:
    host, port = address(os.environ)
    asks = port.isdecimal() and int(port) > 0
    refusal = refusal_of(host, int(port)) if asks else f"SACCADE_PORT is {port}, where nobody can be asked"
    if refusal is not None:
        print(f"not ready: {refusal}", file=sys.stderr)
        return 1
    return 0


def address(environment: Mapping[str, str]) -> tuple[str, str]:
    """Host and port at which this machine reaches the service of `environment`, which is read as service.settings does.

    What listens on a wildcard address is reached on the loopback of its family.
    """
    host, port = environment.get("SACCADE_HOST") or "127.0.0.1", environment.get("SACCADE_PORT") or "8000"
    with contextlib.suppress(ValueError):  # a name
        address = ipaddress.ip_address(host)
        if address.is_unspecified:
            host = "127.0.0.1" if address.version == 4 else "::1"
    return host, port.strip()  # as pydantic reads a number


def refusal_of(host: str, port: int) -> str | None:
    """Why GET /v2/health/ready did not answer 200, as a sentence; None where it did."""
    connection = http.client.HTTPConnection(host, port, timeout=_TIMEOUT_S)
    try:
        connection.request("GET", "/v2/health/ready")
        response = connection.getresponse()
        body = response.read()
    except (OSError, http.client.HTTPException) as error:
        return f"{host}:{port} does not answer: {error}"
    finally:
        connection.close()
    if response.status == http.HTTPStatus.OK:
        return None
    try:
        return str(json.loads(body)["error"])
    except (ValueError, KeyError, TypeError):
        return f"{host}:{port} answers {response.status}"


if __name__ == "__main__":
    sys.exit(main())
