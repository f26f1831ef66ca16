"""A GPU that is none: tensors that say they are on "cuda", and a stream that holds back whatever is launched.

What a launch gives is memory full of nonsense until the host waits for it: for an event, or for everything by looking
at a number. Then all that was launched before is run on the CPU, in order, on what lies in memory *then*. So a number
that is read too early is nonsense, and so is one whose pinned source was written again before its copy ran. Tensors of
the host and of the device do not mix. Waiting can be refused (`refusing_waits`), as `set_sync_debug_mode` does.
Recordings are lists of launches, and a replay launches them again.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map_only

CUDA = torch.device("cuda", 0)
Launch = Callable[[], object]


class Waits(RuntimeError):
    """The host waits for the device where it may not."""


class Mixed(RuntimeError):
    """A tensor of the host where one of the device is needed."""


def poison(tensor: torch.Tensor) -> torch.Tensor:
    """Nobody's numbers."""
    if tensor.dtype == torch.bool:
        return tensor.fill_(True)
    return tensor.fill_(float("nan") if tensor.is_floating_point() else torch.iinfo(tensor.dtype).min // 2)


class Stream:
    """Launches in order. recording: where they go instead while a graph is recorded."""

    def __init__(self) -> None:
        self.waiting: list[Launch] = []
        self.recording: list[Launch] | None = None
        self.launched = 0
        self.run_already = 0
        self.refuses_waits = False

    def launch(self, work: Launch) -> None:
        if self.recording is not None:
            self.recording.append(work)
            return
        self.waiting.append(work)
        self.launched += 1

    def run_until(self, count: int) -> None:
        """All that was launched before: the first `count` launches there have been."""
        due = max(count - self.run_already, 0)
        works, self.waiting = self.waiting[:due], self.waiting[due:]
        self.run_already += len(works)
        for work in works:
            work()

    def wait(self, why: str) -> None:
        """The host looks at the device."""
        if self.recording is not None:
            raise Waits(f"{why}: while a graph is recorded")
        if self.refuses_waits:
            raise Waits(f"{why}: called a synchronizing CUDA operation")
        self.run_until(self.launched)


class DeviceTensor(torch.Tensor):
    """Memory of the device: its place is known at once, its numbers are not. held: the memory, on the CPU."""

    held: torch.Tensor

    @staticmethod
    def __new__(cls, held: torch.Tensor) -> DeviceTensor:
        made: DeviceTensor = torch.Tensor._make_wrapper_subclass(
            cls, held.shape, strides=held.stride(), storage_offset=held.storage_offset(), dtype=held.dtype
        )
        made.held = held
        return made

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return CUDA

    @property
    def is_cuda(self) -> bool:  # type: ignore[override]
        return True

    @property
    def is_cpu(self) -> bool:  # type: ignore[override]
        return False

    def __repr__(self, *_: Any, **__: Any) -> str:
        return f"DeviceTensor({tuple(self.shape)}, {self.dtype})"

    @classmethod
    def __torch_dispatch__(cls, func: Any, _types: Any, _args: Any = (), _kwargs: Any = None) -> Any:
        raise RuntimeError(f"{func} on the device, which is not there")


# what waits for the device by its nature: its result's shape, or the result itself, is a matter of numbers
LOOKS = ("_local_scalar_dense", "nonzero", "masked_select", "_unique2", "unique_dim", "unique_consecutive", "equal",
         "is_nonzero", "bincount")  # fmt: skip
INDEXES = ("index", "index_put", "index_put_", "_index_put_impl_")
MIXES = ("copy_", "_to_copy", *INDEXES)
MOVES = ("to", "cuda", "cpu", "pin_memory", "numpy", "is_pinned", "__array__", "tolist")


class Launching(TorchDispatchMode):
    """Operations on tensors of the device, and whatever makes one."""

    def __init__(self, stream: Stream) -> None:
        super().__init__()
        self.stream = stream
        self.makes = 0  # above 0: what is made is on the device

    def __torch_dispatch__(self, func: Any, _types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        given = [each for each in tree_flatten((args, kwargs))[0] if isinstance(each, torch.Tensor)]
        if not (any(isinstance(each, DeviceTensor) for each in given) or (self.makes and not given)):
            return func(*args, **kwargs)
        with self:  # in inference mode they come whole
            parts = func.decompose(*args, **kwargs)
        if parts is not NotImplemented:
            return parts
        name = func._schema.name.removeprefix("aten::")
        if name == "copy_":
            return self._copy(*args, **kwargs)
        self._check(name, given)
        if name in INDEXES and not all(each is None or isinstance(each, DeviceTensor) for each in args[1]):
            self.stream.wait("an index of the host's")  # is moved to the device, from memory that is not pinned
        if _looks(name, args):
            return self._looked(func, name, args, kwargs)
        args, kwargs = tree_map_only(torch.Tensor, _held, (args, kwargs))
        if func.is_view or name in ("detach", "alias", "lift_fresh", "_unsafe_view", "_reshape_alias"):
            return _wrapped(func(*args, **kwargs))
        return self._launch(func, given, args, kwargs)

    def _launch(self, func: Any, given: list[torch.Tensor], args: Any, kwargs: Any) -> Any:
        """Later; the result's memory is there now."""
        written = [i for i, each in enumerate(func._schema.arguments) if each.alias_info and each.alias_info.is_write]
        if written:
            self.stream.launch(lambda: func(*args, **kwargs))
            return self._written(func, given, args, kwargs, written)
        made = _shaped(func, args, kwargs)
        outs = tree_map_only(torch.Tensor, _empty_like, made)
        targets = [each for each in tree_flatten(outs)[0] if isinstance(each, torch.Tensor)]
        if not func._schema.name.endswith(("::empty", "::new_empty", "::empty_like", "::empty_strided")):
            self.stream.launch(lambda: _filled(targets, _run(func, args, kwargs)))
        return _wrapped(outs)

    def _written(self, func: Any, given: list[torch.Tensor], args: Any, kwargs: Any, written: list[int]) -> Any:
        """The tensors that it writes into, as they were given."""
        if not func._schema.returns:
            return None
        by_held = {id(each.held): each for each in given if isinstance(each, DeviceTensor)}
        names = [func._schema.arguments[i].name for i in written]
        found = [args[i] if i < len(args) else kwargs[n] for i, n in zip(written, names, strict=True)]
        outs = [by_held.get(id(each), each) for each in found]
        return outs[0] if len(func._schema.returns) == 1 else tuple(outs)

    def _looked(self, func: Any, name: str, args: Any, kwargs: Any) -> Any:
        self.stream.wait(name)
        found = func(*tree_map_only(torch.Tensor, _held, args), **tree_map_only(torch.Tensor, _held, kwargs))
        return _wrapped(found)

    def _copy(self, target: torch.Tensor, source: torch.Tensor, non_blocking: bool = False) -> torch.Tensor:
        """Between the two, or on the device. A copy from memory that is not pinned is staged at once."""
        is_from_host = not isinstance(source, DeviceTensor)
        to, of = _held(target), _held(source)
        if is_from_host and not is_pinned(source):
            if not non_blocking:
                self.stream.wait("a copy from memory that is not pinned")
            of = source.clone()
        elif not isinstance(target, DeviceTensor):
            if not (non_blocking and is_pinned(target)):
                self.stream.wait("a copy to the host")
            else:
                poison(target)
        elif is_from_host and not non_blocking:
            self.stream.wait("a copy from the host")
        self.stream.launch(lambda: to.copy_(of))
        if not non_blocking and not isinstance(target, DeviceTensor):
            self.stream.run_until(self.stream.launched)
        return target

    def _check(self, name: str, given: list[torch.Tensor]) -> None:
        foreign = [each for each in given if not isinstance(each, DeviceTensor) and each.dim()]
        if foreign and name not in MIXES:
            raise Mixed(f"{name} of tensors on the device and on the host, {tuple(foreign[0].shape)}")


def _looks(name: str, args: Any) -> bool:
    """Also where a mask is an index."""
    if name in INDEXES:
        return any(isinstance(each, torch.Tensor) and each.dtype in (torch.bool, torch.uint8) for each in args[1])
    if name == "repeat_interleave":
        return not any(isinstance(each, int) for each in args[1:])
    return name in LOOKS


def _held(tensor: torch.Tensor) -> torch.Tensor:
    """A number of the host goes along as it is now."""
    return tensor.held if isinstance(tensor, DeviceTensor) else tensor


def _wrapped(found: Any) -> Any:
    return tree_map_only(torch.Tensor, lambda t: t if isinstance(t, DeviceTensor) else DeviceTensor(t), found)


def _run(func: Any, args: Any, kwargs: Any) -> Any:
    if func._schema.name == "aten::histc":  # of integers a CPU has none
        return func(args[0].float(), *args[1:], **kwargs)
    return func(*args, **kwargs)


def _shaped(func: Any, args: Any, kwargs: Any) -> Any:
    """The result without its numbers."""
    args, kwargs = tree_map_only(torch.Tensor, _meta, (args, kwargs))
    if func._schema.name == "aten::_grouped_mm":  # of which torch knows no shape but for bfloat16
        return args[0].new_empty(args[0].shape[0], args[1].shape[-1])
    return func(*args, **_on_meta(func, kwargs))


def _meta(tensor: torch.Tensor) -> torch.Tensor:
    return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="meta")


def _on_meta(func: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
    takes_device = any(each.name == "device" for each in func._schema.arguments)
    return kwargs | {"device": torch.device("meta")} if takes_device else kwargs


def _empty_like(tensor: torch.Tensor) -> torch.Tensor:
    return poison(torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype))


def _filled(targets: list[torch.Tensor], found: Any) -> None:
    sources = [each for each in tree_flatten(found)[0] if isinstance(each, torch.Tensor)]
    for target, source in zip(targets, sources, strict=True):
        target.copy_(source)


def is_pinned(tensor: torch.Tensor) -> bool:
    return getattr(tensor, "_is_in_pinned_memory", False)


def pinned(tensor: torch.Tensor) -> torch.Tensor:
    tensor._is_in_pinned_memory = True  # type: ignore[attr-defined]
    return tensor


class Calling(TorchFunctionMode):
    """What of torch's functions says where a tensor is to be."""

    def __init__(self, launching: Launching) -> None:
        super().__init__()
        self._launching = launching

    def __torch_function__(self, func: Any, _types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        name = getattr(func, "__name__", "")
        tensor = args[0] if args and isinstance(args[0], torch.Tensor) else None
        if tensor is not None and name in (
            "to",
            "cuda",
            "cpu",
            "pin_memory",
            "numpy",
            "is_pinned",
            "__array__",
            "tolist",
        ):
            return self._moved(func, name, tensor, args[1:], kwargs)
        if name == "one_hot" and isinstance(tensor, DeviceTensor):
            with self:  # torch's own, as it is taken apart, asks for what only a GPU has
                return (tensor[..., None] == torch.arange(kwargs.get("num_classes", args[-1]), device=CUDA)).long()
        if kwargs.pop("pin_memory", False):
            return pinned(func(*args, **kwargs))
        if not _is_cuda(kwargs.get("device")):
            return func(*args, **kwargs)
        kwargs["device"] = "cpu"
        if name in ("tensor", "as_tensor", "asarray"):
            made = func(*args, **kwargs)
            return made if isinstance(made, DeviceTensor) else self._sent(made, is_waited_for=True)
        self._launching.makes += 1
        try:
            return func(*args, **kwargs)
        finally:
            self._launching.makes -= 1

    def _moved(self, func: Any, name: str, tensor: torch.Tensor, args: Any, kwargs: dict[str, Any]) -> Any:
        if name == "is_pinned":
            return is_pinned(tensor)
        if name == "pin_memory":
            return pinned(tensor.clone())
        if name == "tolist":
            if isinstance(tensor, DeviceTensor):
                self._launching.stream.wait(name)
            return _held(tensor).tolist()
        if name in ("numpy", "__array__"):
            if isinstance(tensor, DeviceTensor):
                raise TypeError("can't convert cuda:0 device type tensor to numpy")
            return func(tensor, *args, **kwargs)
        place, rest, others = _place(name, args, kwargs)
        is_waited_for = not others.get("non_blocking", False)
        if place is None or (place.type == "cuda") == isinstance(tensor, DeviceTensor):
            is_plain = not rest and not set(others) - {"non_blocking"}
            return tensor if is_plain else func(tensor, *rest, **others)
        moved = self._sent(tensor, is_waited_for=is_waited_for) if place.type == "cuda" else self._fetched(tensor)
        others.pop("non_blocking", None)
        return moved.to(*rest, **others) if rest or others else moved

    def _sent(self, tensor: torch.Tensor, *, is_waited_for: bool) -> DeviceTensor:
        target = DeviceTensor(_empty_like(tensor))
        self._launching._copy(target, tensor, non_blocking=not is_waited_for)
        return target

    def _fetched(self, tensor: torch.Tensor) -> torch.Tensor:
        self._launching.stream.wait("a copy to the host")
        return _held(tensor).clone()


def _is_cuda(device: Any) -> bool:
    return device is not None and torch.device(device).type == "cuda"


def _place(name: str, args: Any, kwargs: dict[str, Any]) -> tuple[torch.device | None, list[Any], dict[str, Any]]:
    """Where to, and what else is asked for."""
    others = dict(kwargs)
    if name != "to":
        return torch.device("cuda" if name == "cuda" else "cpu"), [], {}
    place = others.pop("device", None)
    rest = []
    for at, each in enumerate(args):
        if isinstance(each, torch.device | str):
            place = each
        elif isinstance(each, torch.Tensor):
            place, rest = each.device, [*rest, each.dtype]
        elif isinstance(each, bool) and at:
            others.setdefault("non_blocking", each)
        else:
            rest.append(each)
    return (None if place is None else torch.device(place)), rest, others


class FakeGPU:
    """torch.cuda, as far as it is used here."""

    def __init__(self) -> None:
        self.stream = Stream()
        self.launching = Launching(self.stream)
        self.calling = Calling(self.launching)

    # events and streams

    def Event(self, *_: Any, **__: Any) -> Event:
        return Event(self.stream)

    def synchronize(self, *_: Any) -> None:
        self.stream.wait("synchronize")

    def current_stream(self, *_: Any) -> FakeStream:
        return FakeStream()

    def get_sync_debug_mode(self) -> int:
        return 2 if self.stream.refuses_waits else 0

    def set_sync_debug_mode(self, mode: int | str) -> None:
        self.stream.refuses_waits = mode in (2, "error")

    # graphs

    @contextmanager
    def graph(self, graph: Graph, **_: Any) -> Iterator[None]:
        self.stream.recording = graph.launches
        try:
            yield
        finally:
            self.stream.recording = None

    def CUDAGraph(self, *_: Any, **__: Any) -> Graph:
        return Graph(self.stream)

    # models

    def move(self, module: nn.Module) -> None:
        """A module's numbers to the device, those that are shared once."""
        made: dict[int, DeviceTensor] = {}
        for each in module.modules():
            for name, weight in each._parameters.items():
                if weight is not None:
                    own = made.setdefault(id(weight), DeviceTensor(weight.detach()))
                    each._parameters[name] = nn.Parameter(own, requires_grad=False)
            for name, buffer in each._buffers.items():
                if buffer is not None:
                    each._buffers[name] = made.setdefault(id(buffer), DeviceTensor(buffer))


class FakeStream:
    def wait_stream(self, _stream: FakeStream) -> None: ...

    def synchronize(self) -> None: ...


class Event:
    """Of all that was launched before it was recorded."""

    def __init__(self, stream: Stream) -> None:
        self._stream, self._at = stream, 0

    def record(self, *_: Any) -> None:
        self._at = self._stream.launched

    def synchronize(self) -> None:
        self._stream.run_until(self._at)

    def query(self) -> bool:
        return self._stream.run_already >= self._at


class Graph:
    def __init__(self, stream: Stream) -> None:
        self.launches: list[Launch] = []
        self._stream = stream

    def pool(self) -> tuple[int, int]:
        return (0, 1)

    def replay(self) -> None:
        for launch in self.launches:
            self._stream.launch(launch)


@contextmanager
def fake_gpu(monkeypatch: Any) -> Iterator[FakeGPU]:
    """While entered, "cuda" is there and is this, without Triton: no kernel of ours is launched on it."""
    gpu = FakeGPU()
    choosing = [module for name, module in sorted(sys.modules.items()) if _chooses_kernels(name, module)]
    for module in choosing:
        monkeypatch.setattr(module, "has_triton", lambda: False)
    _forget_choices(choosing)
    for name in ("Event", "synchronize", "current_stream", "get_sync_debug_mode", "set_sync_debug_mode", "graph",
                 "CUDAGraph"):  # fmt: skip
        monkeypatch.setattr(torch.cuda, name, getattr(gpu, name))
    monkeypatch.setattr(torch.cuda, "Stream", FakeStream)
    monkeypatch.setattr(torch.cuda, "stream", lambda _stream: _nothing())
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: (0, 1))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: (9, 0))
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda *_: (1 << 36, 1 << 37))
    for name in ("memory_allocated", "max_memory_allocated"):
        monkeypatch.setattr(torch.cuda, name, lambda *_: 0)
    for name in ("empty_cache", "reset_peak_memory_stats"):
        monkeypatch.setattr(torch.cuda, name, lambda *_: None)
    try:
        with gpu.calling, gpu.launching:
            yield gpu
    finally:
        _forget_choices(choosing)


def _chooses_kernels(name: str, module: Any) -> bool:
    return name.startswith("decoding.") and hasattr(module, "has_triton")


def _forget_choices(modules: list[Any]) -> None:
    for module in modules:
        for each in vars(module).values():
            if hasattr(each, "cache_clear"):
                each.cache_clear()


@contextmanager
def _nothing() -> Iterator[None]:
    yield


@contextmanager
def refusing_waits(gpu: FakeGPU) -> Iterator[None]:
    """But for those for an event."""
    before, gpu.stream.refuses_waits = gpu.stream.refuses_waits, True
    try:
        yield
    finally:
        gpu.stream.refuses_waits = before


def numbers(tensor: torch.Tensor) -> np.ndarray:
    """What is in a tensor's memory now, whether it should be or not."""
    return _held(tensor).numpy()
