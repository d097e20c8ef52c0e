"""The status pages in a real browser: at a desk's and a phone's width, in light and dark, over a busy fleet, a fresh install and no Redis."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fleet
import pytest
from playwright.sync_api import Browser, Page
from werkzeug.serving import make_server

from backend.app import create_app
from sam2_backend.settings import Settings

SCREENSHOTS = Path(__file__).with_name("screenshots") / "status"
SIZES = {"desk": {"width": 1280, "height": 900}, "phone": {"width": 360, "height": 740}}
FLEET_PAGES = {"overview": "/", "task": "/tasks?task=1199", "another-task": "/tasks?task=5", "project": f"/projects/{fleet.PROJECT}"}
WIDER_THAN_THE_SCREEN = """() => [...document.querySelectorAll("body *")]
  .filter(e => !e.closest(".hidden, thead, svg") && e.getBoundingClientRect().right > document.documentElement.clientWidth + 1)
  .map(e => e.tagName + " " + e.className + ": " + e.textContent.trim().slice(0, 40))"""


@dataclass
class Site:
    """A web tier."""

    url: str
    redis_server: Any


@pytest.fixture
def site(own_redis_server, tmp_path: Path) -> Iterator[Site]:
    url, key = "http://studio.test", "0123456789abcdef0123456789abcdef01234567"
    settings = Settings(
        redis_url=own_redis_server.url, data_dir=tmp_path, label_studio_url=url, label_studio_api_key=key, warm_next_tasks=0
    )
    server = make_server("127.0.0.1", 0, create_app(settings), threaded=True)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield Site(f"http://127.0.0.1:{server.port}", own_redis_server)
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def busy_site(site: Site) -> Site:
    with site.redis_server.connect() as client:
        fleet.four_workers(client)
        fleet.three_videos(client)
        fleet.a_days_work(client)
    return site


@pytest.fixture
def opened(browser: Browser) -> Iterator[Callable[..., Page]]:
    """Opens pages; none may complain, or ask for anything from elsewhere."""
    contexts, complaints = [], []

    def open_page(url: str, size: str = "desk", scheme: Any = "light") -> Page:
        context = browser.new_context(viewport=SIZES[size], color_scheme=scheme, java_script_enabled=True)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: complaints.append(message.text) if message.type in {"error", "warning"} else None)
        page.on("request", lambda request: None if request.url.startswith("http://127.0.0.1") else complaints.append(request.url))
        page.goto(url)
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert complaints == []


def look_at(page: Page, name: str) -> None:
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=SCREENSHOTS / f"{name}.png", full_page=True)
    assert page.evaluate(WIDER_THAN_THE_SCREEN) == []
    assert page.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", SIZES)
def test_a_busy_fleet_fits_every_screen(busy_site, opened, size, scheme):
    for name, path in FLEET_PAGES.items():
        look_at(opened(busy_site.url + path, size, scheme), f"{name}-{size}-{scheme}")


@pytest.mark.parametrize("size", SIZES)
def test_a_fresh_install_says_what_to_do_first(site, opened, size):
    page = opened(site.url, size)
    look_at(page, f"fresh-{size}")
    assert "sam2-backend worker" in page.inner_text("main")
    assert "Connect Model" in page.inner_text("main")


@pytest.mark.parametrize("size", SIZES)
def test_without_redis_the_page_says_so_and_shows_what_this_process_knows(busy_site, opened, size):
    busy_site.redis_server.stop()
    page = opened(busy_site.url, size)
    look_at(page, f"no-redis-{size}")
    assert "Redis does not answer" in page.inner_text("main")


def test_an_annotator_finds_the_reason_of_a_task_without_a_mouse(busy_site, opened):
    page = opened(busy_site.url, "phone")
    page.get_by_label("Number of the task").press_sequentially("1199")
    page.keyboard.press("Enter")
    page.wait_for_url("**/tasks?task=1199")
    shown = page.inner_text("main")
    assert "did not answer within 30 s" in shown
    assert "Whoever runs this backend can put it right." in shown


def test_a_propagation_is_cancelled_with_its_button(busy_site, opened):
    page = opened(busy_site.url)
    page.get_by_role("button", name="Cancel project 32 task 907").click()
    page.wait_for_load_state()
    assert page.get_by_role("button", name="Cancel project 32 task 907").count() == 0
    assert "cancelled" in page.inner_text("section:has(#videos)")


def test_a_page_that_is_watched_reloads_and_stays_where_it_is(busy_site, opened):
    page = opened(f"{busy_site.url}/?watch", "phone")
    page.evaluate("scrollTo(0, 1500)")
    page.wait_for_event("load", timeout=60_000)
    page.wait_for_function("scrollY === 1500")


def test_everything_can_be_read_and_reached_without_scripts(busy_site, browser):
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(busy_site.url)
    assert page.get_by_role("heading", name="Workers", exact=True).is_visible()
    page.get_by_role("link", name="Project 31").first.click()
    assert page.get_by_role("heading", name="Project 31").is_visible()
    context.close()
