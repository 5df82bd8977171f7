"""The embedded default: a corpus that draws itself, the booru that serves it, and the tiny base.

Nothing in the other rooms knows of this one. `urushi demo` starts the booru, points ordinary
recipes at it and runs the ordinary job.
"""
