"""The words that the service, the exporter and every user share: bundles, preprocessing, geometry, wire types, client.

Imports numpy, Pillow, pydantic and httpx, and never `service` or `export`: only the command line reaches for those.
"""

__version__ = "0.1.0"
