"""What is missing, in sentences; the pages: of everything, of a project, of a task."""

from __future__ import annotations

import dataclasses
import html
import re
import xml.etree.ElementTree as ET

import pytest

from backend.page_words import ago_text, bytes_text, percent_text
from sam2_backend.errors import MediaRefusedError, NoWorkerError, SupersededError
from sam2_backend.settings import GIB, MIB, Settings
from sam2_backend.video_messages import PropagationState

BROWSER = {"Accept": "text/html,application/xhtml+xml,*/*;q=0.8"}


def test_a_backend_that_can_answer_a_click_is_ready(client):
    answer = client.get("/ready")
    assert answer.status_code == 200
    assert (answer.json["status"], answer.json["missing"], answer.json["warnings"]) == ("ready", [], [])


@pytest.mark.parametrize("path", ["/ready", "/", "/metrics"])
def test_redis_being_away_is_answered_not_raised(client, dispatcher, path):
    dispatcher.client.is_down = True
    answer = client.get(path)
    assert answer.status_code == (503 if path == "/ready" else 200)
    assert "Redis" in answer.text or "sam2_redis_up 0.0" in answer.text


def test_no_worker_is_said_with_the_next_step(client, dispatcher):
    dispatcher.alive = []
    answer = client.get("/ready")
    assert answer.status_code == 503
    assert "sam2-backend worker" in answer.json["missing"][0]


def test_a_worker_that_still_loads_is_not_ready_and_one_beside_it_is(client, dispatcher):
    idle = dispatcher.alive[0]
    dispatcher.alive = [dataclasses.replace(idle, name="slow", state="loading")]
    assert "slow is still loading" in client.get("/ready").json["missing"][0]
    dispatcher.alive.append(idle)
    assert client.get("/ready").status_code == 200


def test_random_weights_are_called_so_in_words(client, dispatcher):
    dispatcher.alive = [dataclasses.replace(dispatcher.alive[0], model_version="random-weights-small@0123456789ab")]
    answer = client.get("/ready")
    assert answer.status_code == 200
    assert "masks mean nothing" in answer.json["warnings"][0]
    assert "random weights: its masks mean nothing" in client.get("/", headers=BROWSER).text


def test_uploads_that_cannot_be_fetched_are_said(client_of, brush_config):
    client = client_of(Settings())
    assert client.get("/ready").json["warnings"] == []
    client.post("/setup", json={"project": "3.1", "schema": brush_config})
    assert "LABEL_STUDIO_URL" in client.get("/ready").json["warnings"][0]
    assert "LABEL_STUDIO_API_KEY" in client_of(Settings(label_studio_url="http://studio.test")).get("/ready").json["warnings"][0]


def test_browsers_get_a_page_and_others_json(client):
    page = client.get("/", headers=BROWSER)
    assert page.mimetype == "text/html"
    assert "default-src 'none'" in page.headers["Content-Security-Policy"]
    for accept in ("application/json", "*/*", None):
        assert client.get("/", headers={"Accept": accept} if accept else {}).json["status"] == "UP"


def read(client, path: str = "/", status: int = 200) -> str:
    """A page's text as people read it."""
    answer = client.get(path, headers=BROWSER)
    assert answer.status_code == status, answer.text
    return " ".join(html.unescape(re.sub(r"<[^>]+>", " ", answer.text)).split())


def test_the_page_shows_workers_queues_projects_and_the_last_requests(client, dispatcher, brush_config, predict_body):
    client.post("/setup", json={"project": "3.1700000000", "schema": brush_config})
    client.post("/predict", json=predict_body())
    dispatcher.failures["*"] = MediaRefusedError("images.test is private.")
    client.post("/predict", json=predict_body())
    page = read(client)
    for text in (
        "ready, clicks are answered",
        "Workers that serve 1 of 1",
        "cpu0",
        "waiting for work",
        "embeddings 8 MiB",
        "67 % ready",
        "Clicks 2 waiting 2 for cpu0; refused beyond 256 a worker",
        "Redis 300 MiB of 2.0 GiB",
        "Project 3 . Its labeling config works.",
        "Answered Task 17 project 3",
        "1 point → 1 region, score 0.90 (image ready, from the device).",
        "1 × media_refused",
        "images.test is private.",
        "Whoever runs this backend can put it right. Tasks: 17",
    ):
        assert text in page, text


