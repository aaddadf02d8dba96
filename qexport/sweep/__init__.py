"""A grid of runs from one YAML file: read, trained, exported, verified, one row each in a table."""
