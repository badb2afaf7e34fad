"""`python -m pharmclf`."""

from pharmclf.cli import main

if __name__ == "__main__":
    main()
