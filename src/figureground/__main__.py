"""`python -m figureground`."""

from figureground.cli import main

if __name__ == "__main__":
    main()
