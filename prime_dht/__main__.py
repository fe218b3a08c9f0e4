"""``python -m prime_dht`` is ``prime-dht``."""

import sys

from prime_dht.cli import main

sys.exit(main())
