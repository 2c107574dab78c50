"""The routes of the server: maps each path to its endpoint.

Knows HTTP through Starlette; leaves the contents of requests and answers to the other modules.
"""

from __future__ import annotations

import asyncio
import mimetypes
import sys
import traceback
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import ExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from inference import __version__
from inference.engine.request import TokenLogprob
from inference.errors import did_you_mean
from inference.generation.passes import embeddings
from inference.serve import bodies, metrics, responses
from inference.serve.answers import Answers, as_event
from inference.serve.bodies import Ask, read_ask
from inference.serve.embeddings import embeddings_answer, read_embeddings
from inference.serve.errors import RequestError, as_request_error
from inference.serve.generation import LeftError, Rows, Work
from inference.serve.limits import check_client, read_body, wait_for_disconnect
from inference.serve.listen import Listener
from inference.serve.responses import as_chat
from inference.serve.service import Service
from inference.serve.texts import detokenize, tokenize, tokenizer_info

PAGE = Path(__file__).with_name("page")
# The page may load only its own script and style, and nothing from another host.
PAGE_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}
Act = Callable[[Service, Request], Awaitable[Response]]


class State:
    """State of a server: `service` is set once the model is loaded, `failure` once it can no longer answer."""

    def __init__(self, listener: Listener, page: bool = True):
        self.listener, self.page = listener, page
        self.service: Service | None = None
        self.failure: str | None = None
        self.is_ending = False


