"""REST client of Label Studio: what the demo, the doctor and the tests ask of it. The token goes to its origin only."""

from __future__ import annotations

import ipaddress
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from http import HTTPStatus
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import urlsplit

import requests
from requests.adapters import HTTPAdapter
from urllib3.util.retry import Retry

from backend.fast_json import dumps, loads
from sam2_backend.credentials import OriginCredentials
from sam2_backend.errors import MediaUnreachableError, Sam2BackendError

#: GET only: repeating a POST would make a second project.
_RETRIES = Retry(total=3, backoff_factor=0.3, status_forcelist=(429, 502, 503, 504), allowed_methods=("GET",), raise_on_status=False)
_IS_JSON = {"Content-Type": "application/json"}
_AWAY = frozenset((429, 502, 503, 504))
#: Connecting a backend makes Label Studio call /health and /setup twice, with retries of its own.
_CONNECT_BACKEND_S = 60.0


class LabelStudioError(Sam2BackendError):
    """Label Studio does not answer, or refuses what it was asked."""

    code = "label_studio"
    status: ClassVar[HTTPStatus] = HTTPStatus.BAD_GATEWAY
    answered = 0
    """The status that it answered with; 0: none."""


class LabelStudioAwayError(LabelStudioError):
    """It restarts, is overloaded or cannot be reached: asking again later may help. What was asked may have been done."""

    code = "label_studio_away"


