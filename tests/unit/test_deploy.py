"""The files of deploy/ and docker-compose.yml name only what exists, and keep the promises of docs/deploy.md."""

from __future__ import annotations

import dataclasses
import json
import re
import tomllib
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from backend import cli
from backend.clicks import STAGES
from backend.events import Event
from backend.journal import Backlog
from backend.metrics import Metrics
from backend.tallies import Tally, counts_of
from sam2_backend.messages import WorkerStatus
from sam2_backend.settings import GIB, Settings, env_name
from sam2_backend.video_messages import PropagationState

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy"
MANIFESTS = sorted((DEPLOY / "kubernetes").rglob("*.yaml"))
DOCUMENTS = [ROOT / "docker-compose.yml", ROOT / "docs/deploy.md", *(path for path in DEPLOY.rglob("*") if path.is_file())]
SETTING_NAMES = {env_name(f) for f in dataclasses.fields(Settings)}
CLICK = Event("click", "answered", "1 point → 1 region.", images=(("a", "device"),))
PINNED = re.compile(r"[\w./-]+:\d+\.\d+\.\d+[\w.-]*")


class _Loader(yaml.SafeLoader):
    """Also knows Compose's !override."""


_Loader.add_constructor("!override", lambda loader, node: loader.construct_sequence(node, deep=True))


@cache
def load(path: Path) -> tuple[Any, ...]:
    return tuple(document for document in yaml.load_all(path.read_text(), _Loader) if document)


def compose() -> dict[str, Any]:
    return load(ROOT / "docker-compose.yml")[0]


def ours() -> dict[str, Any]:
    """The compose services that run our images."""
    return {name: service for name, service in compose()["services"].items() if service["image"].startswith("sam2-label-studio")}


def manifests(kind: str) -> dict[str, Any]:
    return {doc["metadata"]["name"]: doc for path in MANIFESTS for doc in load(path) if doc["kind"] == kind}


def containers() -> list[tuple[str, dict[str, Any], dict[str, Any]]]:
    """(deployment, pod, container) of every deployment."""
    pods = {name: deployment["spec"]["template"]["spec"] for name, deployment in manifests("Deployment").items()}
    return [(name, pod, container) for name, pod in pods.items() for container in pod["containers"]]


def seconds(text: str) -> int:
    return int(re.fullmatch(r"(\d+)s", text)[1])


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_every_setting_that_is_named_exists(path):
    assert set(re.findall(r"\bSAM2_[A-Z0-9_]+\b", path.read_text())) - {"SAM2_WEB_PORT"} <= SETTING_NAMES


@pytest.mark.parametrize("path", [*MANIFESTS, *DEPLOY.rglob("*.yml")], ids=lambda path: path.relative_to(DEPLOY).as_posix())
def test_yaml_parses(path):
    assert load(path)


def test_compose_passes_settings_on_that_a_process_would_accept():
    for name, service in ours().items():
        given = {key: value for key, value in service.get("environment", {}).items() if value is not None and "${" not in str(value)}
        assert set(service.get("environment", {})) <= SETTING_NAMES, name
        Settings.from_env(given)


def test_the_example_environment_is_accepted_and_holds_no_secret():
    lines = [line for line in (DEPLOY / "env.example").read_text().splitlines() if line and not line.startswith("#")]
    given = dict(line.split("=", 1) for line in lines)
    assert [name for name, value in given.items() if value and name.endswith(("PASSWORD", "KEY", "SECRET"))] == []
    assert set(re.findall(r"\$\{([A-Z0-9_]+):\?", (ROOT / "docker-compose.yml").read_text())) <= set(given)
    Settings.from_env(given | {"SAM2_BASIC_AUTH_PASSWORD": "p"})


def test_containers_run_real_commands():
    commands = [service["command"] for service in ours().values() if "entrypoint" not in service]
    commands += [["checkpoints", *compose()["services"]["checkpoints"]["command"]]]
    commands += [container["args"] for name, _, container in containers() if name != "sam2-redis"]
    assert len(commands) == 6
    for command in commands:
        cli._parser().parse_args(command)


def test_images_are_pinned():
    images = [service["image"] for service in compose()["services"].values()]
    images += [container["image"] for _, _, container in containers()]
    images += re.findall(r"^FROM (?!base\b)(\S+)", (DEPLOY / "Dockerfile").read_text(), re.MULTILINE)
    assert [image for image in images if not PINNED.fullmatch(image)] == []
    assert any("python:" in image for image in images)


