"""Tests of temporary evaluation mode."""

from __future__ import annotations

import pytest
from torch import nn

from prunekit.modes import evaluating


def test_every_module_gets_its_own_mode_back():
    net, other = nn.Sequential(nn.Dropout(), nn.BatchNorm2d(2)), nn.Dropout().eval()
    net[1].eval()
    with pytest.raises(KeyError), evaluating(net, other):
        assert not any(module.training for module in (*net.modules(), other))
        raise KeyError
    assert [module.training for module in net.modules()] == [True, True, False]
    assert not other.training