class LabelStudio:
    """One Label Studio, as one user."""

    def __init__(self, base_url: str, api_key: str, *, timeout_s: float = 30.0) -> None:
        """Connects lazily.

        Args:
            base_url: Address, sub-path included.
            api_key: Legacy token or personal access token.
            timeout_s: Longest pause of one answer.
        """
        self.base_url, self._timeout_s = base_url.rstrip("/"), timeout_s
        self._session = requests.Session()
        self._session.adapters.clear()
        for origin in _own_origins(self.base_url):  # a redirect anywhere else is an address without an adapter, and is not followed
            self._session.mount(f"{origin}/", HTTPAdapter(max_retries=_RETRIES))
        self._session.auth = _OriginAuth(OriginCredentials(self.base_url, api_key))  # also keeps ~/.netrc out
        self._session.trust_env = not _is_loopback(self.base_url)  # a proxy cannot reach this machine's loopback

    def close(self) -> None:
        self._session.close()

    def version(self) -> str:
        """Its release, such as 1.23.2; asks without a token."""
        return str(self._get("/api/version").get("release", ""))

    def whoami(self) -> dict[str, Any]:
        """The user whom the token belongs to."""
        return self._get("/api/current-user/whoami")

    def projects(self) -> Iterator[dict[str, Any]]:
        """Every project that the user sees."""
        return self._pages("/api/projects", "results", "count", {})

    def project(self, project_id: int) -> dict[str, Any]:
        return self._get(f"/api/projects/{project_id}")

    def project_fields(self, project_id: int, *fields: str) -> dict[str, Any]:
        """Some fields of a project: for all of them Label Studio counts its tasks, annotations and predictions."""
        return self._get(f"/api/projects/{project_id}", {"include": ",".join(fields)})

    def tabs(self, project_id: int) -> list[dict[str, Any]]:
        """The tabs of a project's data manager with their filters, orderings and selections, of all users."""
        return self._list("/api/dm/views", {"project": project_id})

    def first_tasks(self, project_id: int, query: Mapping[str, Any], count: int) -> tuple[list[dict[str, Any]], int]:
        """What a query of the data manager finds: the first tasks, with their data as stored, and how many there are in all.

        Asked for as for a review, for only then a project that evaluates predictions automatically does not ask its backend about each of them.
        """
        asked = {"project": project_id, "resolve_uri": "false", "review": "true", "page": 1, "page_size": count, "query": json.dumps(query)}
        answer = self._get("/api/tasks", asked)
        return answer["tasks"], answer["total"]

    def create_project(self, title: str, label_config: str, **fields: Any) -> dict[str, Any]:
        """Make a project; `fields` are those of Label Studio's API."""
        return self._send("POST", "/api/projects", {"title": title, "label_config": label_config, **fields})

    def update_project(self, project_id: int, **fields: Any) -> dict[str, Any]:
        return self._send("PATCH", f"/api/projects/{project_id}", fields)

    def delete_project(self, project_id: int) -> None:
        self._request("DELETE", f"/api/projects/{project_id}")

    def tasks(self, project_id: int) -> Iterator[dict[str, Any]]:
        """Every task of a project, with its annotations and predictions, oldest first."""
        return self._pages("/api/tasks", "tasks", "total", {"project": project_id, "fields": "all"})

    def task(self, task_id: int) -> dict[str, Any]:
        return self._get(f"/api/tasks/{task_id}")

    def create_prediction(self, task_id: int, result: Sequence[Mapping[str, Any]], *, score: float | None, model_version: str) -> int:
        """Add a prediction to a task. Returns its id."""
        body = {"task": task_id, "result": list(result), "score": score, "model_version": model_version}
        return int(self._send("POST", "/api/predictions", body)["id"])

    def import_tasks(self, project_id: int, tasks: Sequence[Mapping[str, Any]]) -> int:
        """Add tasks; each is the data of one task, or `{"data": …, "predictions": …}`. Returns how many were added."""
        answer = self._send("POST", f"/api/projects/{project_id}/import", list(tasks))
        return int(answer["task_count"])

    def upload_files(self, project_id: int, paths: Sequence[Path]) -> int:
        """Upload files, one task each. Returns how many tasks were added."""
        files = [(path.name, (path.name, path.read_bytes())) for path in paths]
        answer = self._request("POST", f"/api/projects/{project_id}/import", files=files)
        return int(_json(answer)["task_count"])

    def ml_backends(self, project_id: int) -> list[dict[str, Any]]:
        """The backends connected to a project. Label Studio calls the /health and /setup of each before it answers."""
        return self._list("/api/ml", {"project": project_id})

    def connect_ml_backend(
        self,
        project_id: int,
        url: str,
        title: str,
        *,
        is_interactive: bool = True,
        basic_auth: tuple[str, str] | None = None,
        extra_params: Mapping[str, Any] | None = None,
    ) -> dict[str, Any]:
        """Connect a backend to a project.

        Raises:
            LabelStudioError: Label Studio cannot reach it, or refuses private addresses.
        """
        body: dict[str, Any] = {"project": project_id, "url": url, "title": title, "is_interactive": is_interactive}
        if basic_auth:
            body |= {"auth_method": "BASIC_AUTH", "basic_auth_user": basic_auth[0], "basic_auth_pass": basic_auth[1]}
        if extra_params:
            body["extra_params"] = dict(extra_params)
        return self._send("POST", "/api/ml", body, timeout_s=_CONNECT_BACKEND_S)

    def disconnect_ml_backend(self, backend_id: int) -> None:
        """Disconnect a backend. The webhook that Label Studio made for it stays: see `webhooks`."""
        self._request("DELETE", f"/api/ml/{backend_id}", timeout_s=_CONNECT_BACKEND_S)

    def webhooks(self, project_id: int) -> list[dict[str, Any]]:
        return self._list("/api/webhooks", {"project": project_id})

    def delete_webhook(self, webhook_id: int) -> None:
        self._request("DELETE", f"/api/webhooks/{webhook_id}/")

    def create_local_storage(self, project_id: int, path: Path, title: str) -> dict[str, Any]:
        """Let a project's tasks name files below `path` as /data/local-files/?d=…

        Raises:
            LabelStudioError: local file serving is off, or `path` is outside the document root of Label Studio.
        """
        body = {"project": project_id, "path": str(path), "title": title, "use_blob_urls": True}
        return self._send("POST", "/api/storages/localfiles", body)

    def _pages(self, path: str, items: str, total: str, query: Mapping[str, Any], page_size: int = 100) -> Iterator[dict[str, Any]]:
        """Pages are numbered here: the `next` links carry the host that Label Studio believes to have."""
        page, seen = 1, 0
        while True:
            answer = self._get(path, {**query, "page": page, "page_size": page_size})
            yield from answer[items]
            page, seen = page + 1, seen + len(answer[items])
            if not answer[items] or seen >= answer[total]:
                return

    def _get(self, path: str, query: Mapping[str, Any] | None = None) -> dict[str, Any]:
        answer: dict[str, Any] = _json(self._request("GET", path, params=query))
        return answer

    def _list(self, path: str, query: Mapping[str, Any]) -> list[dict[str, Any]]:
        answer: list[dict[str, Any]] = _json(self._request("GET", path, params=query))
        return answer

    def _send(self, method: str, path: str, body: Any, timeout_s: float | None = None) -> dict[str, Any]:
        answer: dict[str, Any] = _json(self._request(method, path, data=dumps(body), headers=_IS_JSON, timeout_s=timeout_s))
        return answer

    def _request(self, method: str, path: str, timeout_s: float | None = None, **arguments: Any) -> requests.Response:
        try:
            response = self._session.request(method, self.base_url + path, timeout=(5.0, timeout_s or self._timeout_s), **arguments)
        except requests.exceptions.InvalidSchema as error:
            raise LabelStudioError(
                f"Label Studio at {self.base_url} sends on to another address, which is not followed. "
                "Set LABEL_STUDIO_URL to the address at which it answers."
            ) from error
        except requests.RequestException as error:
            raise LabelStudioAwayError(
                f"Label Studio at {self.base_url} does not answer ({type(error).__name__}). Is it running, and is LABEL_STUDIO_URL right?"
            ) from error
        except MediaUnreachableError as error:  # the personal access token could not be exchanged
            raise LabelStudioAwayError(error.message) from error
        if response.ok:
            return response
        kind = LabelStudioAwayError if response.status_code in _AWAY else LabelStudioError
        refused = kind(f"Label Studio answered {response.status_code} to {method} {path}: {_detail(response)}{_next_step(response)}")
        refused.answered = response.status_code
        raise refused


