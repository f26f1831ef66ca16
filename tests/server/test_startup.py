"""From settings to the worker's first frame: the part of models beside the main one in it."""

from __future__ import annotations

import asyncio
import io
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import cast

import pytest

from decoding.contract.frames import Open, Start
from server.observe.metrics import Metrics
from server.queue.batcher import Batcher
from server.settings.sections import QueueSettings, SupervisionSettings
from server.settings.settings import load
from server.startup import Startup, start_frame
from server.text.tokenizer import Tokenizer
from server.worker.mailbox import LoadListener, Mailbox
from server.worker.model_files import ModelError
from server.worker.progress import LineDisplay
from tests.server.fake_engine import byte_tokenizer
from tests.server.world import FAKE_WORKER, SECONDS, model_directory, until, worker_pid


class FixedTokens:
    """A tokenizer of 100 tokens, other ones where its directory is called so."""

    def __init__(self, directory: Path) -> None:
        self._first = 1 if directory.name == "other" else 0

    def token_bytes(self) -> tuple[bytes, ...]:
        return tuple(bytes([self._first + i]) for i in range(100))

    def special_tokens(self) -> tuple[tuple[int, str], ...]:
        return ()

    @property
    def eos_id(self) -> int:
        return 7


class Recorder:
    """Stands for the mailbox: keeps the frame that the worker would be started with."""

    start: Start | None = None

    async def run(self, start: asyncio.Future[Start], _: LoadListener, opening: Open) -> None:
        self.start = await start


def fixed_tokens(directory: Path) -> Tokenizer:
    return cast(Tokenizer, FixedTokens(directory))


async def started(*flags: str, read: Callable[[Path], Tokenizer] = fixed_tokens) -> Start:
    batcher = Batcher(QueueSettings(), Metrics("test"))
    settings = load(list(flags), {}).settings
    startup = Startup(settings, batcher, LineDisplay(io.StringIO()), read)
    recorder = Recorder()
    await startup.run(cast(Mailbox, recorder))
    assert recorder.start is not None
    return recorder.start


class Preparing:
    """A start-up with a real mailbox whose tokenizer is read once a worker runs; then `read` says what it is."""

    def __init__(self, model: Path, read: Callable[[], Tokenizer]) -> None:
        self._read = read
        batcher = Batcher(QueueSettings(), Metrics("test"))
        settings = load(["--model", str(model)], {}).settings
        self.startup = Startup(settings, batcher, LineDisplay(io.StringIO()), self._tokenizer)
        self.mailbox = Mailbox(batcher, SupervisionSettings(), FAKE_WORKER)
        self.pid = 0

    def _tokenizer(self, _: Path) -> Tokenizer:  # in a thread
        limit = time.monotonic() + SECONDS
        while worker_pid(self.mailbox) is None:
            assert time.monotonic() < limit, "no worker was started"
            time.sleep(0.01)
        self.pid = worker_pid(self.mailbox)
        return self._read()


async def test_the_worker_starts_up_while_the_tokenizer_is_read(tmp_path: Path) -> None:
    preparing = Preparing(model_directory(tmp_path / "m"), lambda: cast(Tokenizer, FixedTokens(tmp_path)))
    running = asyncio.create_task(preparing.startup.run(preparing.mailbox))
    await until(lambda: preparing.mailbox.is_told)
    assert worker_pid(preparing.mailbox) == preparing.pid
    await preparing.mailbox.stop()
    await running


async def test_a_tokenizer_that_cannot_be_read_leaves_no_worker_behind(tmp_path: Path) -> None:
    def read() -> Tokenizer:
        raise Exception("no such tokenizer")

    preparing = Preparing(model_directory(tmp_path / "m"), read)
    with pytest.raises(ModelError, match="tokenizer cannot be read"):
        await preparing.startup.run(preparing.mailbox)
    with pytest.raises(ProcessLookupError):
        os.kill(preparing.pid, 0)


async def test_a_stop_while_the_tokenizer_is_read_leaves_no_worker_behind(tmp_path: Path) -> None:
    is_over = threading.Event()

    def read() -> Tokenizer:
        is_over.wait(SECONDS)
        return cast(Tokenizer, FixedTokens(tmp_path))

    preparing = Preparing(model_directory(tmp_path / "m"), read)
    running = asyncio.create_task(preparing.startup.run(preparing.mailbox))
    try:
        await until(lambda: bool(preparing.pid))
        assert not preparing.mailbox.is_told
        await preparing.mailbox.stop()
        running.cancel()  # as the service does with one that is not told
        await asyncio.wait({running}, timeout=SECONDS)
        with pytest.raises(ProcessLookupError):
            os.kill(preparing.pid, 0)
    finally:
        is_over.set()


