"""Placeholder until the HTTP routes are merged."""

from __future__ import annotations

from fastapi import APIRouter

from server.batcher import Batcher
from server.limits import Limits


def router(batcher: Batcher, limits: Limits) -> APIRouter:  # noqa: ARG001
    return APIRouter()
