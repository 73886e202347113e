"""The loading benchmark on tiny data of each kind."""

from benchmarks.loading import main
from tests.helpers.generated import write_images, write_text


def test_a_row_for_each_data_set(tmp_path, capsys):
    text = write_text(tmp_path / "text", documents=2, splits={"train": 7, "valid": 5})
    images = write_images(tmp_path / "images", splits={"train": 6, "valid": 4})
    main([str(text), str(images), "--batch-size", "3"])
    *_, first, second = capsys.readouterr().out.splitlines()
    assert first.startswith(f"| {text} | 7 | 5 | ")
    assert second.startswith(f"| {images} | 6 | 4 | ")
    assert 0 < float(first.split("|")[4]) < 60
