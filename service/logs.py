"""Log lines as JSON on stderr, one a line."""

import json
import logging
import sys
import warnings
from datetime import UTC, datetime


class JsonFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False)


def configure_logs(level: str) -> None:
    """Called by `python -m service` alone; an embedding application keeps its own."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter())
    logging.basicConfig(level=level, handlers=[handler], force=True)
    logging.getLogger("uvicorn").setLevel(logging.WARNING)  # its news of starting and stopping are ours to tell
    logging.captureWarnings(True)
    # A file may give Pillow reason for 65,000 of them, each with a text of its own, which Python would keep for ever.
    warnings.filterwarnings("ignore", module=r"PIL\.")
