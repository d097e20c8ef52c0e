"""Drives Label Studio's editor as an annotator does: with the mouse, on the real page. Reads what it has drawn from its canvas."""

from __future__ import annotations

import base64
import io
import json
import re
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image
from playwright.sync_api import Locator, Page, Request

SmartTool = Literal["keypoint", "rectangle", "rectangle-3-point"]

_ARIA_LABELS = {"keypoint": "key-point-tool", "rectangle": "rectangle-tool", "rectangle-3-point": "rectangle-3-point-tool"}
_TOGGLE = "[data-testid=bottombar-auto-annotation-toggle]"

#: Renders the shapes alone, without outlines and buttons, at the size of the image file; returns one PNG for each region.
_DRAWN = """() => {
  const annotation = Htx.annotationStore.selected;
  const image = annotation.objects[0], stage = image.stageRef;
  const {naturalWidth, naturalHeight} = image.currentImageEntity;
  const width = image.stageWidth * stage.scaleX(), height = image.stageHeight * stage.scaleY();
  const view = {x: stage.x(), y: stage.y(), width, height, pixelRatio: naturalWidth / width};
  const pending = [...annotation.suggestions.values()];
  const drawn = pending.length ? pending : annotation.regions.filter(region => !region.dynamic);
  const shapes = drawn.map(region => region.layerRef ?? region.shapeRef).filter(Boolean)
    .map(holder => holder.children ? [...holder.find("Image"), ...holder.find("Line")][0] : holder);
  const pngs = shapes.map(shape => {
    const outlined = shape.strokeEnabled?.();
    if (outlined) shape.strokeEnabled(false);
    const canvas = shape.toCanvas(view);
    if (outlined) shape.strokeEnabled(true);
    return canvas.toDataURL("image/png");
  });
  return {pngs, width: naturalWidth, height: naturalHeight};
}"""

#: Where the top-left corner of the image is on the stage, and how many pixels of the page one of its pixels takes.
_STAGE = """() => {
  const image = Htx.annotationStore.selected.objects[0], stage = image.stageRef;
  const {naturalWidth, naturalHeight} = image.currentImageEntity;
  return [stage.x(), stage.y(), image.stageWidth * stage.scaleX() / naturalWidth, image.stageHeight * stage.scaleY() / naturalHeight];
}"""

_STATE = """() => {
  const annotation = Htx.annotationStore.selected;
  const brief = region => ({id: region.cleanId, type: region.type, labels: [...(region.labels ?? [])], page: region.item_index ?? null,
                            dynamic: !!region.dynamic});
  return {suggestions: [...annotation.suggestions.values()].map(brief), regions: annotation.regions.map(brief),
          awaiting: Htx.awaitingSuggestions};
}"""


