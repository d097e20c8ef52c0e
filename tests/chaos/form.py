"""How much load there is: the short form, for CI, or with CHAOS=full in the environment the long one."""

from __future__ import annotations

import os

from working import Amount

IS_FULL = os.environ.get("CHAOS", "") == "full"
CLICKS = 200 if IS_FULL else 40
WORK = Amount(images=30, warmed=8, videos=6, opened=6) if IS_FULL else Amount(images=8, warmed=2, videos=2, opened=0)
#: How often a fault strikes.
TIMES = 3 if IS_FULL else 1
