"""`python -m cascadevl` is the command line."""

import sys

from cascadevl.cli.main import main

sys.exit(main())
