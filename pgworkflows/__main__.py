"""`python -m pgworkflows …` is `pgworkflows …`."""

from pgworkflows.cli import main

if __name__ == "__main__":
    main()
