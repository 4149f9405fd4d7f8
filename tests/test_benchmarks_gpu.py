"""The benchmark of the GPU ends well where there is none."""

import torch

from benchmarks import gpu


def test_without_a_gpu_nothing_is_measured(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr("sys.argv", ["gpu"])
    gpu.main()
    assert capsys.readouterr().out == "no GPU: nothing measured\n"