def test_our_images_carry_this_version():
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    text = "".join(path.read_text() for path in [ROOT / "docker-compose.yml", *MANIFESTS])
    assert {
        tag.removesuffix("-cpu") for tag in re.findall(r"sam2-label-studio-\w+:([\w.-]+)|newTag: ([\w.-]+)", text) for tag in tag if tag
    } == {version}


def test_what_the_web_tier_installs_brings_no_torch():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    names = [re.match(r"[\w-]+", line)[0].lower() for line in project["dependencies"] + project["optional-dependencies"]["web"]]
    assert not {"torch", "av", "sam2-label-studio"} & set(names)
    assert "flask" in names


def test_dockerfile_copies_what_exists_and_the_build_may_see():
    dockerfile, seen = (DEPLOY / "Dockerfile").read_text(), (ROOT / ".dockerignore").read_text().splitlines()
    sources = {source for line in re.findall(r"^COPY (.+)", dockerfile, re.MULTILINE) for source in line.split()[:-1]}
    assert sources
    assert [source for source in sources if not (ROOT / source).exists() or f"!{source}" not in seen] == []


def test_compose_containers_are_closed():
    for name, service in {**ours(), "redis": compose()["services"]["redis"]}.items():
        assert service["user"] == "10001:10001", name
        assert service["read_only"], name
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
    for name, service in compose()["services"].items():
        assert all(port.startswith("${BIND_ADDRESS:-127.0.0.1}:") for port in service.get("ports", [])), name
    assert compose()["services"]["redis"]["networks"] == ["inside"]
    assert compose()["networks"]["inside"]["internal"]


