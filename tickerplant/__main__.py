"""`python -m tickerplant` is the `tickerplant` command."""

import sys

from tickerplant.cli import main

sys.exit(main())
