"""The REST client against the real Label Studio: what the fake in tests/integration promises is so."""

from __future__ import annotations

import pytest
from rest_clicks import personal_access_token

from backend import config_generator
from backend.label_studio import LabelStudio, LabelStudioError
from backend.label_studio_install import VERSION


def test_it_is_the_version_that_the_demo_installs(client) -> None:
    assert client.version() == VERSION


def test_a_legacy_token_and_a_personal_access_token_name_the_same_user(client, label_studio) -> None:
    with personal_access_token(label_studio) as token:
        with_pat = LabelStudio(label_studio.url, token)
        assert with_pat.whoami()["email"] == client.whoami()["email"] == label_studio.login.email
        with_pat.close()


def test_a_wrong_token_is_refused_with_the_next_step(label_studio) -> None:
    wrong = LabelStudio(label_studio.url, "0" * 40)
    with pytest.raises(LabelStudioError, match=r"401.*Check LABEL_STUDIO_API_KEY"):
        wrong.whoami()
    wrong.close()


def test_more_tasks_than_a_page_holds_come_back_once_each(client, new_project) -> None:
    project = new_project(config_generator.generate(["Object"]))
    addresses = [f"https://images.example/{n}.png" for n in range(130)]
    assert client.import_tasks(project.project_id, [{"image": address} for address in addresses]) == 130
    assert [task["data"]["image"] for task in client.tasks(project.project_id)] == addresses
    assert project.project_id in [listed["id"] for listed in client.projects()]


def test_a_backend_that_is_not_there_is_said_and_not_kept(client, new_project) -> None:
    project = new_project(config_generator.generate(["Object"]))
    with pytest.raises(LabelStudioError, match="health check failed"):
        client.connect_ml_backend(project.project_id, "http://127.0.0.1:9", "nobody")
    assert [backend["title"] for backend in client.ml_backends(project.project_id)] == ["SAM 2"]
