"""The layers of a real machine's disks, and machines that are saved: the suite, and what is in the files."""

from __future__ import annotations

import pytest

from tests.boot.test_engine import QemuBench, bench, host_facts
from tests.conformance.layers import LayersConformance

__all__ = ["bench", "host_facts"]  # fixtures

pytestmark = [pytest.mark.boot, pytest.mark.slow]


class TestLayersOfQemu(LayersConformance):
    pass
