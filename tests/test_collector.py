"""What is here to stay is not looked through again; what goes in cycles still goes."""

import gc
import weakref

from runtime.collector import settled


class Knot:
    """Garbage that only the collector finds."""

    def __init__(self) -> None:
        self.itself = self


def test_what_exists_is_left_alone_and_what_comes_later_is_not():
    old = Knot()
    seen_old = weakref.ref(old)
    with settled():
        assert gc.get_freeze_count() > 0
        young = Knot()
        seen_young = weakref.ref(young)
        del old, young
        gc.collect()
        assert seen_young() is None
        assert seen_old() is not None  # frozen: nobody looks at it
    assert gc.get_freeze_count() == 0
    gc.collect()
    assert seen_old() is None


def test_garbage_of_the_start_is_gone_before():
    knot = Knot()
    seen = weakref.ref(knot)
    del knot
    with settled():
        assert seen() is None
