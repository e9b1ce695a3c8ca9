"""Replicas of `qernel serve` behind Ray Serve.

    client -> Serve's proxy -> Ingress -> (Ray's router, by the conversation's beginning) -> Engine -> `qernel serve`

`Engine` is a replica: it starts the server on the GPUs that Ray gave it, hands requests over and lives as long as the server does. `Ingress`
takes every path of the server, chooses what is routed together, asks another replica where one is lost before its answer began, and says
so in the stream where it is lost later. `build` makes the application of both; README.md beside this file has its arguments.
"""

import asyncio
import collections
import ctypes
import dataclasses
import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator

import aiohttp
import ray
from ray import serve
from ray.exceptions import RayError, RayTaskError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError
from ray.serve.handle import DeploymentHandle
from starlette.requests import Request as HttpRequest
from starlette.responses import Response, StreamingResponse

# Of one hop, not of the request (RFC 9110, 7.6.1), and what the next hop writes itself.
HOP_BY_HOP = {"connection", "content-length", "date", "expect", "host", "keep-alive", "proxy-authenticate", "proxy-authorization", "te",
              "trailer", "transfer-encoding", "upgrade"}
LISTENING = re.compile(r"listening on (http://\S+)")
LAST_LINES = 20


@dataclasses.dataclass(frozen=True)
class Request:
    """What a client asked for."""

    method: str
    path: str
    headers: list[tuple[str, str]]
    body: bytes


@dataclasses.dataclass(frozen=True)
class Head:
    """The beginning of an answer: it is there with its first bytes, not before."""

    status: int
    headers: list[tuple[str, str]]
    body: bytes

    @property
    def is_events(self) -> bool:
        return any(name.lower() == "content-type" and value.startswith("text/event-stream") for name, value in self.headers)


@dataclasses.dataclass(frozen=True)
class Lost:
    """The server ended before its answer did."""

    reason: str


