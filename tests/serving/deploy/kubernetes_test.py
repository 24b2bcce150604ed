"""The manifests, by the API's own schemas, and what holds them together."""

import shlex
import shutil
import subprocess
import sys

import kubernetes_validate
import prometheus_client
import pytest
import yaml
from deployment import DEPLOY, containers, manifests, named, parse, read_yaml

from serving.sidecar import __main__ as sidecar
from serving.sidecar.metrics import Metrics

FOLDER = DEPLOY / "kubernetes"
VERSION = "1.37"
POD = manifests()["Deployment", "tfmacer"]["spec"]["template"]["spec"]
LABELS = manifests()["Deployment", "tfmacer"]["spec"]["template"]["metadata"]["labels"]
SIDECAR = parse(sidecar.FLAGS, containers()["sidecar"]["args"])


@pytest.mark.parametrize("resource", manifests())
def test_it_is_what_the_api_takes(resource):
    assert kubernetes_validate.validate(manifests()[resource], VERSION, strict=True)


def test_the_schema_would_see_mistakes():
    deployment = manifests()["Deployment", "tfmacer"]
    del deployment["spec"]["selector"]
    deployment["spec"]["template"]["spec"]["containers"][0]["livenessprobe"] = {}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(deployment, VERSION, strict=True)


@pytest.mark.skipif(not shutil.which("kubectl"), reason="no kubectl")
def test_kubectl_builds_what_the_page_says(tmp_path):
    """As far as that goes without a cluster."""
    page = (DEPLOY.parents[1] / "docs" / "serving.md").read_text()
    apply, create = "kubectl apply --kustomize=", "kubectl create secret generic tfmacer-tls"
    (line,) = [line for line in page.splitlines() if line.startswith(create)]
    for file in ("tls.crt", "tls.key", "ca.crt"):
        (tmp_path / file).write_text(file)
    words = [*shlex.split(line), "--dry-run=client", "--output=yaml"]
    made = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=True)
    secret = yaml.safe_load(made.stdout)
    assert set(secret["data"]) == {"tls.crt", "tls.key", "ca.crt"}
    assert secret["metadata"]["name"] in {
        volume.get("secret", {}).get("secretName") for volume in POD["volumes"]
    }
    assert f"{apply}{FOLDER.relative_to(DEPLOY.parents[1])}" in page.splitlines()
    built = subprocess.run(
        ["kubectl", "kustomize", FOLDER], capture_output=True, text=True, check=True
    )
    kinds = {(each["kind"], each["metadata"]["name"]) for each in yaml.safe_load_all(built.stdout)}
    assert ("Deployment", "tfmacer") in kinds
    assert {kind for kind, _ in manifests()} <= {kind for kind, _ in kinds}


def test_nothing_is_left_out():
    named_files = set(read_yaml("kubernetes/kustomization.yaml")["resources"])
    others = {"kustomization.yaml", "prometheus.yml"}
    assert {path.name for path in FOLDER.iterdir()} == named_files | others
    kinds = {kind for kind, _ in manifests()}
    assert {"Deployment", "HorizontalPodAutoscaler", "NetworkPolicy", "Service"} <= kinds


def test_selectors_find_the_pods():
    found = manifests()
    selectors = [
        found["Deployment", "tfmacer"]["spec"]["selector"]["matchLabels"],
        found["Service", "tfmacer"]["spec"]["selector"],
        found["NetworkPolicy", "tfmacer"]["spec"]["podSelector"]["matchLabels"],
        found["PodDisruptionBudget", "tfmacer"]["spec"]["selector"]["matchLabels"],
    ]
    for selector in selectors:
        assert selector
        assert selector.items() <= LABELS.items()


def test_the_configuration_is_that_of_compose():
    data = manifests()["ConfigMap", "tfmacer-model-server"]["data"]
    assert data == {
        name: (DEPLOY / name).read_text(encoding="utf-8")
        for name in ("models.config", "monitoring.config", "batching.config")
    }


def test_volumes_mounted_exist_and_are_used():
    volumes = {volume["name"] for volume in POD["volumes"]}
    mounts = {mount["name"] for found in POD["containers"] for mount in found["volumeMounts"]}
    assert mounts == volumes
    for volume in POD["volumes"]:
        if claim := volume.get("persistentVolumeClaim"):
            assert ("PersistentVolumeClaim", claim["claimName"]) in manifests()
        if config := volume.get("configMap"):
            assert ("ConfigMap", config["name"]) in manifests()


@pytest.mark.parametrize("name", containers())
def test_files_that_flags_name_are_mounted(name):
    container = containers()[name]
    mounts = [mount["mountPath"] + "/" for mount in container["volumeMounts"]]
    for value in named(container["args"]).values():
        if value.startswith("/"):
            assert any(value.startswith(mount) for mount in mounts), value