def build_app(state: State) -> Starlette:
    """Builds the application."""
    routes = [
        Route("/health", _plain(state, _health), methods=["GET"]),
        Route("/ready", _plain(state, _ready), methods=["GET"]),
        Route("/version", _plain(state, _version), methods=["GET"]),
        Route("/metrics", _guarded(state, _metrics), methods=["GET"]),
        Route("/v1/models", _guarded(state, _models), methods=["GET"]),
        Route("/v1/models/{name:path}", _guarded(state, _model), methods=["GET"]),
        Route(bodies.CHAT, _guarded(state, _generate), methods=["POST"]),
        Route(bodies.COMPLETIONS, _guarded(state, _generate), methods=["POST"]),
        Route("/v1/responses", _guarded(state, _respond), methods=["POST"]),
        Route("/v1/embeddings", _guarded(state, _embeddings), methods=["POST"]),
        Route("/tokenize", _guarded(state, _tokenize), methods=["POST"]),
        Route("/tokenizer_info", _guarded(state, _tokenizer_info), methods=["GET"]),
        Route("/detokenize", _guarded(state, _detokenize), methods=["POST"]),
    ]
    paths = [route.path for route in routes]
    if state.page and PAGE.is_dir():
        routes += [
            Route(path, _file(name), methods=["GET"])
            for path, name in (("/", "index.html"), ("/chat.js", "chat.js"), ("/chat.css", "chat.css"))
        ]

    async def refuse(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        message = f"{request.method} is not for {request.url.path}"
        if error.status_code == 404:
            hint = did_you_mean(request.url.path, paths) or f"it has: {', '.join(paths)}"
            message = f"this server has no {request.url.path[:200]}; {hint}"
        return RequestError(error.status_code, message, headers=error.headers).response()

    return Starlette(routes=routes, exception_handlers={HTTPException: refuse})


def _file(name: str) -> Callable[[Request], Awaitable[Response]]:
    """Makes the endpoint of one file of the chat page."""
    data, (kind, _) = (PAGE / name).read_bytes(), mimetypes.guess_type(name)

    async def endpoint(request: Request) -> Response:
        return Response(data, media_type=kind, headers=PAGE_HEADERS)

    return endpoint


def _plain(state: State, act: Callable[[State], Response]) -> Callable[[Request], Awaitable[Response]]:
    """Wraps an endpoint that needs no key and answers in any state."""

    async def endpoint(request: Request) -> Response:
        return act(state)

    return endpoint


def _guarded(state: State, act: Act) -> Callable[[Request], Awaitable[Response]]:
    """Wraps an endpoint that checks the client and needs a loaded model; reports failures in OpenAI's format."""

    async def endpoint(request: Request) -> Response:
        service = state.service
        try:
            check_client(request, state.listener)
            if service is None:
                message = state.failure or "the model is loading; try again in a moment"
                raise RequestError(503, message, code="not_ready", headers={"Retry-After": "1"})
            response = await act(service, request)
        except ClientDisconnect:
            response = Response(status_code=499)
        except Exception as error:
            told = as_request_error(error)
            if told.status >= 500 and service is not None:
                _log(request, error, told)
            response = told.response()
        if service is not None:
            service.figures.responded(request.scope["route"].path, response.status_code)
        return response

    return endpoint


def _log(request: Request, error: Exception, told: RequestError) -> None:
    """Logs an error for the server's operator: one line, with a traceback if the error is unexpected."""
    sys.stderr.write(f"{request.method} {request.url.path}: {told.status}: {type(error).__name__}: {error}\n")
    if told.code == "internal_error":
        traceback.print_exception(error)


def _health(state: State) -> Response:
    """Reports whether the process is alive and can still answer."""
    if state.failure is not None:
        return JSONResponse({"status": "failed", "reason": state.failure}, 503)
    return JSONResponse({"status": "ok"})


def _ready(state: State) -> Response:
    """Reports whether the server is ready for requests."""
    if state.failure is not None:
        return JSONResponse({"status": "failed", "reason": state.failure}, 503)
    if state.is_ending or state.service is None:
        return JSONResponse({"status": "ending" if state.is_ending else "loading"}, 503, {"Retry-After": "1"})
    return JSONResponse({"status": "ready"})


def _version(state: State) -> Response:
    return JSONResponse({"version": __version__})


async def _metrics(service: Service, request: Request) -> Response:
    return Response(service.figures.text(), headers={"Content-Type": metrics.CONTENT_TYPE})


def _model_card(service: Service, name: str, adapter: str) -> dict[str, Any]:
    base = service.names[0]
    return {
        "id": name,
        "object": "model",
        "created": int(service.created),
        "owned_by": "mindspore-inference",
        "root": name if adapter else base,
        "parent": base if adapter else None,
        "max_model_len": service.model.config.context_length,
    }


async def _models(service: Service, request: Request) -> Response:
    cards = [_model_card(service, name, adapter) for name, adapter in service.models.items()]
    return JSONResponse({"object": "list", "data": cards})


async def _model(service: Service, request: Request) -> Response:
    name = request.path_params["name"]
    return JSONResponse(_model_card(service, name, bodies.adapter_of(name, service.models)))


async def _tokenize(service: Service, request: Request) -> Response:
    body = await read_body(request, service.settings)
    return JSONResponse(await service.in_thread(tokenize, service, body))


async def _detokenize(service: Service, request: Request) -> Response:
    body = await read_body(request, service.settings)
    return JSONResponse(await service.in_thread(detokenize, service, body))


async def _tokenizer_info(service: Service, request: Request) -> Response:
    return JSONResponse(tokenizer_info(service))


async def _embeddings(service: Service, request: Request) -> Response:
    body = await read_body(request, service.settings)
    ask = await service.in_thread(read_embeddings, service, body)
    with service.admission.enter(len(ask.rows)):
        work = service.measure(embeddings, ask.rows, ask.pooling)
        async with _cancelled_with_client(request.receive, work):
            vectors = await work.result()
        return JSONResponse(await service.in_thread(embeddings_answer, ask, vectors))


async def _generate(service: Service, request: Request) -> Response:
    """Answers `/v1/chat/completions` and `/v1/completions`."""
    body = await read_body(request, service.settings)
    ask = read_ask(body, request.scope["route"].path, service.settings, service.models)
    return await _answer(service, request, ask, lambda answers: answers)


async def _respond(service: Service, request: Request) -> Response:
    """Answers `/v1/responses`."""
    body = await read_body(request, service.settings)
    ask = read_ask(as_chat(body), bodies.CHAT, service.settings, service.models)
    name = ask.model or service.names[0]
    return await _answer(service, request, ask, lambda answers: responses.Response(body, answers, name))


async def _answer(
    service: Service, request: Request, ask: Ask, form: Callable[[Answers], Answers | responses.Response]
) -> Response:
    """Runs the rows of a request.

    Args:
        form: returns the answers in the format of the endpoint.
    """
    with ExitStack() as place:
        place.enter_context(service.admission.enter(len(ask.prompts) * ask.samples))
        rows = await service.in_thread(service.rows, ask)
        name, finished = ask.model or service.names[0], service.figures.finished
        known: list[list[TokenLogprob]] = []
        if ask.prompt_logprobs is not None:
            scores = service.prompt_logprobs(rows[:: ask.samples], ask.prompt_logprobs)
            async with _cancelled_with_client(request.receive, scores):
                known = await scores.result()
        answers = Answers(ask, name, rows, service.tokenizer, finished=finished, prompt_logprobs=known)
        if ask.only_prompt:
            return JSONResponse(answers.without_text())
        running = service.start(rows, every_token=ask.stream)
        place.callback(running.cancel)
        async with _cancelled_with_client(request.receive, running):
            if not ask.stream:
                return JSONResponse(await form(answers).whole(running))
            # Wait for the first output, so that a prompt rejected by the engine still gets its own HTTP status.
            await running.begun()
        return _EventStream(form(answers), running, place.pop_all())


@asynccontextmanager
async def _cancelled_with_client(receive: Receive, running: Rows | Work[Any]) -> AsyncIterator[None]:
    """Cancels the rows as soon as their client disconnects.

    Raises:
        ClientDisconnect: the client has disconnected.
    """

    async def watch() -> None:
        await wait_for_disconnect(receive)
        running.cancel()

    watcher = asyncio.create_task(watch())
    try:
        yield
    except LeftError:
        raise ClientDisconnect from None
    finally:
        watcher.cancel()
        with suppress(asyncio.CancelledError):
            await watcher


class _EventStream(Response):
    """Streams answers as server-sent events, as fast as the client reads.

    Args:
        place: resources to release at the end.
    """

    def __init__(self, answers: Answers | responses.Response, running: Rows, place: ExitStack):
        # Keep proxies from buffering the events.
        super().__init__(
            media_type="text/event-stream", headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
        )
        del self.headers["content-length"]
        self._answers, self._running, self._place = answers, running, place

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with self._place, suppress(ClientDisconnect):
            async with _cancelled_with_client(receive, self._running):
                await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
                async for data in self._events():
                    await send({"type": "http.response.body", "body": data, "more_body": True})
                await send({"type": "http.response.body", "body": b""})

    async def _events(self) -> AsyncIterator[bytes]:
        """Yields the events; an error during the stream becomes the last event."""
        try:
            async for data in self._answers.events(self._running):
                yield data
        except LeftError:
            raise
        except Exception as error:
            told = as_request_error(error)
            sys.stderr.write(f"a stream ended: {type(error).__name__}: {error}\n")
            yield as_event(told.body)
