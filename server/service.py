"""Builds everything from the settings and runs it in one event loop: app, batcher, mailbox, start-up, HTTP server."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from importlib import metadata

import structlog
import uvicorn
from fastapi import APIRouter, FastAPI

from decoding.contract.plugins import NO_PLUGINS, Plugins
from server.app import api_routers, create_app
from server.http.connection import limited
from server.http.server import HttpServer
from server.observe.error_stream import ErrorStream
from server.observe.metrics import Metrics
from server.observe.vllm_aliases import VllmAliases
from server.queue.batcher import Batcher
from server.settings.limits import Limits
from server.settings.sections import NetworkSettings, QueueSettings, SupervisionSettings
from server.settings.settings import Settings
from server.startup import LoadTokenizer, Startup, served_names
from server.text.tokenizer import Tokenizer
from server.wire.plugins import WireTypes, wire_types
from server.worker.descriptors import room_for_connections
from server.worker.head_start import WORKER_COMMAND, HeadStart
from server.worker.mailbox import Mailbox, WorkerGaveUp
from server.worker.model_files import ModelError
from server.worker.orphans import inherits_orphans, reap_orphans
from server.worker.progress import ProgressDisplay

CLOSE_SECONDS = 5  # for the last bytes of answered requests after the drain


@dataclass(frozen=True, slots=True)
class Parts:
    """What a test replaces: the worker's command, the tokenizer's loader, the API's routes.

    head_start: a worker of that command that runs already, for the first life.
    """

    worker_command: Sequence[str] = WORKER_COMMAND
    load_tokenizer: LoadTokenizer = Tokenizer.from_directory
    routers: Callable[[Batcher, Limits, WireTypes], Sequence[APIRouter]] = field(default=api_routers)
    head_start: HeadStart | None = None


class Service:
    """Making one raises TooFewDescriptors, and PluginError where a plugin's fields cannot be."""

    def __init__(
        self,
        settings: Settings,
        display: ProgressDisplay,
        parts: Parts | None = None,
        errors: ErrorStream | None = None,
        plugins: Plugins = NO_PLUGINS,
    ) -> None:
        parts = parts or Parts()
        self._settings = settings
        self._log = structlog.get_logger("service")
        self._failure: str | None = None
        self._metrics = _metrics(settings, plugins)
        if errors is not None:
            self._metrics.watch_log(lambda: errors.num_dropped)
        self._batcher = Batcher(settings.section(QueueSettings), self._metrics)
        self._startup = Startup(settings, self._batcher, display, parts.load_tokenizer)
        supervision = settings.section(SupervisionSettings)
        self._mailbox = Mailbox(self._batcher, supervision, parts.worker_command, parts.head_start)
        network = settings.section(NetworkSettings).model_copy(update={"max_connections": self._max_connections()})
        app = create_app(
            network,
            self._batcher,
            self._metrics,
            parts.routers(self._batcher, settings.section(Limits), wire_types(plugins)),
            lifespan=self._lifespan,
            is_access_logged=settings.access_log,
        )
        config = _uvicorn_config(app, network, settings.send_timeout)
        self._server = HttpServer(config, self._drain, self._mailbox.kill)

    def _max_connections(self) -> int:
        wanted = self._settings.max_connections
        possible = room_for_connections(wanted)
        if possible < wanted:
            reason = "raise the limit of open files (ulimit -n)"
            self._log.warning(
                "fewer connections than asked for", max_connections=wanted, possible=possible, help=reason
            )
        return possible

    def run(self, listener: socket.socket) -> str | None:
        """Serves until a signal or a failure; says what failed, if anything did."""
        host, port = listener.getsockname()[:2]
        self._log.info("listening", url=f"http://{f'[{host}]' if ':' in host else host}:{port}")
        self._server.run(sockets=[listener])
        return self._failure

    @contextlib.asynccontextmanager
    async def _lifespan(self, _: FastAPI) -> AsyncIterator[None]:
        working = asyncio.create_task(self._work())
        reaping = asyncio.create_task(reap_orphans()) if inherits_orphans() else None
        yield
        if reaping is not None:
            reaping.cancel()
        await self._mailbox.stop()
        if not self._mailbox.is_told:  # still preparing, or waiting for the next try
            working.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await working

    async def _work(self) -> None:
        """The worker's supervision. Its end is the server's end."""
        try:
            await self._startup.run(self._mailbox)
        except (ModelError, WorkerGaveUp) as error:
            self._failure = str(error)
        except Exception as error:
            self._failure = f"internal error: {type(error).__name__}"
            self._log.exception("start-up failed")
        if self._failure is not None:
            self._server.stop()

    async def _drain(self) -> None:
        self._log.info("draining", seconds=self._settings.drain_seconds)
        await self._batcher.drain(self._settings.drain_seconds)


def _metrics(settings: Settings, plugins: Plugins) -> Metrics:
    metrics = Metrics(_version(), plugins.params)
    if settings.vllm_metrics:
        name = served_names(settings)[0]
        metrics.registry.register(VllmAliases(metrics, name, has_prefix_cache=settings.prefix_cache))
    return metrics


def _version() -> str:
    try:
        return metadata.version("polydecode")
    except metadata.PackageNotFoundError:  # run from a checkout that is not installed
        return "0+unknown"


def _uvicorn_config(app: FastAPI, network: NetworkSettings, send_timeout: float) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        http=limited(network, send_timeout),
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=round(network.keep_alive),
        timeout_graceful_shutdown=CLOSE_SECONDS,
    )
