"""What commands over a whole project share: connections, the tasks that are meant, many hands, and the words at the end.

Without SAM2_REDIS_URL, Redis and workers are started for as long as it takes.
"""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from backend import logs
from backend.data_uri import data_uri_bytes, is_data_uri
from backend.dataset_events import summary_event
from backend.dataset_run import DatasetRun
from backend.dataset_studio import DatasetStudio, versions_listed
from backend.dispatch import Dispatcher
from backend.events import Event
from backend.journal import Journal
from backend.journal_store import JournalStore
from backend.label_studio import LabelStudio
from backend.label_studio_process import free_port
from backend.progress import Progress
from backend.supervisor import Stack
from backend.task_filters import task_filter
from backend.task_runner import Outcome
from sam2_backend.errors import NoWorkerError, SettingsError
from sam2_backend.messages import MediaRef
from sam2_backend.settings import Settings

Row = Mapping[str, Any]
STOPPED = 130
"""As a shell counts a command that Ctrl-C ended."""

_READY_S = 300.0
_WORKERS_S = 30.0
_JOURNAL_S = 2.0


@dataclass
class DatasetCommand:
    """One command, with its connections open."""

    settings: Settings
    dispatcher: Dispatcher
    studio: DatasetStudio
    stopped: threading.Event
    progress: Progress
    record: Callable[[Event], None] = lambda _event: None
    n_workers: int = 1

    def media_ref(self, uri: str) -> MediaRef:
        """Where workers find an image; a `data:` URI is put into Redis."""
        return self.dispatcher.put_blob(data_uri_bytes(uri, self.settings.media_max_bytes)) if is_data_uri(uri) else MediaRef(uri)

    def model_version(self) -> str:
        """What the workers serve, once one does.

        Raises:
            NoWorkerError: none does within half a minute.
            SettingsError: they serve different models.
        """
        deadline = time.monotonic() + _WORKERS_S
        while not (serving := [worker for worker in self.dispatcher.workers() if worker.state != "loading"]):
            if time.monotonic() > deadline or self.stopped.wait(0.5):
                raise NoWorkerError("No worker is running. Start one with `sam2-backend worker`, or see the status page.")
        others = {worker.model_version for worker in serving}
        if len(others) > 1:
            raise SettingsError(f"The workers serve different models ({', '.join(sorted(others))}). Run the same SAM2_MODEL on all.")
        self.n_workers = len(serving)
        return serving[0].model_version

    def rows(self, project: Mapping[str, Any], filters: Sequence[str], limit: int, version: str = "") -> Iterator[Row]:
        """The tasks that are left to do: those that have a prediction of this version are counted and passed over.

        Raises:
            SettingsError: a filter is unknown.
            LabelStudioError: Label Studio is away for too long, or refuses.
        """
        wanted, n_taken = task_filter(filters), 0
        self.progress.begin(limit or (0 if filters else int(project.get("task_number") or 0)))
        for row in self.studio.rows(int(project["id"]), wanted.tab_id):
            if not wanted(row):
                continue
            if version and self._has(row, version):
                self.progress.add(had=1)
                continue
            if limit and n_taken == limit:
                return
            n_taken += 1
            yield row

    def run(self, rows: Iterable[Row], work: Callable[[Row], Outcome], project: str) -> int:
        """Do every task and tell what became of them; the exit code.

        Args:
            project: Its full name, for the status page.

        Raises:
            LabelStudioError: the tasks cannot be listed.
        """
        run = DatasetRun(self.settings, self.dispatcher, work, self.progress, self.stopped)
        started = time.monotonic()
        run.run(rows)
        self.progress.close()
        self._tell(run, time.monotonic() - started)
        self.record(summary_event(project, self.progress.counts, len(run.failed)))
        return STOPPED if self.stopped.is_set() else 1 if run.failed else 0

    def _has(self, row: Row, version: str) -> bool:
        listed = versions_listed(row)
        if listed is None:
            listed = {str(prediction.get("model_version")) for prediction in self.studio.predictions(int(row["id"]))}
        return version in listed

    def _tell(self, run: DatasetRun, spent_s: float) -> None:
        counts, say = self.progress.counts, self.progress.say
        rate = counts.stored / spent_s if spent_s else 0.0
        say(
            f"{counts.stored} tasks done in {spent_s:.1f} s ({rate:.2f}/s), {counts.regions} regions; {counts.had} had it, "
            f"{counts.nothing} held nothing to work on, {len(run.failed)} failed"
        )
        if counts.stored and spent_s:
            share = counts.model_ms / 1e3 / (spent_s * self.n_workers)
            say(f"The model worked {100 * share:.0f} % of the time of {self.n_workers} worker(s).")
        for task_id, reason in run.failed:
            say(f"  task {task_id}: {reason}")
        if run.is_hopeless:
            say("All that were tried failed for the same reason: the others were not begun.")
        if self.stopped.is_set():
            say("Stopped. Run it again for the rest.")


@contextmanager
def dataset_command(settings: Settings, stopped: threading.Event, progress: Progress) -> Iterator[DatasetCommand]:
    """Connections to Label Studio, Redis and workers.

    Raises:
        SettingsError: LABEL_STUDIO_URL or LABEL_STUDIO_API_KEY is missing.
        LabelStudioError: Label Studio does not answer, or refuses the token.
    """
    url, key = settings.label_studio_url, settings.label_studio_api_key
    if not url or not key:
        raise SettingsError("Set LABEL_STUDIO_URL and LABEL_STUDIO_API_KEY: the project is read from Label Studio.")
    first = LabelStudio(url, key)
    try:
        first.whoami()  # without patience: a wrong address or token is said at once
    finally:
        first.close()
    with _with_redis(settings, progress.say) as connected:
        studio, dispatcher = DatasetStudio(url, key, stopped, progress.say), Dispatcher(connected)
        journal = Journal(JournalStore(dispatcher.redis), logs.scrubber(settings))
        try:
            yield DatasetCommand(connected, dispatcher, studio, stopped, progress, journal.record)
        finally:
            journal.flush(_JOURNAL_S)
            studio.close()
            dispatcher.close()


@contextmanager
def _with_redis(settings: Settings, echo: Callable[[str], None]) -> Iterator[Settings]:
    """Settings with a Redis that workers serve."""
    if settings.redis_url:
        yield settings
        return
    ending = threading.Event()
    with Stack(dataclasses.replace(settings, host="127.0.0.1", port=free_port(0)), echo) as stack:
        stack.wait_until_ready(_READY_S)
        watch = threading.Thread(target=stack.watch, args=(ending,), name="stack")
        watch.start()
        try:
            yield stack.settings
        finally:
            ending.set()
            watch.join()
