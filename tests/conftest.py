"""What tests of several packages share: the modules in `support/`, importable by name."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parent / "support"))
