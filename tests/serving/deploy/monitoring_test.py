"""Scrape jobs, alerts, dashboard and runbook: each query parses and asks for what is exported."""

import itertools
import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import grpc
import jsonschema
import promql_parser as promql
import pytest
import yaml
from deployment import DEPLOY, commands, named, parse, read_yaml
from processes import ROOT

from serving.sidecar import __main__ as sidecar
from serving.sidecar.metrics import Metrics

# What Prometheus itself adds to what it scrapes.
SCRAPED = {"job", "instance"}
JOBS = {"sidecar", "model_server"}
OUTCOMES = {"certified", "abstain", "predicted", "described", *grpc.StatusCode.__members__}
METHODS = {"GetModel", "Predict", "Certify", "CertifyStream"}
# Grafana fills these in before it asks.
VARIABLES = {"$__rate_interval": "1m", "$instance": ".*"}
DURATION = {"type": "string", "pattern": r"^([0-9]+(ms|[smhdwy]))+$"}
RELABEL = {
    "type": "object",
    "required": ["source_labels"],
    "additionalProperties": False,
    "properties": {
        "source_labels": {"type": "array", "items": {"type": "string"}},
        "regex": {"type": "string"},
        "action": {"enum": ["keep", "drop", "replace", "labelmap"]},
        "target_label": {"type": "string"},
    },
}
JOB = {
    "type": "object",
    "required": ["job_name"],
    "additionalProperties": False,
    "properties": {
        "job_name": {"enum": sorted(JOBS)},
        "metrics_path": {"type": "string", "pattern": "^/"},
        "relabel_configs": {"type": "array", "items": RELABEL},
        "kubernetes_sd_configs": {
            "type": "array",
            "items": {"type": "object", "properties": {"role": {"enum": ["pod"]}}},
        },
        "static_configs": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["targets"],
                "additionalProperties": False,
                "properties": {
                    "targets": {
                        "type": "array",
                        "items": {"type": "string", "pattern": r"^[\w.-]+:\d+$"},
                    }
                },
            },
        },
    },
}
PROMETHEUS = {
    "type": "object",
    "required": ["scrape_configs"],
    "additionalProperties": False,
    "properties": {
        "global": {
            "type": "object",
            "additionalProperties": False,
            "properties": {"scrape_interval": DURATION, "evaluation_interval": DURATION},
        },
        "rule_files": {"type": "array", "items": {"type": "string"}},
        "scrape_configs": {"type": "array", "items": JOB, "minItems": 2},
    },
}
ALERTS = {
    "type": "object",
    "required": ["groups"],
    "additionalProperties": False,
    "properties": {
        "groups": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["name", "rules"],
                "additionalProperties": False,
                "properties": {
                    "name": {"type": "string"},
                    "rules": {
                        "type": "array",
                        "items": {
                            "type": "object",
                            "required": ["alert", "expr", "labels", "annotations"],
                            "additionalProperties": False,
                            "properties": {
                                "alert": {"type": "string", "pattern": "^[A-Z][A-Za-z]+$"},
                                "expr": {"type": "string"},
                                "for": DURATION,
                                "labels": {
                                    "type": "object",
                                    "properties": {"severity": {"enum": ["page", "ticket"]}},
                                    "required": ["severity"],
                                },
                                "annotations": {"type": "object", "required": ["summary"]},
                            },
                        },
                    },
                },
            },
        }
    },
}


def _rules():
    return [rule for group in read_yaml("alerts.yml")["groups"] for rule in group["rules"]]


def _dashboard():
    return json.loads((DEPLOY / "grafana/dashboards/tfmacer.json").read_text(encoding="utf-8"))


def _queries() -> dict[str, str]:
    """Every query by where it stands, with Grafana's variables filled in."""
    found = {f"alert {rule['alert']}": rule["expr"] for rule in _rules()}
    for panel in _dashboard()["panels"]:
        for target in panel.get("targets", []):
            found[f"panel {panel['title']} {target['refId']}"] = target["expr"]
    for where, query in found.items():
        for variable, value in VARIABLES.items():
            query = query.replace(variable, value)
        found[where] = query
    return found


QUERIES = _queries()


