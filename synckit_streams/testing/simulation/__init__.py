"""The simulator's parts; `synckit_streams.testing.simulator` is the door."""
