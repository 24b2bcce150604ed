"""compose.yaml, as a parser of the Compose specification reads it, and what it exposes."""

import re

import pytest
from compose_spec import PyCompose
from deployment import DEPLOY, named, parse, read_yaml

from serving.sidecar import __main__ as sidecar

TEXT = (DEPLOY / "compose.yaml").read_text(encoding="utf-8")
SERVICES = read_yaml("compose.yaml")["services"]


def _parsed(text):
    # Compose fills in variables before it parses.
    return PyCompose.from_yaml(re.sub(r"\$\{MODELS:\?[^}]*\}", "/srv/models", text))


def test_it_is_compose():
    assert set(_parsed(TEXT).service_names()) == {
        "model_server",
        "sidecar",
        "prometheus",
        "grafana",
    }


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("read_only: true", "readonly: true"),
        ("mem_limit: 512m", "mem_limit: 512q"),
        ("127.0.0.1:8600:8600", "127.0.0.1:what:8600"),
        ("restart: unless-stopped", "restart: sometimes"),
    ],
)
def test_the_parser_would_see_mistakes(right, wrong):
    assert right in TEXT
    with pytest.raises(ValueError, match="services"):
        _parsed(TEXT.replace(right, wrong))


def test_networks_and_volumes_named_are_declared():
    whole = read_yaml("compose.yaml")
    for service in SERVICES.values():
        assert set(service["networks"]) <= set(whole["networks"])
        for volume in service.get("volumes", []):
            source = volume.split(":")[0]
            if source.startswith("."):
                assert (DEPLOY / source).exists(), source
            elif not source.startswith("$"):
                assert source in whole["volumes"], source


def test_only_the_loopback_is_published_and_the_model_server_not_at_all():
    ports = {name: service.get("ports", []) for name, service in SERVICES.items()}
    assert ports["model_server"] == []
    published = [port for found in ports.values() for port in found]
    assert len(published) == 4
    assert all(port.startswith("127.0.0.1:") for port in published)


def test_the_model_server_has_no_way_out():
    whole = read_yaml("compose.yaml")
    assert SERVICES["model_server"]["networks"] == ["inside"]
    assert whole["networks"]["inside"]["internal"]


@pytest.mark.parametrize("name", ["model_server", "sidecar"])
def test_processes_are_confined(name):
    service = SERVICES[name]
    assert service["read_only"]
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert {"cpus", "mem_limit"} <= set(service)


def test_images_are_pinned():
    images = {name: service["image"] for name, service in SERVICES.items()}
    assert images.pop("sidecar") == "tfmacer-sidecar"  # built here
    assert all(re.search(r":v?\d+\.\d+\.\d+$", image) for image in images.values()), images


def test_flags_are_the_sidecars():
    service = SERVICES["sidecar"]
    values = parse(sidecar.FLAGS, service["command"])
    opened = [values["port"], values["http_port"]]
    assert service["ports"] == [f"127.0.0.1:{port}:{port}" for port in opened]
    host = named(service["command"])["backend"].partition(":")[0]
    assert host in SERVICES
    (audit,) = service["volumes"]
    assert values["audit_log"].startswith(audit.partition(":")[2] + "/")


def test_it_gives_calls_the_time_to_drain():
    seconds = int(SERVICES["sidecar"]["stop_grace_period"].removesuffix("s"))
    assert seconds > parse(sidecar.FLAGS, SERVICES["sidecar"]["command"])["drain_seconds"]
    # Compose stops what depends on another first, so the model server answers until then.
    assert "model_server" in SERVICES["sidecar"]["depends_on"]


def test_what_is_mounted_is_what_the_flags_name():
    mounts = {
        volume.split(":")[1]: volume.split(":")[0]
        for service in SERVICES.values()
        for volume in service.get("volumes", [])
    }
    for service in SERVICES.values():
        for argument in service.get("command", []):
            path = argument.partition("=")[2]
            if path.startswith("/etc/"):
                assert path in mounts, argument