class Engine:
    """One `qernel serve`, a child of this process."""

    async def __init__(self, binary: str, args: list[str], stream_interval_s: float, start_timeout_s: float, stop_timeout_s: float):
        gpus = ray.get_runtime_context().get_accelerator_ids().get("GPU", [])
        environment = dict(os.environ)
        if gpus:
            environment["CUDA_VISIBLE_DEVICES"] = ",".join(gpus)
        device = [] if "--device" in args else ["--device", "cuda" if gpus else "cpu"]
        command = [binary, "serve", "--host", "127.0.0.1", "--port", "0", *device,
                   "--shutdown-timeout", str(max(1, int(stop_timeout_s))), *args]
        self._stream_interval_s = stream_interval_s
        self._stop_timeout_s = stop_timeout_s
        self._is_stopping = False
        self._lines: collections.deque[str] = collections.deque(maxlen=LAST_LINES)
        self._address: str | None = None
        try:
            self._process = subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                                             stderr=subprocess.PIPE, preexec_fn=_end_with_parent())
        except OSError as error:
            raise RuntimeError(f"{binary} does not start: {error}; `binary` is the program's path on every node") from error
        self._reader = threading.Thread(target=self._read_log, name="qernel-log", daemon=True)
        self._reader.start()
        connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=10)
        # The server bounds the time of an answer.
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=10)
        self._session = aiohttp.ClientSession(connector=connector, timeout=timeout, auto_decompress=False)
        try:
            await self._wait_until_ready(time.monotonic() + start_timeout_s)
        except BaseException:
            self._process.kill()
            await self._session.close()
            raise
        self._watch = asyncio.create_task(self._end_with_server())

    def _read_log(self) -> None:
        """The server's log becomes this process's, which Ray keeps."""
        for line in self._process.stderr:
            line = line.decode(errors="replace").rstrip()
            self._lines.append(line)
            if self._address is None and (found := LISTENING.search(line)):
                self._address = found[1]
            print(line, file=sys.stderr, flush=True)

    async def _wait_until_ready(self, deadline: float) -> None:
        reason = "it does not say where it listens"
        while time.monotonic() < deadline:
            if (status := self._process.poll()) is not None:
                self._reader.join(1)
                log = "\n".join(self._lines)
                raise RuntimeError(f"`qernel serve` ended with status {status} before it was ready:\n{log}")
            if self._address:
                try:
                    async with self._session.get(f"{self._address}/health") as response:
                        if response.status == 200:
                            return
                        reason = await response.text()
                except aiohttp.ClientError as error:
                    reason = str(error)
            await asyncio.sleep(0.05)
        raise RuntimeError(f"`qernel serve` was not ready in time (`start_timeout_s`): {reason}")

    async def _end_with_server(self) -> None:
        """A replica without its server answers nothing: it ends at once, so that Serve starts another."""
        while self._process.poll() is None:
            await asyncio.sleep(0.2)
        if not self._is_stopping:
            print(f"`qernel serve` ended with status {self._process.returncode}; so does its replica", file=sys.stderr, flush=True)
            # What was being answered learns of it first.
            await asyncio.sleep(0.2)
            os._exit(1)

    async def answer(self, request: Request) -> AsyncIterator[Head | bytes | Lost]:
        """A `Head`, and then bytes; of a stream whole events, so that another can follow them. `Lost` is the last where it is cut short."""
        try:
            async with self._session.request(request.method, self._address + request.path, headers=request.headers, data=request.body,
                                             allow_redirects=False) as response:
                headers = [(name, value) for name, value in response.headers.items() if name.lower() not in HOP_BY_HOP]
                head = Head(response.status, headers, b"")
                kept = b""
                async for part in response.content.iter_any():
                    if head.is_events:
                        whole, end, kept = (kept + part).rpartition(b"\n\n")
                        part = whole + end
                        if not part:
                            continue
                    if head.body:
                        yield part
                    else:
                        head = dataclasses.replace(head, body=part)
                        yield head
                    if head.is_events:
                        # What comes meanwhile goes together: a part costs three processes far more than its bytes do.
                        await asyncio.sleep(self._stream_interval_s)
                if not head.body:
                    yield dataclasses.replace(head, body=kept)
                elif kept:
                    yield kept
        except (aiohttp.ClientError, OSError) as error:
            yield Lost(str(error) or type(error).__name__)

    async def check_health(self) -> None:
        """Serve asks now and then; what is raised here makes it start another replica."""
        async with self._session.get(f"{self._address}/health", timeout=aiohttp.ClientTimeout(total=10)) as response:
            if response.status != 200:
                raise RuntimeError(f"`qernel serve` is not well: {await response.text()}")

    async def describe(self) -> dict:
        """Who this replica is: for tests, and for people who look for a server."""
        context = ray.get_runtime_context()
        return {"replica": serve.get_replica_context().replica_id.unique_id, "node": context.get_node_id(), "pid": os.getpid(),
                "server_pid": self._process.pid, "address": self._address}

    async def __del__(self) -> None:
        """Serve has waited until nothing is being answered, for at most `graceful_shutdown_timeout_s`."""
        process = getattr(self, "_process", None)
        if process is None or process.poll() is not None:
            return
        self._is_stopping = True
        await self._session.close()
        process.send_signal(signal.SIGTERM)
        try:
            await asyncio.to_thread(process.wait, self._stop_timeout_s + 5)
        except subprocess.TimeoutExpired:
            process.kill()


