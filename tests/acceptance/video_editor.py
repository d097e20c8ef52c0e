"""Drives Label Studio's video editor as an annotator does: boxes are drawn and moved with the mouse, tracks are asked for by the label."""

from __future__ import annotations

import json
from typing import Any

from editor import Editor

_TOGGLE = "[data-testid=bottombar-auto-annotation-toggle]"
_VIDEO = "[...Htx.annotationStore.selected.names.values()].find(tag => tag.type === 'video')"
_READY = f"() => {{ const video = Htx?.annotationStore?.selected && {_VIDEO}; return video?.ref?.current && video.length > 1 }}"
_PLACE = f"""() => {{
  const player = {_VIDEO}.ref.current, zoom = player.zoom, pan = player.pan, {{width, height}} = player.videoDimensions;
  return [pan.x, pan.y, width * zoom, height * zoom];
}}"""
_REGIONS = """() => Htx.annotationStore.selected.regions.map(region => ({
  id: region.cleanId, labels: [...region.labels], isSelected: !!(region.selected || region.inSelection), sequence: region.sequence,
}))"""
_SHOWN = """frame => Htx.annotationStore.selected.regions.map(
  region => region.isInLifespan(frame) ? region.getShape(frame) : null
)"""

Box = tuple[float, float, float, float]


class VideoEditor:
    """One video task open in the labeling view; boxes are left, top, width, height in per cent of the frame.

    Attributes:
        sent, answers: Contexts and answers of the requests to track, oldest first.
    """

    def __init__(self, editor: Editor) -> None:
        self.page, self.screenshot = editor.page, editor.screenshot
        self._base_url = editor.base_url
        self.submit = editor.submit
        self.sent: list[dict[str, Any]] = []
        self.answers: list[dict[str, Any]] = []

    def open(self, project_id: int, task_id: int) -> None:
        """Open a task with Auto-Annotation on."""
        self.page.goto(f"{self._base_url}/projects/{project_id}/data?task={task_id}")
        self.page.wait_for_selector(_TOGGLE)
        self.page.wait_for_function(_READY)
        self.page.wait_for_timeout(500)
        toggle = self.page.locator(_TOGGLE)
        if not toggle.is_checked():
            toggle.click()
        self.screenshot("opened")

    def go_to(self, frame: int) -> None:
        """Show a frame, from 1."""
        self.page.evaluate(f"frame => {_VIDEO}.setFrame(frame)", frame)
        self.page.wait_for_function(f"frame => {_VIDEO}.frame === frame", arg=frame)
        self.page.wait_for_timeout(400)

    def draw(self, label: str, box: Box) -> None:
        """Draw a new object's box on the frame shown."""
        before = len(self.regions())
        self._label(label).click()
        left, top, width, height = box
        self._drag((left, top), (left + width, top + height))
        self.page.wait_for_function("count => Htx.annotationStore.selected.regions.length === count", arg=before + 1)
        self.page.wait_for_timeout(300)

    def select(self, frame: int, index: int = 0) -> None:
        """Click into a region's box on the frame shown."""
        left, top, width, height = self.shown(frame)[index]
        self.page.mouse.click(*self._on_page((left + width / 2, top + height / 2)))
        self.page.wait_for_function(
            "index => { const r = Htx.annotationStore.selected.regions[index]; return r.selected || r.inSelection }", arg=index
        )
        self.page.wait_for_timeout(300)

    def move(self, frame: int, to: Box, index: int = 0) -> None:
        """Drag a selected region's box on the frame shown so that its centre lies in the centre of `to`."""
        left, top, width, height = self.shown(frame)[index]
        self._drag((left + width / 2, top + height / 2), (to[0] + to[2] / 2, to[1] + to[3] / 2))
        self.page.wait_for_timeout(300)

    def track(self, label: str) -> None:
        """Click a selected region's label off and on: each click sends its request, the second with the label."""
        for _ in range(2):
            with self.page.expect_response("**/interactive-annotating*", timeout=90_000) as caught:
                self._label(label).click()
            self.sent.append(json.loads(caught.value.request.post_data or "{}")["context"])
            self.answers.append(caught.value.json())
            self.page.wait_for_function("() => !Htx.awaitingSuggestions")
            self.page.wait_for_timeout(600)
        self.screenshot("tracked")

    def regions(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.page.evaluate(_REGIONS)
        return found

    def shown(self, frame: int) -> list[Box]:
        """What the editor itself says that it draws of each region on a frame."""
        shapes = self.page.evaluate(_SHOWN, frame)
        return [shape and (shape["x"], shape["y"], shape["width"], shape["height"]) for shape in shapes]

    def _label(self, name: str) -> Any:
        return self.page.locator(".lsf-label", has_text=name).first

    def _drag(self, start_pct: tuple[float, float], end_pct: tuple[float, float]) -> None:
        start, end = self._on_page(start_pct), self._on_page(end_pct)
        self.page.mouse.move(*start)
        self.page.mouse.down()
        self.page.mouse.move((start[0] + end[0]) / 2, (start[1] + end[1]) / 2, steps=4)
        self.page.mouse.move(*end, steps=4)
        self.page.mouse.up()

    def _on_page(self, xy_pct: tuple[float, float]) -> tuple[float, float]:
        """Per cent of the frame to pixels of the page: the video lies in the middle of the canvas, zoomed and moved."""
        canvas = self.page.locator(".konvajs-content").first.bounding_box()
        assert canvas is not None
        pan_x, pan_y, width, height = self.page.evaluate(_PLACE)
        left = canvas["x"] + (canvas["width"] - width) / 2 + pan_x
        top = canvas["y"] + (canvas["height"] - height) / 2 + pan_y
        return left + xy_pct[0] / 100 * width, top + xy_pct[1] / 100 * height
