"""`python -m synckit_streams.cli`, where the `synckit` program is not on PATH."""

from synckit_streams.cli import main

if __name__ == "__main__":
    main()
