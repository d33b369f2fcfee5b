"""How seldom a process looks for garbage that counting references does not find."""

import gc

# Objects made, and not freed again at once, before the youngest are looked through. The usual 700
# are less than one request of a hundred tasks makes.
YOUNG, MIDDLE, OLD = 20_000, 20, 50


def collect_seldom() -> None:
    """Called when a process begins: bodies of many parts cost less than half with it."""
    gc.set_threshold(YOUNG, MIDDLE, OLD)
