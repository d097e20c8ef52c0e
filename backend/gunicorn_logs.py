"""The web server's own lines in the form of all others: its start, its end, and what went wrong between."""

from __future__ import annotations

import os

from gunicorn.config import Config
from gunicorn.glogging import Logger

from backend import logs
from sam2_backend.settings import Settings


class LineLogger(Logger):  # type: ignore[misc]  # gunicorn is typed nowhere
    """Text or JSON, scrubbed, as `logs.configure` has it. Named on gunicorn's command line."""

    def setup(self, cfg: Config) -> None:
        super().setup(cfg)
        settings = Settings.from_env(os.environ)
        for handler in self.error_log.handlers:
            handler.setFormatter(logs.LineFormatter(logs.scrubber(settings), as_json=settings.log_json))
