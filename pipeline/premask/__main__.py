"""`python -m premask`."""

from premask.cli import main

if __name__ == "__main__":
    main()
