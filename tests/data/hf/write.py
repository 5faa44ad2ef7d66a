"""Writes the datasets beside it, by Hugging Face's own package (datasets 5.2.0, pillow).

    python tests/data/hf/write.py

The package is no dependency of this repository, so what it wrote is committed.
"""

import io
import shutil
from pathlib import Path

from datasets import ClassLabel, Dataset, DatasetDict, Features, List, Value
from datasets import Image as ImageColumn
from PIL import Image

HERE = Path(__file__).parent


def picture(number: int) -> dict[str, object]:
    """Return a picture of one colour as the package stores it."""
    file = io.BytesIO()
    Image.new("RGB", (12, 8), (number * 40, 0, 200)).save(file, "PNG")
    return {"bytes": file.getvalue(), "path": f"{number}.png"}


def main() -> None:
    """Write all of them anew."""
    for folder in HERE.iterdir():
        if folder.is_dir():
            shutil.rmtree(folder)
    train = Dataset.from_dict(
        {
            "image": [picture(0), picture(1), picture(0), picture(2)],
            "question": ["<image>\nWhat is it?", "How many?", "Which colour?", "Why?"],
            "answers": [["crate", "box", "box"], ["2"], ["blue"], []],
        },
        features=Features(
            {"image": ImageColumn(), "question": Value("string"), "answers": List(Value("string"))}
        ),
    )
    both = DatasetDict({"train": train, "validation": train.select([1])})
    both.save_to_disk(HERE / "saved")
    train.save_to_disk(HERE / "in-two-files", num_shards=2)
    for split, data in both.items():
        data.to_parquet(HERE / "hub" / "data" / f"{split}-00000-of-00001.parquet", batch_size=3)
    labels = ClassLabel(names=["cat", "dog"])
    named = {"img": [picture(3)] * 2, "query": ["Which?", "And?"], "species": [1, -1]}
    columns = {"img": ImageColumn(), "query": Value("string"), "species": labels}
    Dataset.from_dict(named, features=Features(columns)).save_to_disk(HERE / "labelled")


if __name__ == "__main__":
    main()