def _exported() -> dict[str, set[str]]:
    """Labels of every sample that the sidecar and the model server offer, by its name."""
    from fake_backend import SMOOTHING

    from serving.model_server import metrics as embedded
    from tfmacer.records.chain import BEGINNING
    from tfmacer.votes.endpoint import ServedModel

    model = ServedModel(name="m", version=1, smoothing=SMOOTHING)
    ours = Metrics(lambda: 0, lambda: 0, lambda: model)
    ours.follow_audit(lambda: BEGINNING)
    ours.requests.labels("Certify", "certified").inc()
    ours.seconds.labels("Certify").observe(1)
    theirs = embedded.Metrics()
    with theirs.request("m", "Predict", "GRPC"):
        theirs.ran("m", 0.1)
    samples = itertools.chain.from_iterable(
        metric.samples
        for registry in (ours.registry, theirs._registry)
        for metric in registry.collect()
    )
    labels: dict[str, set[str]] = {"up": set()}
    for sample in samples:
        labels.setdefault(sample.name, set()).update(sample.labels)
    return {name: found | SCRAPED for name, found in labels.items()}


EXPORTED = _exported()


def _selectors(node) -> Iterator[promql.VectorSelector]:
    found: list[promql.VectorSelector] = []

    def visit(part):
        if isinstance(part, promql.VectorSelector):
            found.append(part)
        return True

    promql.walk(node, visit)
    yield from found


@pytest.mark.parametrize("where", QUERIES)
def test_queries_ask_for_what_is_exported(where):
    selectors = list(_selectors(promql.parse(QUERIES[where])))
    assert selectors
    for selector in selectors:
        assert selector.name in EXPORTED, selector.name
        for matcher in selector.matchers.matchers:
            assert matcher.name in EXPORTED[selector.name], f"{selector.name}: {matcher.name}"


@pytest.mark.parametrize("where", QUERIES)
def test_values_asked_for_are_said_somewhere(where):
    known = {"job": JOBS, "outcome": OUTCOMES, "method": METHODS, "status": OUTCOMES}
    for selector in _selectors(promql.parse(QUERIES[where])):
        for matcher in selector.matchers.matchers:
            if matcher.name in known:
                assert set(matcher.value.split("|")) <= known[matcher.name], matcher.value


@pytest.mark.parametrize("where", QUERIES)
def test_labels_grouped_by_exist(where):
    grouped = set(re.findall(r"\bby \(([^)]*)\)", QUERIES[where]))
    names = {name.strip() for labels in grouped for name in labels.split(",")}
    offered = set().union(
        *(EXPORTED[found.name] for found in _selectors(promql.parse(QUERIES[where])))
    )
    assert names <= offered


def test_the_check_would_see_mistakes():
    (selector,) = _selectors(promql.parse('sum(rate(tfmacer_request_total{outcome="x"}[5m]))'))
    assert selector.name not in EXPORTED
    with pytest.raises(ValueError, match="unclosed"):
        promql.parse("sum(rate(tfmacer_requests_total[5m])")


def test_alerts_have_the_form_of_rules():
    jsonschema.validate(read_yaml("alerts.yml"), ALERTS)
    names = [rule["alert"] for rule in _rules()]
    assert len(set(names)) == len(names)


def test_a_first_internal_error_is_an_increase():
    """What an alert watches for must be there at zero before it happens."""
    metrics = Metrics(lambda: 0, lambda: 0, lambda: None)
    for method in METHODS:
        labels = {"method": method, "outcome": "INTERNAL"}
        assert metrics.registry.get_sample_value("tfmacer_requests_total", labels) == 0
    assert metrics.registry.get_sample_value("tfmacer_audit_failures_total") == 0


