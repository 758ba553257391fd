"""`python -m quantspike.logs`."""

from quantspike.logs.command import main

main()
