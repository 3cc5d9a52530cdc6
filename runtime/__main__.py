"""`python -m runtime` is `hotset`."""

from runtime.cli import main

if __name__ == "__main__":
    main()
