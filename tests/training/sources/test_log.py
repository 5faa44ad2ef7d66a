"""Reading the service's log as a source: what the service took, training takes."""

from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from router.records import DecisionRecord, picture_id, to_table
from training.errors import BadRecord
from training.sources import llava_source, log_source


def test_a_logged_picture_was_checked_by_the_service(tmp_path: Path) -> None:
    """Its operator may have raised the limits; a file from elsewhere has those of the defaults."""
    strip = np.full((2, 10_001, 3), 7, np.uint8)
    name = picture_id(strip)
    for folder in ("decisions", "images"):
        (tmp_path / folder).mkdir()
    Image.fromarray(strip).save(tmp_path / "images" / f"{name}.png")
    decision = DecisionRecord(
        request_id="r1", time_utc=datetime(2026, 11, 27, tzinfo=UTC), picture_ids=(name,),
        question="What?", model="m3-auto", scale=9, visual_tokens=9, reason="predicted",
        audited=True,
    )  # fmt: skip
    pq.write_table(to_table([decision], DecisionRecord), tmp_path / "decisions" / "a.parquet")
    assert np.array_equal(log_source(tmp_path).load(0).rgb, strip)

    [ask] = log_source(tmp_path).load(0).asks
    assert (ask.logged_scale, ask.logged_action, ask.logged_space) == (9, None, None)
    focused = replace(
        decision, visual_tokens=17, actions=("9+144@500x12",), action_space="5bace", cells=((3, 7),)
    )
    pq.write_table(to_table([focused], DecisionRecord), tmp_path / "decisions" / "a.parquet")
    [ask] = log_source(tmp_path).load(0).asks
    assert (ask.logged_scale, ask.logged_action, ask.logged_space) == (9, "9+144@500x12", "5bace")
    # Logs from before there were foci are read as before.
    older = pq.read_table(tmp_path / "decisions" / "a.parquet")
    older = older.drop_columns(["actions", "action_space", "cells"])
    pq.write_table(older, tmp_path / "decisions" / "a.parquet")
    [ask] = log_source(tmp_path).load(0).asks
    assert (ask.logged_scale, ask.logged_action) == (9, None)

    data = tmp_path / "data.json"
    turns = '[{"from": "human", "value": "What?"}, {"from": "gpt", "value": "grey"}]'
    data.write_text(f'[{{"id": "7", "image": "{name}.png", "conversations": {turns}}}]')
    with pytest.raises(BadRecord, match=r"record 7: .*10,000 on a side are accepted"):
        llava_source(data, tmp_path / "images").load(0)