def test_a_task_shows_each_request_with_its_outcome_and_what_to_do(client, dispatcher, predict_body):
    client.post("/predict", json=predict_body(context=None))
    client.post("/predict", json=predict_body())
    dispatcher.find_nothing = True
    client.post("/predict", json=predict_body())
    dispatcher.failures["*"] = SupersededError("A newer click came.")
    client.post("/predict", json=predict_body())
    dispatcher.raises = NoWorkerError("No worker answered within 20 s.")
    client.post("/predict", json=predict_body())
    page = read(client, "/tasks?task=17")
    texts = [
        "What happened in task 17",
        "Failed",
        "No worker answered within 20 s.",
        "no_worker",
        "Whoever runs this backend can put it right. It may pass by itself: click again in a moment.",
        "Replaced by a newer click",
        "Nothing found",
        "nothing found there",
        "draw a box around it",
        "Answered",
        "1 region, score 0.90",
        "cpu0",
        "Made ready",
        "The task was opened: 1 image made ready",
    ]
    assert [text for text in texts if text not in page] == []
    order = [page.find(text) for text in ("No worker answered", "newer click on the same", "nothing found there", "1 region", "was opened")]
    assert order == sorted(order)


def test_another_tasks_requests_are_not_shown(client, predict_body):
    client.post("/predict", json=predict_body(tasks=[{"id": 1, "data": {"image": "http://images.test/a.png"}}]))
    page = read(client, "/tasks?task=17")
    assert "Nothing was asked about this task in the last week." in page
    assert "Auto-Annotation" in page
    assert "1 region" not in page


def test_two_label_studios_tasks_of_one_number_are_told_apart(client, predict_body):
    client.post("/predict", json=predict_body())
    assert read(client, "/tasks?task=17").count("roject 3") == 1
    client.post("/predict", json=predict_body(project="4.1"))
    page = read(client, "/tasks?task=17")
    assert page.count("Project 3") == page.count("project 3") == page.count("Project 4") == page.count("project 4") == 1


@pytest.mark.parametrize("path", ["/tasks", "/tasks?task=", "/tasks?task=%20"])
def test_without_a_number_a_task_is_asked_for(client, path):
    assert "Which task?" in read(client, path)


def test_a_number_is_understood_with_the_sign_that_people_write(client, predict_body):
    client.post("/predict", json=predict_body())
    assert "1 region" in read(client, "/tasks?task=%2317")


@pytest.mark.parametrize("path", ["/projects/3", "/projects/3.1700000000"])
def test_a_project_shows_what_was_done_in_it(client, dispatcher, brush_config, predict_body, path):
    client.post("/setup", json={"project": "3.1700000000", "schema": brush_config})
    client.post("/predict", json=predict_body(context=None))
    client.post("/predict", json=predict_body())
    dispatcher.failures["*"] = MediaRefusedError("images.test is private.")
    client.post("/predict", json=predict_body())
    client.post("/predict", json=predict_body(project="4.1"))
    page = read(client, path)
    for text in (
        "Project 3",
        "Its labeling config works.",
        "Images embedded 1",
        "Clicks answered 1",
        "Ready at the first click 100 % of 1 images",
        "Failed requests 1",
        "1 × media_refused",
        "The task was opened",
    ):
        assert text in page, text


def test_a_projects_errors_are_not_pushed_out_by_its_clicks(client, dispatcher, predict_body):
    dispatcher.raises = NoWorkerError("No worker answered.")
    client.post("/predict", json=predict_body())
    dispatcher.raises = None
    for _ in range(60):
        client.post("/predict", json=predict_body())
    page = read(client, "/projects/3")
    assert "1 × no_worker" in page
    assert "No worker answered." in page


def test_a_project_that_was_never_heard_of_is_said_so(client):
    assert "Project 99 Not connected, as far as is known" in read(client, "/projects/99", 404)
    assert "project 99" in client.get("/projects/99").json["error"]["message"]


def test_scripts_get_the_same_as_json(client, predict_body):
    client.post("/predict", json=predict_body())
    seen = client.get("/").json["seen"]
    assert seen["is_shared"]
    assert seen["last_hour"]["clicks"] == seen["last_day"]["clicks"] == 1
    assert seen["last_hour"]["embedding_by_tier"] == {"device": 1}
    (event,) = client.get("/tasks?task=17").json["events"]
    assert (event["kind"], event["outcome"], event["task"], event["worker"]) == ("click", "answered", "17", "cpu0")
    assert client.get("/projects/3").json["last_days"]["clicks"] == 1


