"""Every law of a cut, on random networks put together from all patterns."""

from __future__ import annotations

import laws
import networks
import pytest
from blocks import MORE
from hypothesis import given, settings
from hypothesis import strategies as st

ALL = (*networks.BLOCKS, *MORE)
SHARES = st.sampled_from([0.1, 0.5, 0.9])


@st.composite
def cuts(draw: st.DrawFn, least: int = 1) -> tuple[dict, laws.Cut]:
    """A random network, its arguments, and a random cut."""
    chosen = draw(networks.settings(ALL))
    net = networks.Network(**chosen)
    seed = draw(st.integers(0, 2**16))
    return chosen, laws.Cut.random(net, (net.example,), seed, draw(SHARES), least)


@settings(max_examples=12, deadline=None)
@given(cuts())
def test_the_narrow_network_is_the_silenced_one_and_learns(drawn):
    _, cut = drawn
    laws.check_masked(cut)
    laws.check_kept(cut)
    laws.check_trainable(cut)


@settings(max_examples=12, deadline=None)
@given(cuts(least=2))
def test_sizes_and_costs_are_known_before_the_cut(drawn):
    chosen, cut = drawn
    attention = any(kind == "Tokens" for kind, _ in chosen["blocks"])
    laws.check_sizes(cut)
    laws.check_costs(cut, "torch" if attention else "fvcore torch")


@settings(max_examples=10, deadline=None)
@given(cuts())
def test_a_saved_network_comes_back(drawn):
    chosen, cut = drawn
    laws.check_saved(cut, {"_target_": "networks.Network", **chosen}, ["networks"])


@settings(max_examples=10, deadline=None)
@given(cuts())
def test_what_stays_has_a_reason(drawn):
    _, cut = drawn
    assert laws.unexplained(cut.graph, cut.dense, ["head"]) == []


@pytest.mark.slow
@settings(max_examples=200, deadline=None)
@given(cuts(least=2))
def test_all_laws_on_many_networks(drawn):
    chosen, cut = drawn
    attention = any(kind == "Tokens" for kind, _ in chosen["blocks"])
    laws.check_masked(cut)
    laws.check_kept(cut)
    laws.check_trainable(cut)
    laws.check_sizes(cut)
    laws.check_costs(cut, "torch" if attention else "fvcore torch")
