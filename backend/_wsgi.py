"""What `label-studio-ml start backend` runs, and `gunicorn backend._wsgi:app` serves.

With label-studio-ml installed (1.0.9 or 2.x) its server serves `Sam2Backend`; without it, our own app is served.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parent.parent)  # run as a file, `backend` itself would shadow modules called app or logs

if TYPE_CHECKING:
    from flask import Flask

from backend import logs
from sam2_backend.settings import Settings


def make_app(options: argparse.Namespace | None = None) -> Flask:
    if importlib.util.find_spec("label_studio_ml") is None:
        from backend.app import from_environ

        return from_environ()
    logs.configure(Settings.from_env(os.environ))
    from backend import model

    if options is None:
        return model.make_app()
    return model.make_app(options.model_dir, options.basic_auth_user, options.basic_auth_pass)


def _options() -> argparse.Namespace:
    """The options that both generations of `label-studio-ml start` hand on; ours come from the environment."""
    settings = Settings.from_env(os.environ)
    parser = argparse.ArgumentParser(description="SAM 2 for Label Studio, under label-studio-ml")
    parser.add_argument("-p", "--port", type=int, default=settings.port)
    parser.add_argument("--host", default=settings.host)
    parser.add_argument("--model-dir", default="", help="where label-studio-ml keeps its files")
    parser.add_argument("--basic-auth-user", default="")
    parser.add_argument("--basic-auth-pass", default="")
    options, ignored = parser.parse_known_args()
    if ignored:
        print(f"Ignored: {' '.join(ignored)}. Settings come from the environment; see docs/settings.md.", file=sys.stderr)
    return options


if __name__ == "__main__":
    chosen = _options()
    make_app(chosen).run(host=chosen.host, port=chosen.port, threaded=True)
else:
    app = make_app()
