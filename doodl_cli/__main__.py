"""`python -m doodl_cli` is `doodl`."""

import sys

from doodl_cli.cli import main

sys.exit(main())
