"""What the tests of both clients share."""

import socket
from collections.abc import Iterator

import pytest


@pytest.fixture
def full() -> Iterator[str]:
    """The address of a machine that answers no call: its queue of connections is full."""
    with socket.create_server(("127.0.0.1", 0), backlog=0) as listener:
        callers = [socket.socket() for _ in range(4)]
        for caller in callers:
            caller.setblocking(False)
            caller.connect_ex(listener.getsockname())
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        for caller in callers:
            caller.close()
