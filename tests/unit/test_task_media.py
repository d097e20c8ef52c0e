from __future__ import annotations

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backend.label_config import ObjectTag, parse_label_config
from backend.task_media import data_uri_bytes, image_uri, image_uris
from sam2_backend.errors import MediaUnreadableError, TaskDataError
from sam2_backend.settings import Settings

AT_ROOT = Settings(label_studio_url="http://ls:8080")
AT_SUB_PATH = Settings(label_studio_url="https://host/ls/")
ALONE = Settings()
IMAGE = ObjectTag("image", "Image", value="image")
PAGES = ObjectTag("image", "Image", value_list="images")


def uri(value, settings=AT_ROOT, tag=IMAGE, page=None):
    return image_uri({"id": 17, "data": {"image": value, "images": value}}, tag, page, settings)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("/data/upload/1/968d6eab-disc.png", "http://ls:8080/data/upload/1/968d6eab-disc.png"),
        ("upload/1/a.png", "http://ls:8080/data/upload/1/a.png"),
        ("/upload/1/a.png", "http://ls:8080/data/upload/1/a.png"),
        ("/data/local-files/?d=a/b.png", "http://ls:8080/data/local-files/?d=a/b.png"),
        ("/storage-data/uploaded/?filepath=upload/1/a.png", "http://ls:8080/storage-data/uploaded/?filepath=upload/1/a.png"),
        ("https://images.example/a.png?w=1", "https://images.example/a.png?w=1"),
        (" HTTP://images.example/a.png ", "HTTP://images.example/a.png"),
        ("//images.example/a.png", "http://images.example/a.png"),
        ("data:image/png;base64,AAAA", "data:image/png;base64,AAAA"),
    ],
)
def test_every_kind_of_value_becomes_an_address(value, expected):
    assert uri(value) == expected


@pytest.mark.parametrize("value", ["/ls/data/upload/1/a.png", "/data/upload/1/a.png", "/ls/upload/1/a.png", "upload/1/a.png"])
def test_a_sub_path_is_said_once_whether_or_not_the_value_says_it(value):
    assert uri(value, AT_SUB_PATH) == "https://host/ls/data/upload/1/a.png"


def test_a_path_that_only_begins_like_the_sub_path_is_not_cut():
    assert uri("/lsx/a.png", AT_SUB_PATH) == "https://host/ls/lsx/a.png"


@pytest.mark.parametrize("scheme", ["s3", "gs", "azure-blob"])
def test_cloud_storage_is_resolved_by_label_studio_with_the_tasks_id(scheme):
    value = f"{scheme}://bucket/ü?/x.png"
    address, _, encoded = uri(value, AT_SUB_PATH).partition("?fileuri=")
    assert address == "https://host/ls/tasks/17/resolve/"
    assert base64.urlsafe_b64decode(encoded).decode() == value


def test_cloud_storage_needs_a_task_id():
    with pytest.raises(TaskDataError, match="id"):
        image_uri({"data": {"image": "s3://b/x.png"}}, IMAGE, None, AT_ROOT)


@pytest.mark.parametrize("value", ["/data/upload/1/a.png", "/data/local-files/?d=a.png", "s3://bucket/a.png"])
def test_what_is_in_label_studio_needs_its_address_and_the_error_says_so(value):
    with pytest.raises(TaskDataError, match="Set LABEL_STUDIO_URL"):
        uri(value, ALONE)


def test_an_address_of_label_studio_without_scheme_is_refused():
    with pytest.raises(TaskDataError, match="must begin with http"):
        uri("/data/upload/1/a.png", Settings(label_studio_url="ls:8080"))


@pytest.mark.parametrize("value", ["file:///etc/passwd", "FILE:/etc/passwd", "ftp://h/a.png", "C:\\a.png", "a.png", "../a.png", "blob:KEY"])
def test_any_other_value_is_refused(value):
    with pytest.raises(TaskDataError, match="no address"):
        uri(value)


@pytest.mark.parametrize("value", [None, 3, True, "", "  ", {}, {"url": "http://x"}])
def test_a_value_of_another_type_is_refused_by_the_name_of_the_tag(value):
    with pytest.raises(TaskDataError, match="image"):
        uri(value)


def test_a_list_behind_value_is_told_of_value_list():
    with pytest.raises(TaskDataError, match="valueList"):
        uri(["http://x/a.png"])


@pytest.mark.parametrize("task", [{}, {"data": None}, {"data": []}, {"data": {}}, {"id": 1, "data": {"photo": "http://x"}}])
def test_missing_data_is_a_task_error(task):
    with pytest.raises(TaskDataError, match="data"):
        image_uri(task, IMAGE, None, AT_ROOT)


def test_an_error_shows_no_query():
    with pytest.raises(TaskDataError) as caught:
        uri("ftp://h/a.png?signature=s3cret")
    assert "s3cret" not in caught.value.message


# Pages


def test_a_page_is_counted_from_zero_and_none_is_the_first():
    values = ["http://x/0.png", "http://x/1.png"]
    assert [uri(values, tag=PAGES, page=page) for page in (None, 0, 1)] == ["http://x/0.png", "http://x/0.png", "http://x/1.png"]
    assert image_uris({"id": 1, "data": {"images": values}}, PAGES, ALONE) == values


