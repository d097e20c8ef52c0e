"""The editor shows nothing when the backend fails: the status page, asked for the task, says why."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from editor import Editor
from PIL import Image
from project import Project

from backend.config_generator import generate
from backend.supervisor import Stack

DRAWING = '<svg xmlns="http://www.w3.org/2000/svg" width="200" height="150"><rect width="200" height="150" fill="#ddd"/><circle cx="100" cy="75" r="40"/></svg>'


def click(editor: Editor, project: Project, task_id: int) -> None:
    """Open a task and click on its middle."""
    editor.open(project.project_id, task_id)
    editor.choose_label(project.prompt_row(), "Object")
    editor.pick("keypoint")
    editor.click(100, 75)


def said_of(editor: Editor, stack: Stack, task_id: int) -> str:
    """What an annotator reads who enters the task's number on the status page."""
    page = editor.page.context.new_page()
    page.goto(stack.url)
    page.get_by_label("Number of the task").fill(str(task_id))
    page.get_by_role("button", name="What happened?").click()
    page.wait_for_url("**/tasks?task=*")
    said = page.inner_text("main")
    page.close()
    return " ".join(said.split())


def test_the_reason_of_each_click_is_found_by_its_tasks_number(
    editor: Editor, new_project: Callable[[str], Project], stack: Stack, tmp_path: Path
) -> None:
    project = new_project(generate(["Object"]))
    (tmp_path / "drawing.svg").write_text(DRAWING)
    picture = Image.new("RGB", (200, 150), "white")
    picture.paste("black", (60, 40, 140, 110))
    picture.save(tmp_path / "picture.png")
    drawing_id, picture_id = project.upload(tmp_path / "drawing.svg"), project.upload(tmp_path / "picture.png")

    click(editor, project, drawing_id)
    assert not editor.drawn_mask().any()
    said = said_of(editor, stack, drawing_id)
    assert "Failed" in said
    assert "media_unreadable" in said
    assert "Whoever imported this task can put it right" in said

    click(editor, project, picture_id)
    said = said_of(editor, stack, picture_id)
    assert "The task was opened: 1 image made ready" in said
    assert "1 point → 1 region" in said
    assert "Label Studio got this mask." in said
    assert "Label Studio sent nothing" in said_of(editor, stack, picture_id + 1000)
