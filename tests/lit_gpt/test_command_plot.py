"""The verb ``plot``: a PNG from metrics.csv, or one sentence."""

from pathlib import Path

import pytest
from matplotlib.figure import Figure

from datamodules.errors import UserError
from lit_gpt.callbacks.metrics_csv import MetricsCSV
from lit_gpt.commands import plot

HEADER = "step,epoch,train/loss,lr/matrices,grad_norm,val/loss\r\n"


def folder(tmp_path: Path, content: bytes | str, name: str = "run") -> str:
    (tmp_path / name).mkdir()
    (tmp_path / name / "metrics.csv").write_bytes(content if isinstance(content, bytes) else content.encode())
    return str(tmp_path / name)


def test_curves_are_those_of_the_complete_rows(tmp_path: Path) -> None:
    text = HEADER + "10,0,3.5,0.1,1.5,\r\n20,0,3.0,0.2,nan,\r\n20,0,,,,2.5\r\n30,0,2."  # cut as it is written
    run = folder(tmp_path, text)
    axes = Figure().subplots()
    plot._draw(axes, {"a": MetricsCSV(run)}, ("train/loss", "train_eval/loss", "val/loss"), "loss")
    curves = {line.get_label(): line.get_xydata().tolist() for line in axes.lines}
    assert curves == {"train/loss": [[10, 3.5], [20, 3.0]], "val/loss": [[20, 2.5]]}


def test_runs_overlay_in_a_png_that_only_a_plot_replaces(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = [folder(tmp_path, HEADER + f"10,0,3.{n},0.1,1.5,\r\n", f"run {n}") for n in (1, 2)]
    out = tmp_path / "new" / "curves.png"
    for chosen in (runs[:1], [*runs[:1], f"{runs[1]}/metrics.csv"]):
        plot.main([*chosen, "--out", str(out)])
        assert out.read_bytes().startswith(b"\x89PNG")
        assert capsys.readouterr().out == f"{out}\n"
    (tmp_path / "photo.png").write_bytes(b"\x89PNG a photo")
    with pytest.raises(UserError, match="is no plot that lit_gpt wrote"):
        plot.main([runs[0], "--out", str(tmp_path / "photo.png")])


BROKEN = {
    "empty": b"",
    "header": HEADER.encode(),
    "torn": HEADER.encode() + b"10,0,3",
    "no text": b"\xff\x00\xfe" * 40,
    "no curve": HEADER.encode() + b"10,,,,,\r\n",
    "another csv": b"a,b\r\n1,2\r\n",
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_file_without_a_curve_is_one_sentence(name: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"metrics\.csv has no complete row: plot a run that has logged a step\.$"):
        plot.main([folder(tmp_path, BROKEN[name]), "--out", str(tmp_path / "x.png")])
    assert not (tmp_path / "x.png").exists()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([], "the following arguments are required: runs; for example: python -m lit_gpt plot"),
        (["nowhere"], r"metrics\.csv does not exist: give the folder of a run, such as"),
        (["{run}", "--out", "x.jpg"], r"--out x\.jpg is no name of a PNG: end it in \.png\."),
        (["{run}", "--lr", "3"], "unrecognized arguments: --lr 3"),
    ],
)
def test_wrong_arguments_are_one_sentence(arguments: list[str], sentence: str, tmp_path: Path) -> None:
    run = folder(tmp_path, HEADER + "10,0,3.5,0.1,1.5,\r\n")
    with pytest.raises(UserError, match=sentence) as caught:
        plot.main([argument.format(run=run) for argument in arguments])
    assert "\n" not in str(caught.value)
