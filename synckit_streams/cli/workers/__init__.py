"""Processes that run a service: one here, or several that a supervisor starts, watches and ends."""
