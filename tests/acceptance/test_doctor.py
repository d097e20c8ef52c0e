"""`sam2-backend doctor` against the real Label Studio and a running stack: each thing wrong in turn, and the line that says so."""

from __future__ import annotations

import dataclasses
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests
from rest_clicks import RestProject, login_header, nano_stack, personal_access_token, rest_project
from servers import static_server

from backend import config_generator
from backend.doctor import run_doctor
from backend.label_studio_process import LabelStudioProcess
from backend.supervisor import Stack, child_environment
from sam2_backend.settings import Settings

CLOSED = "127.0.0.1:9"
WITHOUT_MASKS = """<View>
  <Image name="image" value="$image"/>
  <Choices name="kind" toName="image"><Choice value="Cat"/></Choices>
</View>"""


@pytest.fixture(scope="module")
def nano(label_studio: LabelStudioProcess, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    with nano_stack(label_studio, tmp_path_factory.mktemp("nano")) as running:
        yield running


@pytest.fixture
def project(label_studio: LabelStudioProcess, nano: Stack) -> Iterator[RestProject]:
    with rest_project(label_studio, nano.url) as made:
        yield made


@dataclasses.dataclass(slots=True)
class Report:
    """What the doctor printed, and its exit code."""

    exit_code: int
    lines: list[str]

    def wrong(self) -> list[str]:
        return [line.removeprefix("WRONG  ") for line in self.lines if line.startswith("WRONG")]

    def says(self, pattern: str) -> bool:
        return any(re.search(pattern, line) for line in self.lines)


def examined(settings: Settings, project_id: int | None = None, **changes: object) -> Report:
    lines: list[str] = []
    code = run_doctor(dataclasses.replace(settings, **changes), project_id, lines.append)
    report = Report(code, lines)
    assert code == (1 if report.wrong() else 0)
    assert all("\n" not in line for line in lines)
    secret = dataclasses.replace(settings, **changes).label_studio_api_key
    assert not secret or not any(secret in line for line in lines)
    assert not report.says("this check failed itself"), lines
    return report


def check_only_wrong(report: Report, pattern: str) -> None:
    """One thing is wrong, and one line says so; the last line counts it."""
    (line,) = report.wrong()
    assert re.search(pattern, line), line
    assert (report.exit_code, report.lines[-1]) == (1, "1 to mend.")


def as_a_command(settings: Settings, *arguments: str) -> Report:
    done = subprocess.run(
        [sys.executable, "-m", "backend.cli", "doctor", *arguments],
        env=child_environment(settings),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert "Traceback" not in done.stderr
    return Report(done.returncode, done.stdout.splitlines())


def test_all_is_in_order_for_a_good_project(nano, project) -> None:
    report = as_a_command(nano.settings, "--project", str(project.project_id))
    assert report.exit_code == 0, report.lines
    assert report.wrong() == []
    for expected in (
        r"  ok   Python: 3\.",
        r"  ok   device: cpu",
        r"  ok   torch: \d",
        r" note  checkpoint: random-weights-nano@\w+: masks mean nothing\. Fetch one",
        r"  ok   data folder: .* GiB free",
        r"  ok   Redis: version \d",
        r"  ok   worker: \S+-0 is \w+ on cpu with random-weights-nano@",
        r"  ok   Label Studio: 1\.23\.2 at http://127",
        r"  ok   token: valid, a legacy token of demo@example\.com",
        rf"  ok   project {project.project_id} \(REST\): its labeling config can be served",
        rf"  ok   project {project.project_id} \(REST\): its backend at {re.escape(nano.url)} is connected",
    ):
        assert report.says(f"^{expected}"), (expected, report.lines)
    assert report.lines[-1] == "Everything that was checked is in order."


def test_what_is_wrong_makes_the_command_fail(nano, project) -> None:
    report = as_a_command(dataclasses.replace(nano.settings, label_studio_api_key=""), "--project", str(project.project_id))
    check_only_wrong(report, "^token: LABEL_STUDIO_API_KEY is not set.*personal access token")


@pytest.mark.parametrize("port_or_folder", [f"redis://{CLOSED}", "unix:///nowhere/redis.sock"])
def test_redis_is_not_there(port_or_folder, nano, project) -> None:
    check_only_wrong(
        examined(nano.settings, project.project_id, redis_url=port_or_folder), "^Redis and workers: Redis does not answer.*Start it"
    )


def test_redis_refuses_the_password_and_none_is_shown(nano, project) -> None:
    refused = nano.settings.redis_url.replace("unix://", "unix://nobody:hunter2@")
    report = examined(nano.settings, project.project_id, redis_url=refused)
    assert not report.says("hunter2")
    check_only_wrong(report, "^Redis and workers: Redis refuses the user or the password")


def test_the_redis_address_is_none(nano, project) -> None:
    report = examined(nano.settings, project.project_id, redis_url="localhost:6379")
    check_only_wrong(report, "^Redis and workers: No Redis is configured, or its address is malformed. Set SAM2_REDIS_URL")


def test_no_worker_is_alive(nano, project, redis_server) -> None:
    report = examined(nano.settings, project.project_id, redis_url=redis_server.url)
    check_only_wrong(report, "^workers: none is alive. Start one with `sam2-backend worker`")


def test_a_device_that_is_not_there(nano, project) -> None:
    check_only_wrong(examined(nano.settings, project.project_id, device="cuda:99"), "^torch: .*SAM2_DEVICE")


@pytest.mark.parametrize("content", [b"garbage", b"", b"PK\x03\x04 cut off", b"\x80\x02}q\x00."])
def test_a_damaged_checkpoint_file(content, nano, project, tmp_path) -> None:
    path = tmp_path / "mine.pt"
    path.write_bytes(content)
    check_only_wrong(examined(nano.settings, project.project_id, model=str(path)), r"^checkpoint: .*mine\.pt")


def test_a_checkpoint_that_lacks_a_tensor(nano, project, tmp_path) -> None:
    import torch

    from sam2_backend.checkpoints import load

    state = load(Settings(model="random:nano")).state_dict
    path = tmp_path / "mine.pt"
    torch.save({"model": {name: tensor for name, tensor in state.items() if name != "no_mem_embed"}}, path)
    check_only_wrong(examined(nano.settings, project.project_id, model=str(path)), "^checkpoint: .*mine")


def test_a_checkpoint_that_was_not_fetched(nano, project, tmp_path) -> None:
    report = examined(nano.settings, project.project_id, model="sam2.1_hiera_large", checkpoints_dir=tmp_path)
    check_only_wrong(report, "^checkpoint: .*checkpoints fetch sam2.1_hiera_large")


def test_label_studio_is_not_set(nano) -> None:
    check_only_wrong(examined(nano.settings, label_studio_url=""), "^Label Studio: LABEL_STUDIO_URL is not set")


def test_label_studio_does_not_answer(nano) -> None:
    report = examined(nano.settings, label_studio_url=f"http://{CLOSED}")
    check_only_wrong(report, rf"^Label Studio: Label Studio at http://{CLOSED} does not answer.*LABEL_STUDIO_URL")


def test_something_else_answers_at_the_address(nano) -> None:
    with static_server({"/api/version": ("text/html", b"<html>Welcome</html>")}) as other:
        report = examined(nano.settings, label_studio_url=other.url)
    check_only_wrong(report, "^Label Studio: .*LABEL_STUDIO_URL does not lead to the API of a Label Studio")


def test_the_address_is_none(nano) -> None:
    check_only_wrong(examined(nano.settings, label_studio_url="label-studio"), "^Label Studio: LABEL_STUDIO_URL is not an address")


def test_a_wrong_legacy_token(nano, project) -> None:
    report = examined(nano.settings, project.project_id, label_studio_api_key="0" * 40)
    check_only_wrong(report, "^Label Studio: .*401.*Check LABEL_STUDIO_API_KEY")


def test_a_personal_access_token_and_one_that_was_ended(label_studio, nano, project) -> None:
    with personal_access_token(label_studio) as token:
        report = examined(nano.settings, project.project_id, label_studio_api_key=token)
        assert report.wrong() == []
        assert report.says("token: valid, a personal access token of demo@example.com")
    report = examined(nano.settings, project.project_id, label_studio_api_key=token)
    check_only_wrong(report, "^Label Studio: Label Studio refused LABEL_STUDIO_API_KEY.*Make a new personal access token")


def test_legacy_tokens_are_switched_off(label_studio, nano, project) -> None:
    with personal_access_token(label_studio) as token:
        access = requests.post(f"{label_studio.url}/api/token/refresh/", json={"refresh": token}, timeout=30).json()["access"]
        bearer = {"Authorization": f"Bearer {access}"}
        _switch_legacy_tokens(label_studio, bearer, is_on=False)
        try:
            report = examined(nano.settings, project.project_id)
        finally:
            _switch_legacy_tokens(label_studio, bearer, is_on=True)
    check_only_wrong(report, "^Label Studio: .*Use a personal access token as LABEL_STUDIO_API_KEY")


def _switch_legacy_tokens(label_studio: LabelStudioProcess, header: dict[str, str], *, is_on: bool) -> None:
    body = {"api_tokens_enabled": True, "legacy_api_tokens_enabled": is_on, "api_token_ttl_days": 100}
    requests.post(f"{label_studio.url}/api/jwt/settings", json=body, headers=header, timeout=30).raise_for_status()


def test_a_project_that_does_not_exist(nano) -> None:
    check_only_wrong(examined(nano.settings, 999_999), "^Label Studio: .*404.*999999")


def test_a_project_without_a_backend_is_wrong_where_it_is_asked_for_and_a_note_among_others(nano, project) -> None:
    project.client.disconnect_ml_backend(project.backend_id)
    pattern = rf"project {project.project_id} \(REST\): no ML backend is connected: Settings > Model > Connect Model"
    check_only_wrong(examined(nano.settings, project.project_id), f"^{pattern}")
    among_others = examined(nano.settings)
    assert among_others.says(f"^ note  {pattern}")
    assert among_others.exit_code == 0


def test_clicks_are_switched_off(nano, project) -> None:
    project.set_interactive(is_interactive=False)
    check_only_wrong(examined(nano.settings, project.project_id), "^project .*clicks are not sent: switch on 'Interactive preannotations'")
    project.set_interactive(is_interactive=True)
    assert examined(nano.settings, project.project_id).exit_code == 0


def test_a_labeling_config_without_masks(nano, project) -> None:
    project.client.update_project(project.project_id, label_config=WITHOUT_MASKS)
    check_only_wrong(examined(nano.settings, project.project_id), "^project .*BrushLabels")


def test_a_labeling_config_that_is_unwise(nano, project) -> None:
    unwise = config_generator.generate(["Object"]).replace('name="brush" toName="image" smart="false"', 'name="brush" toName="image"')
    project.client.update_project(project.project_id, label_config=unwise)
    check_only_wrong(examined(nano.settings, project.project_id), '^project .*<BrushLabels name=.brush.> lacks smart="false"')


def test_an_option_of_the_connection_that_does_not_exist(label_studio, nano, project) -> None:
    body = {"project": project.project_id, "url": nano.url, "title": "SAM 2", "extra_params": {"model_epsilno": 2}}
    url = f"{label_studio.url}/api/ml/{project.backend_id}"
    requests.patch(url, json=body, headers=login_header(label_studio), timeout=60).raise_for_status()
    check_only_wrong(examined(nano.settings, project.project_id), "^project .*model_epsilno")


def test_the_backend_has_gone_away_since_it_was_connected(label_studio, nano) -> None:
    bodies = dict.fromkeys(("/health", "/setup"), ("application/json", b'{"status": "UP", "model_version": "1"}'))
    with static_server(bodies) as other, rest_project(label_studio, other.url) as project:
        bodies.clear()
        report = examined(nano.settings, project.project_id)
    check_only_wrong(report, rf"^project .*Label Studio cannot reach the backend at {re.escape(other.url)}")


def test_the_backend_refuses_the_project(label_studio, nano) -> None:
    bodies = dict.fromkeys(("/health", "/setup"), ("application/json", b'{"status": "UP", "model_version": "1"}'))
    with static_server(bodies) as other, rest_project(label_studio, other.url) as project:
        del bodies["/setup"]
        report = examined(nano.settings, project.project_id)
    check_only_wrong(report, rf"^project .*the backend at {re.escape(other.url)} refused the project: .*404")


def test_a_data_folder_that_cannot_be_made(nano, project, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    report = examined(nano.settings, project.project_id, data_dir=tmp_path / "file" / "folder")
    check_only_wrong(report, "^data folder: .*SAM2_DATA_DIR")
