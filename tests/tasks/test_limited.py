"""A set that is not the whole one is named as such when it is loaded."""

import json
import logging

import pytest

from fairseq_csp.tasks.lra_image import LRAImageConfig, LRAImageTask


@pytest.mark.parametrize(
    ("summary", "warned"),
    [({"limited": True}, True), ({"limited": False}, False), ([], False), (None, False)],
)
def test_limited_sets_are_warned_of(summary, warned, tmp_path, caplog):
    if summary is not None:
        (tmp_path / "summary.json").write_text(json.dumps(summary))
    with caplog.at_level(logging.WARNING):
        LRAImageTask(LRAImageConfig(data=str(tmp_path), seed=1))
    assert ("cannot be compared" in caplog.text) == warned
