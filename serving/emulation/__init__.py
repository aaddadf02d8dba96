"""Emulated processors: the files that a program for arm64 needs here, and the count of what it executes."""