class Editor:
    """One task open in the labeling view.

    Attributes:
        answers: What Label Studio answered to each smart click: `{"data": …}` or `{"errors": …}`, oldest first.
        contexts: What the browser sent with each smart click.
    """

    def __init__(self, page: Page, base_url: str, screenshots: Path) -> None:
        self.page, self.base_url, self._screenshots = page, base_url, screenshots
        self.answers: list[dict[str, Any]] = []
        self.contexts: list[dict[str, Any]] = []
        self._shots = 0

    def open(self, project_id: int, task_id: int) -> None:
        """Open a task with Auto-Annotation on and Auto-Accept off."""
        self.answers.clear()
        self.contexts.clear()
        self.page.goto(f"{self.base_url}/projects/{project_id}/data?task={task_id}")
        self.page.wait_for_selector(_TOGGLE)
        self._wait_for_image()
        toggle = self.page.locator(_TOGGLE)
        if not toggle.is_checked():
            toggle.click()
        self.screenshot("opened")

    def pick(self, tool: SmartTool) -> None:
        """Choose one of the purple tools; with several, they hide in the flyout of the first."""
        smart = self.page.locator(".lsf-tool_smart")
        smart.first.hover()
        chosen = smart.and_(self.page.locator(f"[aria-label={_ARIA_LABELS[tool]}]"))
        (chosen.last if chosen.count() else smart.first).click()

    def choose_label(self, row: int, name: str) -> None:
        """Pick a label in the given row of labels on the page, counted from 0; one that is picked already stays so."""
        label = self.page.locator(".lsf-labels").nth(row).locator(".lsf-label", has_text=re.compile(rf"^\s*{re.escape(name)}\s*\w?\s*$"))
        if "lsf-label_selected" not in (label.first.get_attribute("class") or ""):
            label.first.click()

    def click(self, x_px: float, y_px: float, *, is_positive: bool = True) -> dict[str, Any]:
        """Click a point (pixels of the image) with the tool in hand; returns Label Studio's answer once it is drawn."""
        x, y = self._on_page(x_px, y_px)
        if not is_positive:
            self.page.keyboard.down("Alt")
        try:
            answer = self._answer_to(lambda: self.page.mouse.click(x, y))
        finally:
            if not is_positive:
                self.page.keyboard.up("Alt")
        sent = self.contexts[-1]["result"][-1]
        sent_px = (sent["value"]["x"] / 100 * sent["original_width"], sent["value"]["y"] / 100 * sent["original_height"])
        assert np.allclose(sent_px, (x_px, y_px), atol=1.5), f"the click at {x_px}, {y_px} was sent as {sent_px}"
        return answer

    def drag_box(self, left_px: float, top_px: float, right_px: float, bottom_px: float) -> dict[str, Any]:
        """Draw a box with the tool in hand; returns Label Studio's answer once it is drawn."""
        start, end = self._on_page(left_px, top_px), self._on_page(right_px, bottom_px)

        def drag() -> None:
            self.page.mouse.move(*start)
            self.page.mouse.down()
            self.page.mouse.move((start[0] + end[0]) / 2, (start[1] + end[1]) / 2, steps=4)
            self.page.mouse.move(*end, steps=4)
            self.page.mouse.up()

        return self._answer_to(drag)

    def next_page(self) -> None:
        """Show the next image of a task with several."""
        page = self.page.evaluate("() => Htx.annotationStore.selected.objects[0].currentImage")
        self.page.click(".lsf-pagination__btn_arrow-right:not(.lsf-pagination__btn_arrow-right-double)")
        self.page.wait_for_function("page => Htx.annotationStore.selected.objects[0].currentImage === page + 1", arg=page)
        self._wait_for_image()

    def accept(self) -> None:
        """Press the tick: every suggestion becomes a region, and the prompts go."""
        self._tick().click()
        self.page.wait_for_function("() => !Htx.annotationStore.selected.suggestions.size")
        self.page.wait_for_timeout(300)
        self.screenshot("accepted")

    def submit(self) -> None:
        """Submit the annotation and wait until Label Studio has stored it."""
        with self.page.expect_response(
            lambda response: re.search(r"/api/tasks/\d+/annotations", response.url) is not None and response.request.method == "POST"
        ) as stored:
            self.page.click("[data-testid=bottombar-submit-button]")
        assert stored.value.status == 201, stored.value.text()
        self.screenshot("submitted")

    def drawn_mask(self) -> np.ndarray:
        """What the canvas shows of all suggestions (or, when none is pending, of all regions): bool (H, W) at the image's size."""
        drawn = self.page.evaluate(_DRAWN)
        mask = np.zeros((drawn["height"], drawn["width"]), dtype=bool)
        for url in drawn["pngs"]:
            with Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))) as png:
                alpha = png.convert("RGBA").getchannel("A").resize((drawn["width"], drawn["height"]))
            mask |= np.asarray(alpha) > 32
        return mask

    def state(self) -> dict[str, Any]:
        """Suggestions, regions and whether an answer is awaited."""
        state: dict[str, Any] = self.page.evaluate(_STATE)
        return state

    def screenshot(self, step: str) -> None:
        """Keep a picture for a person to look at."""
        self._shots += 1
        self.page.screenshot(path=self._screenshots / f"{self._shots:02d}-{step}.png")

    def _answer_to(self, gesture: Any) -> dict[str, Any]:
        before = len(self.answers)
        with self.page.expect_response("**/interactive-annotating*", timeout=30_000) as caught:
            gesture()
        self.contexts.append(json.loads(_body(caught.value.request))["context"])
        self.answers.append(caught.value.json())
        self.page.wait_for_function("() => !Htx.awaitingSuggestions")
        self.page.wait_for_timeout(400)  # the canvas is painted after the store changed
        self.screenshot(f"answer-{before + 1}")
        return self.answers[-1]

    def _on_page(self, x_px: float, y_px: float) -> tuple[float, float]:
        """Pixels of the image to pixels of the page; the editor may have zoomed and moved its stage."""
        box = self.page.locator(".konvajs-content").bounding_box()
        assert box is not None
        left, top, zoom_x, zoom_y = self.page.evaluate(_STAGE)
        return box["x"] + left + x_px * zoom_x, box["y"] + top + y_px * zoom_y

    def _wait_for_image(self) -> None:
        self.page.wait_for_function(
            "() => { const e = Htx?.annotationStore?.selected?.objects?.[0]?.currentImageEntity; return e && e.imageLoaded && e.naturalWidth > 1 }"
        )
        self.page.wait_for_timeout(500)

    def _tick(self) -> Locator:
        return self.page.locator(".lsf-auto-accept__action_type_accept, .lsf-auto-accept__action").last


def _body(request: Request) -> str:
    return request.post_data or "{}"
