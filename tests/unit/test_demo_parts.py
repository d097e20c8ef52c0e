"""What the demo keeps, locks and refuses, without starting anything."""

from __future__ import annotations

import stat
import threading

import pytest

from backend import demo, label_studio_install
from backend.label_studio_install import VERSION, label_studio_command
from backend.label_studio_process import LabelStudioProcess, Login
from sam2_backend.errors import SettingsError
from sam2_backend.settings import Settings


def test_a_login_is_made_once_for_its_owner_alone(tmp_path) -> None:
    path = tmp_path / "demo" / "login.json"
    made = Login.load_or_make(path)
    assert Login.load_or_make(path) == made
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert len(made.token) == 40
    assert Login.load_or_make(tmp_path / "other" / "login.json").password != made.password


@pytest.mark.parametrize("text", ["", "[]", '{"email": "a@b.example"}'])
def test_a_damaged_login_says_what_to_delete(tmp_path, text) -> None:
    (tmp_path / "login.json").write_text(text)
    with pytest.raises(SettingsError, match=r"Delete .* to start afresh"):
        Login.load_or_make(tmp_path / "login.json")


def test_label_studio_inherits_no_word_that_would_change_it(tmp_path, monkeypatch) -> None:
    for name in ("HOST", "DEBUG", "LABEL_STUDIO_HOST", "LABEL_STUDIO_API_KEY", "DJANGO_DB", "PYTHONPATH", "HTTP_PROXY"):
        monkeypatch.setenv(name, "changed")
    process = LabelStudioProcess(["label-studio"], tmp_path, 8080)
    assert "changed" not in process.environment.values()
    assert process.environment["COLLECT_ANALYTICS"] == "false"
    assert process.environment["USE_DEFAULT_BANNED_SUBNETS"] == "false"
    assert process.environment["LABEL_STUDIO_USER_TOKEN"] == process.login.token
    assert process.login.password not in process.command, "other users of the machine can read command lines"


def test_two_demos_in_one_folder_are_refused(tmp_path) -> None:
    with demo._only_one(tmp_path):
        with pytest.raises(SettingsError, match="Another demo runs"), demo._only_one(tmp_path):
            pass
        assert (tmp_path / "lock").exists(), "the one that was refused leaves the lock of the other alone"
    assert not (tmp_path / "lock").exists()
    with demo._only_one(tmp_path):
        pass


def test_an_environment_without_label_studio_is_refused(tmp_path) -> None:
    with pytest.raises(SettingsError, match="SAM2_LABEL_STUDIO_VENV"):
        label_studio_command(Settings(label_studio_venv=str(tmp_path)), threading.Event(), print)


def test_an_installation_is_made_once_and_an_interrupted_one_again(tmp_path, monkeypatch) -> None:
    ran: list[str] = []
    succeeds = True

    def run(what: str, *_: object) -> bool:
        ran.append(what.split()[0])
        return succeeds

    monkeypatch.setattr(label_studio_install, "_run", run)
    settings, stopping, said = Settings(data_dir=tmp_path), threading.Event(), list[str]()
    succeeds = False
    assert label_studio_command(settings, stopping, said.append) is None
    succeeds = True
    command = label_studio_command(settings, stopping, said.append)
    assert command == [str(tmp_path / f"label-studio-{VERSION}" / "venv" / "bin" / "label-studio")]
    assert label_studio_command(settings, stopping, said.append) == command
    assert ran == ["making", "making", "pip"]


def test_the_photographs_are_shipped_with_their_licences() -> None:
    licences = (demo._IMAGES / "LICENSES.md").read_text()
    photographs = sorted(demo._IMAGES.glob("*.jpg"))
    assert len(photographs) >= 3
    for photograph in photographs:
        assert f"`{photograph.name}`" in licences
        assert photograph.stat().st_size <= 100_000
