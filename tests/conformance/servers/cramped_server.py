"""The real server whose real worker has memory for so many tokens a forward, and no more.

`python -m tests.conformance.servers.cramped_server serve FLAGS` serves it; with a number for its only argument it is
the worker.
"""

from __future__ import annotations

import sys

MOST_TOKENS = 200
COMMAND = (sys.executable, "-m", "tests.conformance.servers.cramped_server")


def serve(flags: list[str]) -> int:
    from server.http.server import bind  # noqa: PLC0415 - the worker needs none of this
    from server.service import Parts, Service  # noqa: PLC0415
    from server.settings.settings import load  # noqa: PLC0415
    from server.worker.progress import LineDisplay  # noqa: PLC0415

    settings = load(flags).settings
    with bind(settings.host, settings.port) as listener:
        return 1 if Service(settings, LineDisplay(sys.stderr), Parts(COMMAND)).run(listener) else 0


def work() -> None:
    import torch  # noqa: PLC0415 - the server must not have it

    from decoding.attention.interface import Batch  # noqa: PLC0415
    from decoding.model.model import Hidden, Model  # noqa: PLC0415
    from decoding.worker import worker  # noqa: PLC0415

    roomy = Model.forward

    def forward(self: Model, batch: Batch, layers: tuple[int, ...] = (), *, shift: int = 0) -> Hidden:
        hidden = roomy(self, batch, layers, shift=shift)
        if batch.num_tokens > MOST_TOKENS:
            raise torch.OutOfMemoryError("simulated")
        return hidden

    Model.forward = forward  # type: ignore[method-assign]
    worker.main()


if __name__ == "__main__":
    if sys.argv[1].isdigit():
        work()
    else:
        sys.exit(serve(sys.argv[1:]))
