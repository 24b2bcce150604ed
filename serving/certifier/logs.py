"""Structured logs: one JSON object a line, on standard error."""

import datetime
import json
import logging
import sys
from typing import Any

# What a call adds to its record, through `extra`.
FIELD = "fields"


class JsonFormatter(logging.Formatter):
    """Time, level, logger, message, the call's own fields, and the traceback if there is one."""

    def format(self, record: logging.LogRecord) -> str:
        """One line of JSON."""
        time = datetime.datetime.fromtimestamp(record.created, datetime.UTC)
        line: dict[str, Any] = {
            "time": time.isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
            **getattr(record, FIELD, {}),
        }
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line)


def log_json(level: int = logging.INFO) -> None:
    """Sends every logger's records to standard error as JSON."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter())
    logging.basicConfig(level=level, handlers=[handler], force=True)
