"""`qexport bench`: several engines, each in a process of its own, timed in turns on the same token ids."""
