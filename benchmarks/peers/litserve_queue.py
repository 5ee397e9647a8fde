"""LitServe's fast queue, made to work: in 0.2.19 the choice is lost, and what it would choose connects the wrong ends.

Mended in the peer's favour, for it is the faster of LitServe's two ways: `fast_queue=True` is passed on under a name
that its configuration does not know, and ZMQTransport is given the broker's two addresses the wrong way round.
"""

import time

import litserve.server
from litserve.transport.base import MessageTransport
from litserve.transport.factory import TransportConfig
from litserve.transport.zmq_queue import Broker, Producer
from litserve.transport.zmq_transport import ZMQTransport

_JOIN_S = 1.0


def mend_fast_queue() -> None:
    """Of this process: the server's, and each worker's."""
    litserve.server.create_transport_from_config = _zmq
    Producer.wait_for_subscribers = _wait_for_subscribers


def _zmq(_: TransportConfig) -> MessageTransport:
    broker = Broker()
    broker.start()
    return ZMQTransport(backend_address=broker.backend_address, frontend_address=broker.frontend_address)


def _wait_for_subscribers(_: Producer) -> bool:
    # At a worker's first answer, which is lost if it leaves before the subscription has come: on a busy machine the
    # tenth of a second that LitServe waits is not enough.
    time.sleep(_JOIN_S)
    return True
