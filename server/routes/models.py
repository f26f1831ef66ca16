"""Placeholder until the HTTP routes are merged."""

from __future__ import annotations

from fastapi import APIRouter

from server.batcher import Batcher


def router(batcher: Batcher) -> APIRouter:  # noqa: ARG001
    return APIRouter()
