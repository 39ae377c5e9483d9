"""Fixtures of the evaluation's tests."""

from __future__ import annotations

import importlib.util
import sys
import types

import numpy as np
import pytest


@pytest.fixture
def lvis(monkeypatch):
    """lvis-api, with the alias that current numpy has removed and without OpenCV."""
    if importlib.util.find_spec("lvis") is None:
        pytest.skip("lvis is not installed")
    if importlib.util.find_spec("cv2") is None:
        monkeypatch.setitem(sys.modules, "cv2", types.ModuleType("cv2"))
    monkeypatch.setattr(np, "float", float, raising=False)
    return importlib.import_module("lvis")
