"""Makes `python -m benchmarks.NAME` find what a script finds in its own folder."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
