"""Logs on standard error, as lines or as JSON objects, and the ids that calls have there."""

import datetime
import json
import logging
import re
import sys
import uuid
from typing import Any

from tfmacer.common.text import visible

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


class LineFormatter(logging.Formatter):
    """One line for each record, control characters escaped; tracebacks keep their lines."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802
        """The line, control characters escaped."""
        return visible(super().formatMessage(record))

    def formatException(self, ei: Any) -> str:  # noqa: N802
        """The traceback, likewise."""
        return "\n".join(map(visible, super().formatException(ei).split("\n")))


def log_lines(level: int = logging.INFO) -> None:
    """Sends every logger's records to standard error, as lines."""
    handler = logging.StreamHandler()
    handler.setFormatter(LineFormatter("%(asctime)s %(levelname)s %(message)s"))
    # Imported libraries may have installed handlers of their own.
    logging.basicConfig(level=level, handlers=[handler], force=True)
