import io
import logging

from serving.common.logs import LineFormatter


def test_log_lines_show_what_callers_name_and_stay_one_line():
    """A model may be named by whoever may reload the configuration."""
    file = io.StringIO()
    handler = logging.StreamHandler(file)
    handler.setFormatter(LineFormatter("%(levelname)s %(message)s"))
    logger = logging.Logger("test")
    logger.addHandler(handler)
    logger.info("serving %s version %d", "a\nERROR forged\x1b[2J", 1)
    try:
        raise ValueError("wrong\x1b[2J")
    except ValueError:
        logger.exception("failed")
    lines = file.getvalue().splitlines()
    assert lines[:3] == [
        "INFO serving a\\nERROR forged\\x1b[2J version 1",
        "ERROR failed",
        "Traceback (most recent call last):",
    ]
    assert lines[-1] == "ValueError: wrong\\x1b[2J"