def test_while_redis_is_away_this_process_tells_what_it_knows_and_that_it_is_not_all(client, dispatcher, predict_body):
    client.post("/predict", json=predict_body())
    client.get("/")
    dispatcher.client.is_down = True
    client.post("/predict", json=predict_body())
    for path in ("/", "/tasks?task=17", "/projects/3.1700000000"):
        page = read(client, path)
        assert "Redis does not answer" in page
        assert "1 region, score 0.90" in page, path
    assert "only what this web process itself remembers" in read(client)
    assert "No click can be answered at the moment" in read(client, "/tasks?task=17")


def test_a_running_propagation_shows_its_progress_and_can_be_cancelled(client, propagations):
    session = "0123456789abcdef" * 2
    propagations.states[session] = PropagationState(session, "running", "project 3 task 17", 200, 50, worker="gpu0", updated_at=1.0)
    page = client.get("/", headers=BROWSER).text
    assert '<progress max="200" value="50"' in page
    assert f'action="propagations/{session}/cancel"' in page
    assert "25 %" in page
    answer = client.post(f"/propagations/{session}/cancel", data="", content_type="application/x-www-form-urlencoded")
    assert answer.status_code == 303
    assert f"propagations/{session}/cancel" not in client.get("/", headers=BROWSER).text


def test_of_many_propagations_those_that_run_and_wait_are_shown_first(client, propagations):
    phases = ["done"] * 30 + ["waiting"] * 25 + ["running"]
    propagations.states = {f"{n:032x}": PropagationState(f"{n:032x}", phase, f"title-{phase}-{n}") for n, phase in enumerate(phases)}
    page = read(client)
    assert page.index("title-running-55") < page.index("title-waiting-30")
    assert "title-done" not in page
    assert "Videos to track through 25 waiting" in page


def test_a_page_stays_as_it_is_unless_it_is_watched(client):
    assert "refresh" not in client.get("/", headers=BROWSER).text
    assert '<meta http-equiv="refresh" content="10">' in client.get("/?watch", headers=BROWSER).text


def test_a_worker_that_is_slower_than_the_others_is_called_so(client, dispatcher):
    idle = dispatcher.alive[0]
    dispatcher.alive = [idle, dataclasses.replace(idle, name="cpu1")]
    from backend.events import click_event

    web_journal = next(f for f in client.application.before_request_funcs[None]).__self__.journal
    for worker, spent_ms in [("cpu0", 50.0)] * 40 + [("cpu1", 400.0)] * 20:
        facts = {"task": "1", "points": 1, "objects": 1, "cache": "device", "score": 0.9, "worker": worker}
        web_journal.record(click_event("3.1", facts, {"total": spent_ms}, 1))
    page = read(client)
    assert page.count("slower than the others") == 1
    assert page.index("cpu1") < page.index("slower than the others")


def test_nothing_on_the_pages_is_markup_of_others(client, dispatcher, brush_config, predict_body):
    evil = "<script>alert(1)</script>"
    dispatcher.alive = [dataclasses.replace(dispatcher.alive[0], name=evil, model_version=evil, device=evil)]
    dispatcher.raises = MediaRefusedError(evil)
    client.post("/setup", json={"project": evil, "schema": brush_config.replace("smart", f"model_{'x'}='1' smart", 1)})
    client.post("/predict", json=predict_body(tasks=[{"id": evil, "data": {"image": "http://a.test/"}}], project=evil))
    for path in ("/", f"/tasks?task={evil}", f"/projects/{evil}"):
        page = client.get(path, headers=BROWSER).text
        assert "&lt;script&gt;" in page
        assert "<script" not in page
        assert "http://" not in page


@pytest.mark.parametrize("path", ["/", "/tasks?task=17", "/projects/3"])
def test_the_pages_need_nothing_from_elsewhere_and_fit_a_phone(client, predict_body, path):
    client.post("/predict", json=predict_body())
    page = client.get(path, headers=BROWSER).text
    assert "width=device-width" in page
    for outside in ("<script", "<img", "@import", "url(", "style=", "<style", "onclick="):
        assert outside not in page
    root = "../" if "projects" in path else ""
    for link in re.findall(r'<link [^>]*href="([^"]+)"', page):
        assert link.startswith(f"{root}status.")
        assert client.get("/" + link.removeprefix(root)).status_code == 200


