"""`python -m busproxy.daemon` is `busproxyd`."""

import sys

from busproxy.daemon import main

sys.exit(main())
