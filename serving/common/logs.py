"""Structured logs: one JSON object a line, on standard error, and the ids that calls have there."""

import datetime
import json
import logging
import re
import sys
import uuid
from typing import Any

REQUEST_ID = "x-request-id"
_SAFE_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")

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


def safe_request_id(wanted: str | None) -> str:
    """The caller's own id where it is safe to log, else a new one."""
    return wanted if wanted and _SAFE_ID.fullmatch(wanted) else uuid.uuid4().hex


def log_json(level: int = logging.INFO) -> None:
    """Sends every logger's records to standard error as JSON."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter())
    logging.basicConfig(level=level, handlers=[handler], force=True)
