"""Prints the console's questions as guidellm reads them: JSON lines with the pictures' paths."""

import json
from pathlib import Path

PICTURES = Path(__file__).parents[2] / "serve/pictures"

for each in json.loads((PICTURES / "questions.json").read_text()):
    print(json.dumps({"question": each["question"], "image": str(PICTURES / each["picture"])}))
