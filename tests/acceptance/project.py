"""A project in the real Label Studio."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from backend.label_studio import LabelStudio


@dataclass(slots=True)
class Project:
    """A project of one test, with the backend connected."""

    client: LabelStudio
    project_id: int
    label_config: str

    def upload(self, path: Path) -> int:
        """Upload an image as a task; returns the task's id."""
        assert self.client.upload_files(self.project_id, [path]) == 1
        return max(int(task["id"]) for task in self.client.tasks(self.project_id))

    def prompt_row(self, tag: str = "KeyPointLabels") -> int:
        """Which row of labels on the page belongs to a control tag."""
        rows = [element.tag for element in ET.fromstring(self.label_config).iter() if element.find("Label") is not None]
        return rows.index(tag)

    def stored(self, task_id: int) -> list[dict[str, Any]]:
        """The results of the task's one annotation."""
        (annotation,) = self.client.task(task_id)["annotations"]
        return list(annotation["result"])