@pytest.mark.skipif(not shutil.which("promtool"), reason="no promtool: Debian's prometheus has it")
@pytest.mark.parametrize(
    "command",
    [
        ["check", "config", DEPLOY / "prometheus.yml"],
        ["check", "rules", DEPLOY / "alerts.yml"],
        ["test", "rules", Path(__file__).with_name("alerts.test.yml")],
    ],
    ids=lambda command: " ".join(command[:2]),
)
def test_prometheus_own_tool_agrees(command):
    """Its simulation shows when each alert fires, and that none does while all is well."""
    done = subprocess.run(["promtool", *command], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_alert_is_seen_firing():
    text = (Path(__file__).with_name("alerts.test.yml")).read_text(encoding="utf-8")
    assert {rule["alert"] for rule in _rules()} == set(re.findall(r'alertname="(\w+)"', text))


def test_every_metric_of_ours_is_on_the_dashboard():
    panels = " ".join(query for where, query in QUERIES.items() if where.startswith("panel"))
    families = {
        re.sub(r"_(bucket|sum|count|created)$", "", name)
        for name in EXPORTED
        if name.startswith("tfmacer_")
    }
    assert len(families) > 5
    assert [name for name in sorted(families) if name not in panels] == []


@pytest.mark.parametrize("file", ["prometheus.yml", "kubernetes/prometheus.yml"])
def test_scrape_jobs(file):
    text = read_yaml(file)
    jsonschema.validate(text, PROMETHEUS)
    jobs = {job["job_name"]: job for job in text["scrape_configs"]}
    assert set(jobs) == JOBS
    assert jobs["model_server"]["metrics_path"] == _monitoring_path()
    assert "metrics_path" not in jobs["sidecar"]  # Prometheus' own default is ours


def _monitoring_path():
    from serving.model_server.metrics import monitoring_path

    return monitoring_path((DEPLOY / "monitoring.config").read_text(encoding="utf-8"))


def test_prometheus_asks_the_services_of_compose_at_their_ports():
    server, certifier = commands()["compose.yaml"]
    targets = {
        job["job_name"]: job["static_configs"][0]["targets"]
        for job in read_yaml("prometheus.yml")["scrape_configs"]
    }
    values = parse(sidecar.FLAGS, certifier)
    # A name that it is not told to answer to would be refused.
    assert values["http_hosts"] == ["sidecar"]
    assert targets == {
        "sidecar": [f"sidecar:{values['metrics_port']}"],
        "model_server": [f"model_server:{named(server)['rest_api_port']}"],
    }
    mounted = [
        volume.split(":")[1]
        for volume in read_yaml("compose.yaml")["services"]["prometheus"]["volumes"]
    ]
    for file in read_yaml("prometheus.yml")["rule_files"]:
        assert f"/etc/prometheus/{file}" in mounted


def test_panels_lie_side_by_side():
    taken = set()
    ids = [panel["id"] for panel in _dashboard()["panels"]]
    assert len(set(ids)) == len(ids)
    for panel in _dashboard()["panels"]:
        place = panel["gridPos"]
        cells = set(
            itertools.product(
                range(place["x"], place["x"] + place["w"]),
                range(place["y"], place["y"] + place["h"]),
            )
        )
        assert not cells & taken, panel["title"]
        assert max(x for x, _ in cells) < 24
        taken |= cells


def test_the_dashboard_finds_its_source_and_its_variables():
    (source,) = read_yaml("grafana/provisioning/datasources/prometheus.yaml")["datasources"]
    dashboard = _dashboard()
    for panel in dashboard["panels"]:
        for target in panel.get("targets", []):
            assert target["datasource"] == {"type": source["type"], "uid": source["uid"]}
    (variable,) = dashboard["templating"]["list"]
    metric, label = re.fullmatch(r"label_values\((\w+), (\w+)\)", variable["definition"]).groups()
    assert label in EXPORTED[metric]
    names = set(re.findall(r"\$\w+", json.dumps(dashboard["panels"])))
    assert names == {"$__rate_interval", f"${variable['name']}"}


def test_grafana_finds_the_dashboard():
    (provider,) = read_yaml("grafana/provisioning/dashboards/tfmacer.yaml")["providers"]
    grafana = read_yaml("compose.yaml")["services"]["grafana"]
    mounts = dict(reversed(volume.split(":")[:2]) for volume in grafana["volumes"])
    folder = mounts[provider["options"]["path"]]
    home = grafana["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    assert (DEPLOY / folder / home.rpartition("/")[2]).is_file()


def test_the_runbook_has_a_section_for_every_alert():
    text = (ROOT / "docs/runbook.md").read_text(encoding="utf-8")
    sections = dict(re.findall(r"^## (\w+)\n(.*?)(?=^## |\Z)", text, re.DOTALL | re.MULTILINE))
    assert sections.keys() >= {rule["alert"] for rule in _rules()}
    for rule in _rules():
        for question in ("**Means:**", "**Look at:**", "**Do:**"):
            assert question in sections[rule["alert"]], f"{rule['alert']}: {question}"


def test_the_runbook_speaks_of_metrics_that_exist():
    text = (ROOT / "docs/runbook.md").read_text(encoding="utf-8")
    names = set(re.findall(r"`((?:tfmacer|process)_\w+)", text))
    assert names
    assert {
        name for name in names if not any(known.startswith(name) for known in EXPORTED)
    } == set()


def test_kubernetes_jobs_are_yaml_without_anchors():
    """Prometheus reads anchors, other tools that take over these jobs may not."""
    text = (DEPLOY / "kubernetes/prometheus.yml").read_text(encoding="utf-8")
    assert not any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text))
