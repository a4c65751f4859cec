"""What a weak reference leads to is what is compared, and not that somebody refers to it weakly."""

from __future__ import annotations

import weakref

import torch

from entangle.storage import digest


class Holder:
    def __init__(self, referent: object) -> None:
        self.referent = referent


def test_a_module_behind_a_weak_proxy_or_reference_is_known_by_its_weights():
    module, twin, other = (torch.nn.Linear(2, 2) for _ in range(3))
    twin.load_state_dict(module.state_dict())
    for weakly in (weakref.proxy, weakref.ref):
        assert digest(weakly(module)) == digest(module) == digest(Holder(weakly(twin)).referent)
        assert digest(Holder(weakly(module))) == digest(Holder(weakly(twin)))
        assert digest(Holder(weakly(module))) != digest(Holder(weakly(other)))
    gone = weakref.ref(torch.nn.Linear(2, 2))
    assert digest(gone) == digest(None)


def test_a_part_that_refers_weakly_to_what_holds_it_does_not_go_round_for_ever():
    whole = Holder(None)
    whole.referent = Holder(weakref.proxy(whole))
    assert len(digest(whole)) == 32