def test_ports_are_those_that_the_flags_open():
    server = named(containers()["model-server"]["args"])
    opened = {"grpc": SIDECAR["port"], "metrics": SIDECAR["metrics_port"]}
    opened["rest"] = int(server["rest_api_port"])
    ports = {
        port["name"]: port["containerPort"]
        for found in POD["containers"]
        for port in found["ports"]
    }
    assert opened == ports
    asked = [
        port["port"]
        for rule in manifests()["NetworkPolicy", "tfmacer"]["spec"]["ingress"]
        for port in rule["ports"]
    ]
    (service,) = manifests()["Service", "tfmacer"]["spec"]["ports"]
    assert service["targetPort"] == "grpc"
    assert service["port"] == opened["grpc"]
    assert sorted(asked) == sorted(opened)


def test_what_predicts_without_certifying_is_open_to_nobody():
    """The model server's gRPC port: no rule lets it in, and only the pod's loopback asks it."""
    server = named(containers()["model-server"]["args"])
    assert SIDECAR["backend"] == f"127.0.0.1:{server['port']}"
    rules = manifests()["NetworkPolicy", "tfmacer"]["spec"]["ingress"]
    assert int(server["port"]) not in [port["port"] for rule in rules for port in rule["ports"]]


def test_callers_must_show_a_certificate():
    (secret,) = (volume["secret"] for volume in POD["volumes"] if "secret" in volume)
    (mount,) = (
        mount["mountPath"]
        for mount in containers()["sidecar"]["volumeMounts"]
        if mount["name"] == "tls"
    )
    assert secret["secretName"] == "tfmacer-tls"
    files = {SIDECAR[flag] for flag in ("tls_cert", "tls_key", "tls_client_ca")}
    assert files == {f"{mount}/{name}" for name in ("tls.crt", "tls.key", "ca.crt")}
    assert not SIDECAR["allow_plaintext"]


@pytest.mark.parametrize("name", containers())
def test_processes_are_confined(name):
    context = containers()[name]["securityContext"]
    assert POD["securityContext"]["runAsNonRoot"]
    assert not POD["automountServiceAccountToken"]
    assert context["runAsUser"] > 0
    assert context["readOnlyRootFilesystem"]
    assert not context["allowPrivilegeEscalation"]
    assert context["capabilities"] == {"drop": ["ALL"]}


def test_the_user_is_the_images():
    text = (DEPLOY / "Dockerfile").read_text(encoding="utf-8")
    user = containers()["sidecar"]["securityContext"]
    assert f"USER {user['runAsUser']}:{user['runAsGroup']}" in text


def test_the_model_server_has_a_core_for_each_thread():
    container = containers()["model-server"]
    threads = int(named(container["args"])["tensorflow_inter_op_parallelism"])
    resources = container["resources"]
    assert resources["requests"] == resources["limits"]
    assert int(resources["limits"]["cpu"]) == threads


def test_pods_end_in_order():
    """The sidecar drains while its model server still answers, and neither is killed before."""
    sleeps = {
        name: container["lifecycle"]["preStop"]["sleep"]["seconds"]
        for name, container in containers().items()
    }
    drained = sleeps["sidecar"] + SIDECAR["drain_seconds"]
    assert drained < sleeps["model-server"] < POD["terminationGracePeriodSeconds"]


def test_the_autoscaler_watches_what_exists():
    spec = manifests()["HorizontalPodAutoscaler", "tfmacer"]["spec"]
    target = spec["scaleTargetRef"]
    assert (target["kind"], target["name"]) in manifests()
    (metric,) = spec["metrics"]
    container = containers()[metric["containerResource"]["container"]]
    assert metric["containerResource"]["name"] in container["resources"]["requests"]
    assert "replicas" not in manifests()["Deployment", "tfmacer"]["spec"]


def _metrics(model):
    metrics = Metrics(lambda: 0, lambda: 0, lambda: model)
    return prometheus_client.start_http_server(0, "127.0.0.1", metrics.registry)[0]


@pytest.mark.parametrize("available", [True, False])
def test_readiness_follows_the_model(available):
    from fake_backend import SMOOTHING

    from tfmacer.votes.endpoint import ServedModel

    (program, flag, code) = containers()["sidecar"]["readinessProbe"]["exec"]["command"]
    assert (program, flag) == ("python", "-c")
    address = f"127.0.0.1:{SIDECAR['metrics_port']}"
    assert address in code
    server = _metrics(ServedModel(name="m", version=3, smoothing=SMOOTHING) if available else None)
    try:
        code = code.replace(address, f"127.0.0.1:{server.server_port}")
        done = subprocess.run([sys.executable, "-c", code], check=False)
    finally:
        server.shutdown()
        server.server_close()
    assert (done.returncode == 0) == available


def test_prometheus_finds_the_ports_by_name():
    names = {port["name"] for found in POD["containers"] for port in found["ports"]}
    jobs = yaml.safe_load((FOLDER / "prometheus.yml").read_text())["scrape_configs"]
    for job in jobs:
        rules = {rule["source_labels"][0]: rule for rule in job["relabel_configs"]}
        assert rules["__meta_kubernetes_pod_container_port_name"]["regex"] in names
        label = rules["__meta_kubernetes_pod_label_app_kubernetes_io_name"]
        assert label["regex"] == LABELS["app.kubernetes.io/name"]
