"""The model of a directory: as it was kept by an earlier start, else loaded by way of transformers and then kept.

Kept are models for a CPU all of whose layers are fused. Nothing that goes wrong with keeping stops a start.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable
from pathlib import Path

import msgspec
import torch

from decoding.cache_home import cache_folder
from decoding.contract.quantize import Quantize
from decoding.device import resolve_device
from decoding.kernels import cpu as kernels
from decoding.model.model import Model
from decoding.worker.kept.identity import Asked, Identity, identify, stamps

Progress = Callable[[str, float], None]

MOST = 2  # of one directory: as it is asked for by two commands in turn
MOST_OF_ALL = 16
SUFFIX = ".kept"
PART_SECONDS = 3600.0  # after which what a start was writing has been given up


def open_model(
    path: str,
    *,
    device: str,
    dtype: str,
    quantize: Quantize = "none",
    progress: Progress,
    is_batch_invariant: bool = False,
) -> Model:
    """Raises what `loading.load` does."""
    asked = Asked(Path(path), dtype, quantize, is_batch_invariant)
    identity, before = None, None
    if kernels.available() and _is_cpu(device):
        progress("looking for the kept model", 0.0)
        with contextlib.suppress(OSError):
            before, identity = stamps(asked), identify(asked)
    kept = None if identity is None else _kept(identity, progress)
    if kept is not None:
        return kept
    from decoding.model.loading import load  # noqa: PLC0415 - imports transformers, for seconds

    model = load(
        path,
        device=device,
        dtype=dtype,
        quantize=quantize,
        progress=progress,
        is_batch_invariant=is_batch_invariant,
    )
    with contextlib.suppress(OSError):
        if identity is not None and before == stamps(asked):  # what was loaded is what was identified
            _keep(model, identity, progress)
    return model


def folder() -> Path:
    return cache_folder("models")


def _is_cpu(device: str) -> bool:
    try:
        return resolve_device(device).type == "cpu"
    except RuntimeError:  # for `load` to tell
        return False


def _file(identity: Identity) -> Path:
    return folder() / f"{identity.place}-{identity.key[:32]}{SUFFIX}"


def _kept(identity: Identity, progress: Progress) -> Model | None:
    """None where there is none, or it does not give what it gave; such a file is removed."""
    file = _file(identity)
    if not file.is_file():
        return None
    from decoding.worker.kept.container import Damaged, read  # noqa: PLC0415 - needs numba
    from decoding.worker.kept.description import decode  # noqa: PLC0415
    from decoding.worker.kept.keeping import proof_of  # noqa: PLC0415
    from decoding.worker.kept.rebuilt import rebuild  # noqa: PLC0415

    progress("reading the kept model", 0.0)
    try:
        kept = decode(*read(file))
        if kept.key != identity.key:
            raise Damaged("is another model's")
        with torch.inference_mode():
            model = rebuild(kept.description)
        if proof_of(model) != kept.proof:
            raise Damaged("gives other numbers than before")
    except (Damaged, msgspec.MsgspecError, LookupError, OSError) as error:
        reason = f"it {error}" if isinstance(error, Damaged) else type(error).__name__
        progress(f"loading anew, for the kept model cannot be used: {reason}", 1.0)
        with contextlib.suppress(OSError):
            file.unlink()
        return None
    progress("reading the kept model", 1.0)
    with contextlib.suppress(OSError):
        os.utime(file)
    return model


def _keep(model: Model, identity: Identity, progress: Progress) -> None:
    """Raises OSError."""
    if not model.is_compiled or model.encoder is not None:
        return
    from decoding.worker.kept.container import write  # noqa: PLC0415 - needs numba
    from decoding.worker.kept.description import Kept, encode  # noqa: PLC0415
    from decoding.worker.kept.keeping import describe, proof_of  # noqa: PLC0415

    description = describe(model)
    if description is None:
        return
    progress("keeping the model for the next start", 0.0)
    write(_file(identity), *encode(Kept(identity.key, proof_of(model), description)))
    progress("keeping the model for the next start", 1.0)
    _remove_old(folder(), identity.place)


def _remove_old(where: Path, place: str) -> None:
    """Those that were used last stay."""
    files = sorted(where.glob(f"*{SUFFIX}"), key=lambda file: file.stat().st_mtime, reverse=True)
    old = [file for file in files if file.name.startswith(place)][MOST:] + files[MOST_OF_ALL:]
    given_up = time.time() - PART_SECONDS
    old += [file for file in where.glob(".*.part") if file.stat().st_mtime < given_up]
    for file in old:
        file.unlink(missing_ok=True)
