"""The benchmark of compile time, with small networks on a CPU."""

import pytest

from experiments.bench import compile as bench


def test_bench_compile_prints_a_row_for_each_program(capsys):
    options = ["--batch-size=8", "--image-size=8", "--dtype=float32", "--methods=kd", "--augmentations=flip"]
    (row,) = bench.main(["--pairs=vit_pico:resnet_pico", *options])
    assert row[:3] == ["vit_pico -> resnet_pico", "kd", "flip"]
    assert int(row[3].replace(",", "")) > 500
    trace, compiled, both, cached = map(float, row[4:])
    assert both == pytest.approx(trace + compiled, abs=0.11)
    assert cached > 0
    assert "| vit_pico -> resnet_pico |     kd |         flip |" in capsys.readouterr().out


def test_bench_compile_reports_an_unknown_network_in_one_line():
    with pytest.raises(SystemExit, match=r"^error: .*resnet_pic"):
        bench.main(["--pairs=vit_pico:resnet_pic", "--image-size=8", "--methods=kd", "--augmentations=flip"])
