"""The way to the parts of a deployment that tests and soak share, and to the models that several areas share."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parent))
sys.path.append(str(Path(__file__).parent.parent / "models"))
