"""How fast it is, always beside something else on the same machine in the same run."""
