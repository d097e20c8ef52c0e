"""sam2-backend: up | web | worker | demo | preannotate | warm | evaluate | export | slices | checkpoints | config | doctor | settings.

Each command is a thin door to the module that does the work, imported when it is asked for, so that a machine with only one of
the extras (web, worker) can run its part. Errors are sentences on stderr; the exit code is 78 where starting again cannot help.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from backend.child_process import EXIT_MISCONFIGURED
from sam2_backend.errors import BadCheckpointError, Sam2BackendError, SettingsError
from sam2_backend.settings import Settings

Command = Callable[[Settings, argparse.Namespace], int]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    options = _parser().parse_args(arguments)
    command: Command = options.command
    try:
        return command(Settings.from_env(os.environ), options)
    except (SettingsError, BadCheckpointError) as error:
        print(f"sam2-backend: {error.message}", file=sys.stderr)
        return EXIT_MISCONFIGURED
    except Sam2BackendError as error:
        print(f"sam2-backend: {error.message}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="sam2-backend", description="SAM 2 for Label Studio. Settings come from the environment.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def add(
        name: str, command: Command, help_text: str, to: argparse._SubParsersAction[argparse.ArgumentParser] = commands
    ) -> argparse.ArgumentParser:
        sub = to.add_parser(name, help=help_text, description=help_text)
        sub.set_defaults(command=command)
        return sub

    add("up", _up, "Start Redis (if none is set), workers and the web tier; Ctrl-C stops them all.")
    add("demo", _demo, "The same, and a real Label Studio with a small project that is connected already.")
    add("web", _web, "Serve the web tier alone.")
    add("worker", _worker, "Serve the model tier alone: one worker, one device.")
    add("doctor", _doctor, "Say what is wrong and how to mend it, a line each.").add_argument(
        "--project", type=int, help="judge this Label Studio project's connection and labeling config"
    )
    add("settings", _settings, "List every setting, its value and its meaning.")

    preannotate = add("preannotate", _preannotate, "Give every task of a project a prediction: boxes to masks, everything, text, similar.")
    preannotate.add_argument("--mode", choices=["boxes", "everything", "text", "similar"], default="", help="default: model_preannotate")
    preannotate.add_argument("--option", action="append", default=[], metavar="NAME=VALUE", help="such as points_per_side=16; repeatable")
    preannotate.add_argument("--dry-run", action="store_true", help="say what would be done, and do nothing")
    preannotate.add_argument("--show", action="store_true", help="have Label Studio show these predictions to annotators")
    warm = add("warm", _warm, "Embed a project's images ahead of the first click, without predicting.")
    evaluate = add("evaluate", _evaluate, "Compare a project's predictions with the annotations that people made: by label, and the worst.")
    evaluate.add_argument("--model-version", default="", metavar="NAME", help="only these predictions; default: each annotation's own")
    evaluate.add_argument("--json", type=Path, metavar="FILE", help="write every pair of regions, and the summary")
    evaluate.add_argument("--html", type=Path, metavar="FILE", help="write a page with plots and pictures of the worst cases")
    evaluate.add_argument("--worst", type=int, default=24, metavar="N", help="how many worst cases are shown; default: 24")
    for over_tasks in (preannotate, warm, evaluate):
        over_tasks.add_argument("--project", type=int, required=True, help="the project's id, as in Label Studio's address")
        over_tasks.add_argument("--limit", type=int, default=0, metavar="N", help="at most so many tasks")
        over_tasks.add_argument(
            "--filter",
            action="append",
            default=[],
            metavar="WHICH",
            help="labelled, unlabelled, predicted, unpredicted, id=1-100,205, data.FIELD=PATTERN or tab=ID; repeatable, all must hold",
        )

    export = add(
        "export", _export, "Write the masks of a project's tracked objects: COCO and YouTube-VIS JSON, indexed PNGs as DAVIS has them."
    )
    export.add_argument("--project", type=int, required=True, help="the project's id, as in Label Studio's address")
    export.add_argument("--to", type=Path, required=True, metavar="DIR", help="folder to write; an export that was interrupted goes on")
    export.add_argument(
        "--source",
        choices=["auto", "annotations", "predictions"],
        default="auto",
        help="auto: annotations, and predictions where there are none",
    )

    slices = add("slices", _slices, "Write a medical volume as pages: PNG slices, and a task for Label Studio that lists them.")
    slices.add_argument("volume", type=Path, metavar="VOLUME", help="NIfTI, DICOM or TIFF file, zip or folder of a DICOM series")
    slices.add_argument("--to", type=Path, required=True, metavar="DIR", help="folder to write, below Label Studio's local files root")
    slices.add_argument("--prefix", default="", help="what comes before a page's name in the task; default: Label Studio's local files")

    config = add("config", _config, "Print a labeling config for Label Studio.")
    config.add_argument("--labels", nargs="+", required=True, metavar="NAME")
    config.add_argument("--output", choices=["brush", "bitmask", "polygon", "rectangle"], default="brush")
    config.add_argument("--separated", action="store_true", help="one Labels tag beside tools without labels")
    config.add_argument("--pages", action="store_true", help="several images per task (valueList)")
    config.add_argument("--propagate", action="store_true", help="with --pages: what is drawn on one page is found on all others")
    config.add_argument("--video", action="store_true", help="boxes that are tracked through a video, in place of masks on images")
    config.add_argument("--framerate", default="", help="with --video: the videos' frames per second, or $field (Label Studio takes 24)")

    checkpoints = commands.add_parser("checkpoints", help="List, fetch and verify checkpoints.").add_subparsers(
        required=True, metavar="ACTION"
    )
    add("list", _checkpoints_list, "Names, sizes, and what is there.", checkpoints)
    for name, command, help_text in (
        ("fetch", _checkpoints_fetch, "Download a checkpoint (resumes) and verify its digest."),
        ("verify", _checkpoints_verify, "Compare a checkpoint with its digest and load it."),
    ):
        add(name, command, help_text, checkpoints).add_argument("name", help="a name from `checkpoints list`, or a file")
    return parser


def _up(settings: Settings, _options: argparse.Namespace) -> int:
    from backend.supervisor import run_up

    return run_up(settings)


def _demo(settings: Settings, _options: argparse.Namespace) -> int:
    from backend.demo import run_demo

    return run_demo(settings)


def _web(settings: Settings, _options: argparse.Namespace) -> int:
    os.execv(  # noqa: S606  gunicorn takes this process over, and with it the signals
        sys.executable,
        [
            *(sys.executable, "-m", "gunicorn", "backend.app:from_environ()", "--bind", f"{settings.host}:{settings.port}"),
            *("--config", "python:backend.web_server", "--workers", "1", "--no-control-socket"),
            *("--worker-class", "gthread", "--threads", str(settings.web_threads)),
            *("--graceful-timeout", str(int(settings.predict_wait_s) + 5), "--timeout", "0"),
            *("--log-level", "warning", "--logger-class", "backend.gunicorn_logs.LineLogger"),
        ],
    )


def _worker(settings: Settings, _options: argparse.Namespace) -> int:
    from backend import logs
    from sam2_backend.worker import run_worker

    logs.configure(settings)
    return run_worker(settings)


def _doctor(settings: Settings, options: argparse.Namespace) -> int:
    from backend.doctor import run_doctor

    return run_doctor(settings, options.project)


def _export(settings: Settings, options: argparse.Namespace) -> int:
    from backend.exports import run_export

    return run_export(settings, options.project, options.to, options.source)


def _slices(settings: Settings, options: argparse.Namespace) -> int:
    from backend.volume_pages import write_pages

    print(
        f"Import {write_pages(options.volume, options.to, settings, options.prefix)} into a project with several pages (`config --pages`)."
    )
    return 0


def _preannotate(settings: Settings, options: argparse.Namespace) -> int:
    from backend.preannotate import Asked, run_preannotate

    pairs = [text.partition("=") for text in options.option]
    if wrong := next((name for name, equals, _ in pairs if not equals), ""):
        raise SettingsError(f"--option {wrong} has no value. Write --option {wrong}=VALUE.")
    given = {name.strip(): value.strip() for name, _, value in pairs}
    asked = Asked(options.project, options.mode, given, options.limit, options.filter, options.dry_run, options.show)
    return run_preannotate(settings, asked)


def _warm(settings: Settings, options: argparse.Namespace) -> int:
    from backend.preannotate import Asked, run_warm

    return run_warm(settings, Asked(options.project, limit=options.limit, filters=options.filter))


def _evaluate(settings: Settings, options: argparse.Namespace) -> int:
    from backend.evaluate import Asked, run_evaluate

    asked = Asked(options.project, options.model_version, options.limit, options.filter, options.json, options.html, n_worst=options.worst)
    return run_evaluate(settings, asked)


def _settings(settings: Settings, _options: argparse.Namespace) -> int:
    for name, value, help_text in settings.describe():
        print(f"{name}={value}\n    {help_text}")
    return 0


def _config(_settings: Settings, options: argparse.Namespace) -> int:
    from backend.config_generator import generate, generate_video

    if options.video:
        print(generate_video(options.labels, framerate=options.framerate))
        return 0
    asked = {"model_propagate": True} if options.propagate else {}
    print(generate(options.labels, options.output, separated=options.separated, pages=options.pages, options=asked))
    return 0


def _checkpoints_list(settings: Settings, _options: argparse.Namespace) -> int:
    from sam2_backend.checkpoints import MODELS, choose

    chosen = choose(settings)
    for name, spec in MODELS.items():
        path = settings.checkpoints_dir / spec.file
        state = f"at {path}" if path.is_file() else "not fetched"
        print(f"{'*' if name == chosen else ' '} {name:<24} {spec.n_bytes / 1e6:6.0f} MB  {spec.licence}  {state}")
    print(f"* is what SAM2_MODEL={settings.model} takes here" if chosen in MODELS else f"SAM2_MODEL={settings.model} takes {chosen} here")
    return 0


def _checkpoints_fetch(settings: Settings, options: argparse.Namespace) -> int:
    from sam2_backend.checkpoints import fetch

    path = fetch(options.name, settings.checkpoints_dir, _progress)
    print(f"\n{path} is complete and its digest is right.")
    return 0


def _checkpoints_verify(settings: Settings, options: argparse.Namespace) -> int:
    from sam2_backend.checkpoints import verify

    print(verify(Path(options.name) if Path(options.name).exists() else options.name, settings.checkpoints_dir))
    return 0


def _progress(done_bytes: int, total_bytes: int) -> None:
    share = f" of {total_bytes / 1e6:.0f} MB ({100 * done_bytes / total_bytes:.0f} %)" if total_bytes else ""
    print(f"\r{done_bytes / 1e6:8.1f} MB{share}", end="", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
