"""`python -m pgworkflows.ui`."""

from pgworkflows.ui.serving import main

main()