async def test_the_worker_is_told_the_draft_models_directory(tmp_path: Path) -> None:
    model, draft = (str(model_directory(tmp_path / name)) for name in ("big", "small"))
    start = await started("--model", model, "--draft-model", draft)
    assert (start.model, start.beside) == (model, {"draft": draft})


async def test_no_draft_model_is_the_default(tmp_path: Path) -> None:
    assert (await started("--model", str(model_directory(tmp_path / "big")))).beside == {}


async def test_the_worker_is_told_to_quantise_only_when_asked(tmp_path: Path) -> None:
    model = str(model_directory(tmp_path / "big"))
    assert (await started("--model", model)).quantize == "none"
    assert (await started("--model", model, "--quantize", "int8")).quantize == "int8"


async def test_a_draft_model_of_other_tokens_is_refused(tmp_path: Path) -> None:
    model, draft = (str(model_directory(tmp_path / name)) for name in ("big", "other"))
    with pytest.raises(ModelError, match=r"draft model: .* other tokens"):
        await started("--model", model, "--draft-model", draft)


async def test_a_draft_model_that_is_not_there_is_named_as_such(tmp_path: Path) -> None:
    model = str(model_directory(tmp_path / "big"))
    with pytest.raises(ModelError, match=r"draft model: .*nowhere is not a directory"):
        await started("--model", model, "--draft-model", str(tmp_path / "nowhere"))


async def test_the_worker_is_told_of_every_model_beside_the_main_one(tmp_path: Path) -> None:
    model, draft, tuned = (str(model_directory(tmp_path / name)) for name in ("big", "small", "tuned"))
    flags = ("--draft-model", draft, "--also", f"old={draft}", f"new={tuned}")
    assert (await started("--model", model, *flags)).beside == {"draft": draft, "old": draft, "new": tuned}


async def test_a_model_of_other_tokens_is_refused_by_its_name(tmp_path: Path) -> None:
    model, other = (str(model_directory(tmp_path / name)) for name in ("big", "other"))
    with pytest.raises(ModelError, match=r"^amateur model: its tokenizer has other tokens than the model's$"):
        await started("--model", model, "--also", f"amateur={other}")


@pytest.mark.parametrize("flags", [[], ["--batch-invariant"]])
def test_the_worker_hears_of_batch_invariance(flags: list[str]) -> None:
    settings = load([*flags, "--device", "cuda"], {}).settings
    frame = start_frame(settings, Path("model"), cast(Tokenizer, FixedTokens(Path("m"))), {})
    assert (frame.model, frame.device, frame.batch_invariant) == ("model", "cuda", bool(flags))


def test_the_worker_hears_whether_to_launch_ahead() -> None:
    tokenizer = cast(Tokenizer, FixedTokens(Path("m")))
    frames = [
        start_frame(load(flags, {}).settings, Path("m"), tokenizer, {}) for flags in ([], ["--launch-ahead", "on"])
    ]
    assert [frame.launch_ahead for frame in frames] == ["auto", "on"]


async def test_the_worker_hears_of_the_tokenizers_own_end(tmp_path: Path) -> None:
    start = await started("--model", str(model_directory(tmp_path / "m")))
    assert start.eos_token_ids == (7,)


@pytest.mark.parametrize("which", ["m", "draft"])
async def test_a_template_that_does_not_end_ends_the_start(tmp_path: Path, which: str) -> None:
    model, draft = (model_directory(tmp_path / name) for name in ("m", "draft"))
    (tmp_path / which / "chat_template.jinja").write_text("{{ 9 ** (9 ** 9) }}")
    with pytest.raises(ModelError, match="the model's chat template takes more than"):
        await started("--model", str(model), "--draft-model", str(draft))


async def test_what_is_wrong_with_a_tokenizers_file_is_told_as_it_is(tmp_path: Path) -> None:
    model = model_directory(tmp_path / "m")
    (model / "added_tokens.json").write_text('{"a":' * 100_000 + "1" + "}" * 100_000)
    byte_tokenizer().save(str(model / "tokenizer.json"))
    with pytest.raises(ModelError, match=r"added_tokens\.json is nested too deeply"):
        await started("--model", str(model), read=Tokenizer.from_directory)


async def test_a_nested_file_of_the_tokenizer_ends_the_start_with_its_name(tmp_path: Path) -> None:
    model = model_directory(tmp_path / "m")
    (model / "tokenizer_config.json").write_text('{"a":' * 100_000 + "1" + "}" * 100_000)
    with pytest.raises(ModelError, match=r"tokenizer_config\.json is nested too deeply"):
        await started("--model", str(model))
