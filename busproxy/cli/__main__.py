"""`python -m busproxy.cli` is `busproxy`."""

import sys

from busproxy.cli import main

sys.exit(main())
