"""`python -m seedtune`: the command `seedtune`, without a script on the path."""

from .entry import main

if __name__ == "__main__":
    main()