def _end_with_parent():
    """What the child does before it becomes the server: it asks the system to be killed with its parent, which may be killed itself."""
    libc, parent, set_death_signal = ctypes.CDLL(None, use_errno=True), os.getpid(), 1
    prctl = libc.prctl

    def ask() -> None:
        prctl(set_death_signal, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != parent:
            os._exit(1)

    return ask


class Ingress:
    """Every path of the server, answered by some replica."""

    def __init__(self, engine: DeploymentHandle, prefix_chars: int, retry_for_s: float):
        self._engine = engine.options(method_name="answer", stream=True)
        self._prefix_chars = prefix_chars
        self._retry_for_s = retry_for_s

    async def __call__(self, http: HttpRequest) -> Response:
        path = http.url.path
        target = f"{path}?{http.url.query}" if http.url.query else path
        headers = [(name, value) for name, value in http.headers.items() if name not in HOP_BY_HOP]
        request = Request(http.method, target, headers, await http.body())
        key = routing_key(request.body, self._prefix_chars)
        deadline, attempt, reason = time.monotonic() + self._retry_for_s, 0, ""
        while True:
            # A second attempt hashes to another place of the ring.
            session = f"{key}/{attempt}" if key and attempt else key
            answer = self._engine.options(session_id=session).remote(request) if session else self._engine.remote(request)
            is_kept = False
            try:
                head = await anext(answer)
                if isinstance(head, Lost):
                    reason = head.reason
                elif head.status == 503 and time.monotonic() < deadline:
                    reason = head.body.decode(errors="replace")
                elif head.is_events:
                    is_kept = True
                    events = self._events(path, head, answer)
                    return with_headers(StreamingResponse(events, head.status), head)
                else:
                    body, reason = await rest(head, answer)
                    if body is not None:
                        return with_headers(Response(body, head.status), head)
            except BackPressureError:
                message = "as many requests wait as this fleet takes; try again"
                return error_response(path, 429, "rate_limit_error", "queue_full", message, {"retry-after": "1"})
            except (RayError, DeploymentUnavailableError, StopAsyncIteration) as error:
                reason = f"{type(error).__name__}: {error}".splitlines()[0]
                if isinstance(error, RayTaskError) and attempt > 0:
                    # Not the replica's end, but something that goes wrong wherever it is tried.
                    return error_response(path, 500, "server_error", None, f"the request could not be handed over: {reason}", {})
            finally:
                if not is_kept:
                    answer.cancel()
            if time.monotonic() >= deadline:
                message = f"no replica answered within {self._retry_for_s:g} s; the last one's reason: {reason}"
                return error_response(path, 503, "server_error", "replica_lost", message, {"retry-after": "5"})
            await asyncio.sleep(min(2.0, 0.1 * 2 ** attempt))
            attempt += 1

    async def _events(self, path: str, head: Head, answer) -> AsyncIterator[bytes]:
        last = head.body
        try:
            yield head.body
            async for part in answer:
                if isinstance(part, Lost):
                    yield error_event(path, part.reason, last)
                    return
                last = part
                yield part
        except RayError as error:
            yield error_event(path, type(error).__name__, last)
        finally:
            # A client that left ends the sequence; an answer that is complete has nothing left to cancel.
            answer.cancel()


async def rest(head: Head, answer) -> tuple[bytes | None, str]:
    """All of an answer that is no stream, or why it is not complete."""
    parts = [head.body]
    async for part in answer:
        if isinstance(part, Lost):
            return None, part.reason
        parts.append(part)
    return b"".join(parts), ""


def with_headers(response: Response, head: Head) -> Response:
    """The server's headers, as they were."""
    length = [(name, value) for name, value in response.raw_headers if name == b"content-length"]
    response.raw_headers = length + [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in head.headers]
    return response


def routing_key(body: bytes, prefix_chars: int) -> str | None:
    """What requests have in common that should meet the same prefix cache; None where nothing is known of that.

    Of a conversation it is what comes before the user's first message (system, instructions), whole, and the beginning of that message: later
    turns have the same key, and conversations that share their system message alone are spread. Of a plain prompt it is the
    beginning. `prompt_cache_key`, OpenAI's field for this, is taken for it.
    """
    try:
        request = json.loads(body)
    except ValueError:
        return None
    if not isinstance(request, dict):
        return None
    if isinstance(request.get("prompt_cache_key"), str):
        return digest([request["prompt_cache_key"]])
    before = [json.dumps(request[name], sort_keys=True) for name in ("instructions", "system") if request.get(name)]
    turns = request.get("messages") or request.get("input")
    if isinstance(turns, list) and turns and all(isinstance(turn, dict) for turn in turns):
        for turn in turns:
            text = json.dumps(turn.get("content"), sort_keys=True)
            if turn.get("role") not in ("system", "developer"):
                return digest([*before, text[:prefix_chars]])
            before.append(text)
        return digest(before)
    text = next((request[name] for name in ("prompt", "input", "input_prefix") if request.get(name)), None)
    if text is None:
        return None
    return digest([*before, (text if isinstance(text, str) else json.dumps(text))[:prefix_chars]])


def digest(parts: list[str]) -> str:
    return hashlib.sha256("\0".join(parts).encode(errors="surrogatepass")).hexdigest()


def error_object(path: str, kind: str, code: str | None, message: str) -> dict:
    """An error in the form of the path's interface."""
    if path.startswith("/v1/messages"):
        return {"type": "error", "error": {"type": "rate_limit_error" if kind == "rate_limit_error" else "api_error", "message": message}}
    return {"error": {"message": message, "type": kind, "param": None, "code": code}}


def error_response(path: str, status: int, kind: str, code: str | None, message: str, headers: dict[str, str]) -> Response:
    return Response(json.dumps(error_object(path, kind, code, message)), status, headers, "application/json")


def error_event(path: str, reason: str, last: bytes) -> bytes:
    """The last event of a stream that another replica cannot go on with: what was said may have been drawn at random."""
    message = f"the replica that made this answer was lost ({reason}); what came so far is all there is of it, ask again"
    event = error_object(path, "server_error", "replica_lost", message)
    if path == "/v1/responses":
        numbers = re.findall(rb'"sequence_number":\s*(\d+)', last)
        number = int(numbers[-1]) + 1 if numbers else 0
        event = {"type": "error", "sequence_number": number, "code": "replica_lost", "message": message, "param": None, **event}
    return f"event: error\ndata: {json.dumps(event)}\n\n".encode()


DEFAULTS = {
    "binary": "qernel",
    "args": [],
    "prefix_chars": 1024,
    "stream_interval_s": 0.02,
    "retry_for_s": 60.0,
    "start_timeout_s": 600.0,
    "stop_timeout_s": 30.0,
}
# Ray's own: a ring on which each key has its replica, and the next ones where that has as much as it takes (`max_ongoing_requests`).
ROUTER = {
    "request_router_class": "ray.serve.experimental.consistent_hash_router.ConsistentHashRouter",
    "request_router_kwargs": {"num_virtual_nodes": 100, "num_fallback_replicas": 1000},
}


def build(args: dict) -> serve.Application:
    """The application. `args` are those of `DEFAULTS`; everything else is Serve's, in `deployments` of the configuration."""
    if unknown := set(args) - set(DEFAULTS):
        raise ValueError(f"unknown arguments {sorted(unknown)}; expected some of {sorted(DEFAULTS)}")
    values = {**DEFAULTS, **args}
    if not isinstance(values["args"], list) or not all(isinstance(arg, str) for arg in values["args"]):
        raise ValueError(f"args: expected a list of strings, as they follow `qernel serve`, found {values['args']!r}")
    engine = serve.deployment(Engine, name="engine", request_router_config=ROUTER, max_ongoing_requests=64).bind(
        values["binary"], values["args"], float(values["stream_interval_s"]), float(values["start_timeout_s"]),
        float(values["stop_timeout_s"]))
    ingress = serve.deployment(Ingress, name="ingress", max_ongoing_requests=2048).bind(
        engine, int(values["prefix_chars"]), float(values["retry_for_s"]))
    return ingress
