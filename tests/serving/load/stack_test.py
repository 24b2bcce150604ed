"""The commands of compose.yaml start servers that answer, where Prometheus looks for them."""

import requests
from deployment import read_yaml
from prometheus_client.parser import text_string_to_metric_families


def _scrape(stack, job):
    (found,) = (
        entry for entry in read_yaml("prometheus.yml")["scrape_configs"] if entry["job_name"] == job
    )
    (target,) = found["static_configs"][0]["targets"]
    address = stack.address(target.rpartition(":")[2])
    path = found.get("metrics_path", "/metrics")
    answer = requests.get(f"http://{address}{path}", timeout=20)
    assert answer.status_code == 200
    return {family.name for family in text_string_to_metric_families(answer.text)}


def test_everything_answers(stack):
    stack.check_alive()


def test_prometheus_finds_the_sidecar(stack):
    assert {"tfmacer_certified_radius", "tfmacer_model_info"} <= _scrape(stack, "sidecar")


def test_prometheus_finds_the_model_server(stack):
    assert ":tensorflow:serving:request_count" in _scrape(stack, "model_server")