def test_a_lone_text_is_one_page():
    assert uri("http://x/0.png", tag=PAGES) == "http://x/0.png"


@pytest.mark.parametrize("page", [2, -1])
def test_a_page_that_is_not_there_is_refused(page):
    with pytest.raises(TaskDataError, match="has 2"):
        uri(["http://x/0.png", "http://x/1.png"], tag=PAGES, page=page)


def test_a_second_page_of_a_task_with_one_image_is_refused():
    with pytest.raises(TaskDataError, match="has 1"):
        uri("http://x/0.png", page=1)


@pytest.mark.parametrize("value", [[], {}, 3, None])
def test_no_list_of_pages_is_refused(value):
    with pytest.raises(TaskDataError):
        uri(value, tag=PAGES)


# Fields


@pytest.mark.parametrize(
    ("attribute", "expected"),
    [
        ("$image", "http://x/whole"),
        ("$photo.url", "http://x/nested"),
        ("$photos[1].url", "http://x/second"),
        ("$a.b", "http://x/dotted"),
        ("$image-2", "http://x/dash"),
        ("https://cdn/$name.jpg", "https://cdn/disc.jpg"),
        ("https://cdn/fixed.jpg", "https://cdn/fixed.jpg"),
    ],
)
def test_the_value_attribute_names_a_field_a_path_or_an_address(attribute, expected):
    data = {
        "image": "http://x/whole",
        "photo": {"url": "http://x/nested"},
        "photos": [{}, {"url": "http://x/second"}],
        "a.b": "http://x/dotted",
        "image-2": "http://x/dash",
        "name": "disc",
        "name.jpg": "disc.jpg",
    }
    tag = parse_label_config(f'<View><Image name="image" value="{attribute}"/></View>').object_tag("image")
    assert image_uri({"id": 1, "data": data}, tag, None, ALONE) == expected


# Local files


@pytest.fixture
def local_files(tmp_path):
    root = tmp_path / "root"
    (root / "in side").mkdir(parents=True)
    (root / "in side" / "ü.png").write_bytes(b"png")
    (tmp_path / "secret.png").write_bytes(b"secret")
    (root / "link.png").symlink_to(tmp_path / "secret.png")
    return Settings(label_studio_url="http://ls:8080", local_files_root=str(root)), root


@pytest.mark.parametrize("d", ["in%20side/%C3%BC.png", "in side/ü.png", "/in+side/ü.png", "x/../in side/ü.png"])
def test_a_local_file_is_read_from_disk_where_this_machine_has_it(local_files, d):
    settings, root = local_files
    assert uri(f"/data/local-files/?d={d}", settings) == (root / "in side" / "ü.png").as_uri()


@pytest.mark.parametrize("d", ["../secret.png", "/../secret.png", "link.png", "absent.png", "in side", "%00", "a" * 5000, ""])
def test_a_local_file_that_is_not_below_the_root_is_left_to_label_studio(local_files, d):
    settings, _ = local_files
    assert uri(f"/data/local-files/?d={d}", settings) == f"http://ls:8080/data/local-files/?d={d}"


def test_a_local_file_needs_no_address_of_label_studio(local_files):
    _, root = local_files
    assert uri("/data/local-files/?d=in side/ü.png", Settings(local_files_root=str(root))).startswith("file:///")


def test_the_root_of_the_file_system_is_no_local_files_root(tmp_path):
    (tmp_path / "a.png").write_bytes(b"png")
    value = f"/data/local-files/?d={tmp_path}/a.png"
    assert uri(value, Settings(label_studio_url="http://ls", local_files_root="/")) == "http://ls" + value


# data: URIs


@given(st.binary(min_size=1))
def test_a_data_uri_gives_its_bytes_back(data):
    assert data_uri_bytes("data:image/png;base64," + base64.b64encode(data).decode()) == data


@pytest.mark.parametrize(
    ("text", "data"), [("data:,a%20b", b"a b"), ("data:image/png;base64,QUJD\nREVG", b"ABCDEF"), ("DATA:;BASE64,QQ%3D%3D", b"A")]
)
def test_a_data_uri_may_be_quoted_or_wrapped(text, data):
    assert data_uri_bytes(text) == data


@pytest.mark.parametrize(
    "text", ["data:image/png;base64", "data:image/png;base64,", "data:;base64,QQ", "data:;base64,Q*==", "data:;base64,ü"]
)
def test_a_damaged_data_uri_is_unreadable(text):
    with pytest.raises(MediaUnreadableError):
        data_uri_bytes(text)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)
)


@given(JSON, st.sampled_from([AT_ROOT, AT_SUB_PATH, ALONE]), st.sampled_from([IMAGE, PAGES]), st.none() | st.integers(0, 3))
def test_any_value_is_an_address_or_a_task_error(value, settings, tag, page):
    try:
        address = uri(value, settings, tag, page)
    except TaskDataError:
        return
    assert address.split(":", 1)[0].lower() in {"http", "https", "data"}
