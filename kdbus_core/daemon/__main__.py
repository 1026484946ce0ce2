"""`python -m kdbus_core.daemon` is `kdbusd`."""

import sys

from kdbus_core.daemon import main

sys.exit(main())
