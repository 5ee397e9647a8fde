"""The words that the service, the exporter and every user share: bundles, preprocessing, geometry, wire types, client.

Imports numpy, Pillow, pydantic and httptools, and never `service` or `export`: only the command line reaches for those.
"""

from saccade.async_client import AsyncClient
from saccade.client import Client

__version__ = "0.1.0"

__all__ = ["AsyncClient", "Client"]