@pytest.mark.parametrize("path", ["/", "/tasks?task=17", "/projects/3"])
def test_the_pages_are_read_by_screen_readers(client, predict_body, path):
    """Well-formed, one first heading, every table captioned, every header scoped, every field labelled, every id once."""
    client.post("/predict", json=predict_body())
    page = client.get(path, headers=BROWSER).text
    body = re.sub(r"<(input|meta|link|br)([^>]*?)>", r"<\1\2/>", page[page.index("<body>") : page.index("</html>")])
    body = re.sub(r" required/>", ' required=""/>', body)
    tree = ET.fromstring(body)
    assert len(tree.findall(".//h1")) == 1
    assert all(table.find("caption") is not None for table in tree.iter("table"))
    assert all(header.get("scope") for header in tree.iter("th"))
    labels = {label.get("for") for label in tree.iter("label")}
    assert all(field.get("id") in labels for field in tree.iter("input"))
    ids = [element.get("id") for element in tree.iter() if element.get("id")]
    assert len(ids) == len(set(ids))
    assert {element.get("aria-labelledby") for element in tree.iter() if element.get("aria-labelledby")} <= set(ids)
    assert all(picture.get("aria-label") or picture.get("aria-hidden") for picture in tree.iter("svg"))


def test_the_stylesheet_is_named_by_its_digest(client):
    page = client.get("/", headers=BROWSER)
    assert "'unsafe-inline'" not in page.headers["Content-Security-Policy"]
    assert re.search(r'href="status\.css\?[0-9a-f]{12}"', page.text)
    assert client.get("/status.css").mimetype == "text/css"


def _contrast(first: str, second: str) -> float:
    def luminance(colour: str) -> float:
        digits = colour * 2 if len(colour) == 3 else colour
        parts = [int(digits[i : i + 2], 16) / 255 for i in (0, 2, 4)]
        return sum(w * (p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4) for w, p in zip((0.2126, 0.7152, 0.0722), parts))

    high, low = sorted((luminance(first), luminance(second)), reverse=True)
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("scheme", [0, 1], ids=["light", "dark"])
def test_text_stands_out_from_its_ground(client, scheme):
    block = re.findall(r":root \{(.*?)\}", client.get("/status.css").text, re.DOTALL)[scheme]
    colours = dict(re.findall(r"--(\w+): #([0-9a-f]{3,6})", block))
    for ground in ("bg", "card"):
        for text in ("text", "muted", "accent", "good", "warn", "bad"):
            assert _contrast(colours[text], colours[ground]) >= 4.5, (text, ground)
        for part in ("device", "host", "redis", "disk", "bucket", "none"):
            assert _contrast(colours[part], colours[ground]) >= 3, (part, ground)


def test_numbers_are_written_for_people():
    assert (bytes_text(0), bytes_text(8 * MIB), bytes_text(1.5 * GIB)) == ("0 MiB", "8 MiB", "1.5 GiB")
    shares = (None, 0, 0.001, 0.42, 0.994, 0.999, 1)
    assert [percent_text(share) for share in shares] == ["–", "0 %", "under 1 %", "42 %", "99 %", "99.9 %", "100 %"]
    ages = (1, 30, 90, 7200, 3 * 86400)
    assert [ago_text(1e9 - age, 1e9) for age in ages] == ["just now", "30 s ago", "2 min ago", "2 h ago", "3 days ago"]


def test_strangers_who_try_passwords_do_not_push_out_what_happened(client_of, predict_body):
    client = client_of(Settings(basic_auth_user="ls", basic_auth_password="right"))
    right = {"Authorization": "Basic bHM6cmlnaHQ="}
    client.post("/predict", json=predict_body(), headers=right)
    for _ in range(200):
        assert client.post("/predict", json=predict_body()).status_code == 401
    events = client.get("/tasks?task=17", headers=right).json["events"]
    assert [event["outcome"] for event in events] == ["answered"]
    page = client.get("/", headers=right | BROWSER).text
    assert "1 ×" in page
    assert "unauthorized" in page
    assert "1 point → 1 region" in page
