"""`python -m ramify`."""

from ramify.cli import main

if __name__ == "__main__":  # workers of `prepare` import this module, too
    main()
