"""user_tasks owns what a person sees of work that is done for them.

A *status* is one row per user task: its state, its progress, who it is for. A *stage* is what
the job says it is doing now; while one is named, it stands in place of `In Progress` on the wire.
An *artifact* is something the work left: a file, a text, a link, or the error it ended with.
"""