def test_pods_meet_the_restricted_standard():
    for name, pod, container in containers():
        assert pod["securityContext"]["runAsNonRoot"], name
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}, name
        assert pod["automountServiceAccountToken"] is False, name
        closed = {"allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]}}
        assert container["securityContext"] == closed, name


def test_service_names_do_not_become_settings():
    assert [name for name, pod, _ in containers() if pod["enableServiceLinks"] is not False] == []


def test_every_secret_key_is_in_the_example():
    keys = set(manifests("Secret")["sam2"]["stringData"])
    references = [
        env["valueFrom"]["secretKeyRef"]
        for _, _, c in containers()
        for env in c.get("env", [])
        if "secretKeyRef" in env.get("valueFrom", {})
    ]
    assert {reference["name"] for reference in references} == {"sam2"}
    assert {reference["key"] for reference in references} == keys


def test_pods_are_told_settings_that_a_process_would_accept():
    for name, _, container in containers():
        if name == "sam2-redis":
            continue
        given = {env["name"]: env.get("value", "x") for env in container["env"]} | manifests("ConfigMap")["sam2"]["data"]
        assert set(given) - {"REDIS_PASSWORD"} <= SETTING_NAMES, name
        Settings.from_env(given)


def test_what_is_in_hand_is_finished_before_the_kill():
    click_s = Settings().predict_wait_s
    graceful = {name: seconds(service["stop_grace_period"]) for name, service in ours().items() if name != "checkpoints"}
    pods = {name: pod["terminationGracePeriodSeconds"] for name, pod, _ in containers() if name != "sam2-redis"}
    web_s, worker_s = click_s + 5, click_s + 60  # gunicorn's own patience in cli; the limit of a job in dispatch
    assert graceful.pop("web") > web_s
    assert pods.pop("sam2-web") > web_s + 5  # preStop sleeps as long
    assert min([*graceful.values(), *pods.values()]) > worker_s


def test_redis_evicts_nothing_and_has_room_beside_the_embeddings():
    scripts = [compose()["services"]["redis"]["command"][0], *(c["args"][0] for name, _, c in containers() if name == "sam2-redis")]
    assert len(scripts) == 2
    for script in scripts:
        assert "maxmemory-policy noeviction" in script
        assert "requirepass" in script
    budget = Settings.from_env(
        {"SAM2_REDIS_CACHE_BYTES": manifests("ConfigMap")["sam2"]["data"]["SAM2_REDIS_CACHE_BYTES"]}
    ).redis_cache_bytes
    maxmemory = int(re.search(r"maxmemory (\d+)gb", scripts[1])[1]) * GIB
    assert maxmemory >= budget + 2 * GIB
    assert "REDIS_MAXMEMORY:-7gb" in (ROOT / "docker-compose.yml").read_text()


def test_probes_ask_what_is_open():
    web = next(c for name, _, c in containers() if name == "sam2-web")
    assert {web[probe]["httpGet"]["path"] for probe in ("readinessProbe", "livenessProbe")} == {"/health"}
    worker = next(c for name, _, c in containers() if name == "sam2-worker")
    command = worker["readinessProbe"]["exec"]["command"]
    assert command == compose()["services"]["worker-gpu"]["healthcheck"]["test"][1:] == ["python", "-m", "sam2_backend.worker_health"]
    assert "livenessProbe" not in worker


class _Fleet:
    """All that the numbers are read from."""

    def workers(self) -> list[WorkerStatus]:
        return [WorkerStatus("w", 1, "h", "cuda", "m", 0, 0, "idle", hits={"device": 1.0, "none": 1.0})]

    def queue_lengths(self) -> dict[str, int]:
        return {"interactive": 0}

    def redis(self) -> Any:
        return self

    def info(self, _section: str) -> dict[str, int]:
        return {"used_memory": 1, "maxmemory": 0}

    def get(self, _key: str) -> bytes:
        return b"1"

    def recent(self) -> list[PropagationState]:
        return []

    def n_results(self) -> int:
        return 0

    def totals(self) -> Tally:
        return Tally.read([counts_of(CLICK, frozenset({"a"})), {"made|predictions": 1}])


@cache
def samples() -> dict[str, set[str]]:
    """Name of every sample at /metrics → the names of its labels."""
    fleet = _Fleet()
    metrics = Metrics(fleet, fleet, fleet, lambda: Backlog(0, 0, 0.0))
    metrics.count_event(CLICK)
    metrics.count_request("predict", 200)
    metrics.count_error("bad_request")
    metrics.count_webhook("unknown")
    metrics.observe_click(dict.fromkeys(STAGES, 1.0))
    families = text_string_to_metric_families(metrics.render().decode())
    return {sample.name: set(sample.labels) for family in families for sample in family.samples}


def queries() -> list[str]:
    panels = json.loads((DEPLOY / "grafana/sam2.json").read_text())["panels"]
    alerts = load(DEPLOY / "prometheus/alerts.yml")[0]["groups"][0]["rules"]
    triggers = manifests("ScaledObject")["sam2-worker"]["spec"]["triggers"]
    return [
        *(target["expr"] for panel in panels for target in panel["targets"]),
        *(rule["expr"] for rule in alerts),
        *(trigger["metadata"]["query"] for trigger in triggers),
    ]


@pytest.mark.parametrize("query", queries())
def test_dashboard_alerts_and_autoscaling_ask_for_numbers_that_exist(query):
    found = re.findall(r"\b((?:sam2|process)_\w+)(?:\{([^}]*)\})?", query)
    assert found
    for name, matchers in found:
        assert name in samples(), name
        labels = set(re.findall(r"(\w+)\s*(?:=|!)", matchers)) - {"job"}
        assert labels <= samples()[name], name
    grouped = {label for group in re.findall(r"by \(([^)]*)\)", query) for label in group.split(", ")}
    assert grouped <= set().union(*(samples()[name] for name, _ in found))
    stages = re.findall(r'stage!?="(\w+)"', query)
    assert set(stages) <= set(STAGES)


def test_autoscaling_sees_private_queues():
    pattern = re.search(r'queue=~"([^"]+)"', queries()[-2])[1]
    assert all(re.fullmatch(pattern, queue) for queue in ("interactive", "interactive@sam2-worker-5d-x"))
    assert not re.fullmatch(pattern, "warm@interactive")


def test_every_panel_has_a_place_and_a_sentence():
    panels = json.loads((DEPLOY / "grafana/sam2.json").read_text())["panels"]
    places = {
        (p["gridPos"]["x"] + x, p["gridPos"]["y"] + y) for p in panels for x in range(p["gridPos"]["w"]) for y in range(p["gridPos"]["h"])
    }
    assert len(places) == sum(p["gridPos"]["w"] * p["gridPos"]["h"] for p in panels), "panels overlap"
    assert all(p["title"] and p["description"] for p in panels)