class _OriginAuth(requests.auth.AuthBase):
    """Asks for the headers at every request: a personal access token is exchanged again every few minutes."""

    def __init__(self, credentials: OriginCredentials) -> None:
        self._credentials = credentials

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        request.headers.update(self._credentials.headers_for(request.url or ""))
        return request


def _own_origins(base_url: str) -> set[str]:
    """Where requests may go: Label Studio's address, and the same host by https, which many servers redirect to."""
    parts = urlsplit(base_url)
    host = f"[{parts.hostname}]" if ":" in (parts.hostname or "") else parts.hostname
    return {
        f"{parts.scheme}://{parts.netloc}",
        f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}",
        f"https://{host}",
        f"https://{host}:443",
    }


def _is_loopback(url: str) -> bool:
    host = urlsplit(url).hostname or ""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _json(response: requests.Response) -> Any:
    try:
        return loads(response.content)
    except (ValueError, RecursionError) as error:
        where = urlsplit(response.url).path
        raise LabelStudioError(f"{where} answered no JSON: LABEL_STUDIO_URL does not lead to the API of a Label Studio.") from error


def _detail(response: requests.Response) -> str:
    """Label Studio's own words, without its stack trace."""
    try:
        body = response.json()
    except requests.JSONDecodeError:
        return response.reason or "no reason given"
    if not isinstance(body, dict):
        return str(body)[:500]
    parts = [str(body.get("detail") or "")]
    parts += [f"{name}: {reasons}" for name, reasons in (body.get("validation_errors") or {}).items()]
    return re.sub(r"<[^>]*>", "", " ".join(filter(None, parts)))[:500] or response.reason


def _next_step(response: requests.Response) -> str:
    text = response.text
    if response.status_code == HTTPStatus.UNAUTHORIZED:
        if "legacy token authentication has been disabled" in text:
            return " Use a personal access token as LABEL_STUDIO_API_KEY, or switch legacy tokens on in the organization's settings."
        return " Check LABEL_STUDIO_API_KEY: a legacy token or a personal access token of Account & Settings."
    if "reserved network address" in text:
        return " Start Label Studio with USE_DEFAULT_BANNED_SUBNETS=false: it refuses private addresses by default."
    return ""
