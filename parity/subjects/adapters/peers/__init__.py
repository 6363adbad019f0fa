"""Published Llamas, each loaded as its own users load it; a module a library.

A module has `REQUIREMENT`, the release that it is written for, and `subject`, from a checkpoint
and a dtype. The library is imported when that is called. `SCENARIOS`, where there is one, are
those that the library has the masks and positions for.
"""
