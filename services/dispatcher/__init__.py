"""The dispatcher owns tasks, the resources they claim, and the workers that run them.

A *task* names resources it needs alone (exclusive) or together with others (shared). A *claim*
is a task's place in the queue of one resource; it is *granted* when nothing before it conflicts.
A task without an ungranted claim is *ready* and is pushed to its owner's queue. A *fence* is the
number a run carries; it grows, so that a late finisher with an old one is known and refused.
"""
