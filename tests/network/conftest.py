"""The way to the parts of a deployment that these tests share with others."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parent))
sys.path.append(str(Path(__file__).parent.parent / "end_to_end"))
