"""`python -m kdbus_core.ctl` is `kdbusctl`."""

import sys

from kdbus_core.ctl import main

sys.exit(main())
