"""Contexts for whole networks."""

from __future__ import annotations

import gc

import pytest
from torch import nn

from prunekit.modes import evaluating, garbage_collection_paused


def test_every_module_gets_its_own_mode_back():
    net, other = nn.Sequential(nn.Dropout(), nn.BatchNorm2d(2)), nn.Dropout().eval()
    net[1].eval()
    with pytest.raises(KeyError), evaluating(net, other):
        assert not any(module.training for module in (*net.modules(), other))
        raise KeyError
    assert [module.training for module in net.modules()] == [True, True, False]
    assert not other.training


@pytest.mark.parametrize("enabled", [True, False])
def test_garbage_is_collected_again_after_a_pause(enabled):
    before = gc.isenabled()
    (gc.enable if enabled else gc.disable)()
    try:
        with pytest.raises(KeyError), garbage_collection_paused():
            assert not gc.isenabled()
            raise KeyError
        assert gc.isenabled() is enabled
    finally:
        (gc.enable if before else gc.disable)()
