"""`--monitoring_config_file`, a message that tensorflow-serving-api does not ship."""

import pytest

from serving.model_server.metrics import DEFAULT_PATH, monitoring_path
from serving.model_server.status import StatusError


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("", None),
        ("prometheus_config { enable: false }", None),
        ("prometheus_config { enable: true }", DEFAULT_PATH),
        ('prometheus_config: { enable: true, path: "/metrics" }', "/metrics"),
    ],
)
def test_where_the_metrics_are(text: str, path: str | None) -> None:
    assert monitoring_path(text) == path


def test_another_message_is_refused() -> None:
    with pytest.raises(StatusError, match="Error parsing text-format MonitoringConfig"):
        monitoring_path("prometheus { on: true }")
