"""Every error that this project answers with: one tree, one sentence each, and who can put it right.

A message names the thing and the next step. It is safe to show: no token, no traceback, no body. Label Studio keeps
only the HTTP reason phrase of a failed request, so `app` sends the message there as well as in the JSON body.

Media errors do not derive from OSError: urllib3 would swallow them.
"""

from __future__ import annotations

from http import HTTPStatus
from typing import ClassVar, Literal

Mender = Literal["annotator", "project owner", "operator", "task data"]


class Sam2BackendError(Exception):
    """Root of the tree. `code` is stable and machine-readable; `message` is for people."""

    code: ClassVar[str] = "internal_error"
    status: ClassVar[HTTPStatus] = HTTPStatus.INTERNAL_SERVER_ERROR
    mender: ClassVar[Mender] = "operator"
    usual_retry_after_s: ClassVar[float | None] = None
    """When asking again may help, unless whoever raises it knows better."""

    def __init__(self, message: str, *, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.retry_after_s = self.usual_retry_after_s if retry_after_s is None else retry_after_s


class RequestError(Sam2BackendError):
    """The request itself cannot be served."""

    code = "bad_request"
    status = HTTPStatus.BAD_REQUEST
    mender: ClassVar[Mender] = "annotator"


class PromptError(RequestError):
    """A prompt is malformed: not a number, outside the image, of an unknown kind."""

    code = "bad_prompt"
    status = HTTPStatus.UNPROCESSABLE_ENTITY


class LabelConfigError(RequestError):
    """The labeling config has no control tag that can hold a mask, or cannot be parsed."""

    code = "no_control_tag"
    status = HTTPStatus.UNPROCESSABLE_ENTITY
    mender = "project owner"


class TaskDataError(RequestError):
    """The task does not hold the data that the labeling config's object tag names."""

    code = "bad_task"
    status = HTTPStatus.UNPROCESSABLE_ENTITY
    mender = "task data"


class SessionExpiredError(RequestError):
    """The propagation that is asked for is not kept, or no longer."""

    code = "session_expired"
    status = HTTPStatus.CONFLICT


class AuthError(RequestError):
    """The caller did not present the configured user and password, API key or webhook secret."""

    code = "unauthorized"
    status = HTTPStatus.UNAUTHORIZED
    mender = "operator"


class NotFoundError(RequestError):
    """There is no such endpoint."""

    code = "not_found"
    status = HTTPStatus.NOT_FOUND


class MediaError(Sam2BackendError):
    """The task's image cannot be had."""

    code = "media_error"
    mender: ClassVar[Mender] = "task data"


class MediaUnreachableError(MediaError):
    """The source did not answer in time, or answered with an error."""

    code = "media_unreachable"
    status = HTTPStatus.BAD_GATEWAY
    mender = "operator"


class MediaRefusedError(MediaError):
    """The address is private, reserved or otherwise not to be fetched from."""

    code = "media_refused"
    status = HTTPStatus.FORBIDDEN
    mender = "operator"


class MediaUnreadableError(MediaError):
    """The bytes are not an image that can be decoded, or not the image that the client sees."""

    code = "media_unreadable"
    status = HTTPStatus.UNPROCESSABLE_ENTITY


class MediaTooLargeError(MediaError):
    """More bytes or pixels than the settings allow."""

    code = "media_too_large"
    status = HTTPStatus.REQUEST_ENTITY_TOO_LARGE


class VideoError(MediaError):
    """The frames of a video, image sequence or medical volume cannot be had."""

    code = "video_error"
    status = HTTPStatus.UNPROCESSABLE_ENTITY


class VideoUnreadableError(VideoError):
    """The file holds no video or volume that can be decoded, is damaged or truncated, or changes its size midway."""

    code = "video_unreadable"


class VideoTooLargeError(VideoError):
    """More frames, or more pixels in a frame, than the settings allow."""

    code = "video_too_large"
    status = HTTPStatus.REQUEST_ENTITY_TOO_LARGE


class VideoFramerateError(VideoError):
    """The framerate that numbers the frames is missing or absurd."""

    code = "bad_framerate"
    mender = "project owner"


class VideoFrameError(VideoError):
    """A frame is asked for that lies before the start or past the end."""

    code = "no_such_frame"


class VolumeSupportError(VideoError):
    """The worker lacks the packages that read medical volumes."""

    code = "no_volume_support"
    status = HTTPStatus.NOT_IMPLEMENTED
    mender = "operator"


class QueueError(Sam2BackendError):
    """The way between the web tier and the workers is broken or full."""

    code = "queue_error"
    status = HTTPStatus.SERVICE_UNAVAILABLE


class QueueDownError(QueueError):
    """Redis does not answer."""

    code = "queue_down"
    usual_retry_after_s = 5.0


class NoWorkerError(QueueError):
    """No live worker serves the queue."""

    code = "no_worker"
    usual_retry_after_s = 5.0


class JobTimedOutError(QueueError):
    """The job was not done within the deadline."""

    code = "job_timed_out"
    status = HTTPStatus.GATEWAY_TIMEOUT


class OverloadedError(QueueError):
    """More jobs wait than the settings allow."""

    code = "overloaded"
    usual_retry_after_s = 5.0
    status = HTTPStatus.TOO_MANY_REQUESTS


class JobRefusedError(QueueError):
    """The queue holds a job that is not one of ours, or whose arguments are malformed."""

    code = "job_refused"
    status = HTTPStatus.INTERNAL_SERVER_ERROR


class SupersededError(QueueError):
    """A newer click on the same drawing made this job pointless; the web tier answers it with an empty result."""

    code = "superseded"
    status = HTTPStatus.CONFLICT
    mender = "annotator"


class ModelError(Sam2BackendError):
    """The model cannot be loaded or run."""

    code = "model_error"


class BadCheckpointError(ModelError):
    """The checkpoint is missing, damaged, or not a SAM 2 checkpoint."""

    code = "bad_checkpoint"


class DetectorError(ModelError):
    """The worker has no open-vocabulary detector: none is set, its packages are missing, or it cannot be loaded."""

    code = "no_detector"
    status = HTTPStatus.NOT_IMPLEMENTED


class GpuMemoryError(ModelError):
    """The device is full, also after its cache tier was emptied."""

    code = "gpu_out_of_memory"
    usual_retry_after_s = 5.0
    status = HTTPStatus.SERVICE_UNAVAILABLE


class SettingsError(Sam2BackendError):
    """A setting is unknown, malformed or contradicts another. The process does not start."""

    code = "bad_setting"


def _tree(root: type[Sam2BackendError]) -> dict[str, type[Sam2BackendError]]:
    return {root.code: root} | {code: error for child in root.__subclasses__() for code, error in _tree(child).items()}


ERRORS_BY_CODE: dict[str, type[Sam2BackendError]] = _tree(Sam2BackendError)
"""Every error by its code; a test keeps the codes distinct."""


def error_from_code(code: str, message: str, retry_after_s: float | None = None) -> Sam2BackendError:
    """Rebuild an error that crossed the queue as a value; an unknown code becomes the root error."""
    return ERRORS_BY_CODE.get(code, Sam2BackendError)(message, retry_after_s=retry_after_s)
