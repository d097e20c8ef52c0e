from __future__ import annotations

import dataclasses

import pytest

from sam2_backend.errors import SettingsError
from sam2_backend.settings import GIB, Settings, env_name


def test_a_misspelt_setting_stops_the_start_and_names_the_right_one():
    with pytest.raises(SettingsError, match="SAM2_REDIS_URL"):
        Settings.from_env({"SAM2_REDIS_ULR": "redis://x"})


def test_names_of_others_are_not_ours_to_judge():
    assert Settings.from_env({"REDIS_URL": "redis://x", "PATH": "/bin"}) == Settings()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("SAM2_PORT", "http"),
        ("SAM2_PORT", "-1"),
        ("SAM2_PREDICT_WAIT_S", "nan"),
        ("SAM2_PREDICT_WAIT_S", "0"),
        ("SAM2_WORKERS", "0"),
        ("SAM2_LOG_JSON", "perhaps"),
        ("SAM2_LOG_LEVEL", "loud"),
        ("SAM2_HOST_CACHE_BYTES", "lots GiB"),
        ("SAM2_BASIC_AUTH_USER", "only-a-user"),
    ],
)
def test_a_value_that_cannot_be_is_refused_by_its_name(name, value):
    with pytest.raises(SettingsError, match=name):
        Settings.from_env({name: value})


def test_sizes_take_units():
    assert Settings.from_env({"SAM2_HOST_CACHE_BYTES": "1.5GiB"}).host_cache_bytes == 3 * GIB // 2


def test_an_empty_value_is_the_default():
    assert Settings.from_env({"SAM2_PORT": " "}).port == Settings().port


def test_a_child_process_reads_the_same_settings(tmp_path):
    told = Settings(
        port=1, data_dir=tmp_path, basic_auth_user="u", basic_auth_password="p", log_json=True, predict_wait_s=1.5, label_studio_api_key="k"
    )
    assert Settings.from_env(told.to_env()) == told


def test_secrets_are_never_described():
    told = Settings(basic_auth_user="u", **{f.name: "s3cret" for f in dataclasses.fields(Settings) if f.metadata["secret"]})
    assert "s3cret" not in str(told.describe())
    assert {name for name, value, _ in told.describe() if value == "(set)"} == {
        env_name(f) for f in dataclasses.fields(Settings) if f.metadata["secret"]
    }
