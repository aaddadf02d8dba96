"""Bundles: what an app developer needs to run an exported model on one platform.

Nothing is imported here: the command line reads `config` for its help, which must not load numpy.
"""
