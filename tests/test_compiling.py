from fukami.quantization import binary_build


def test_the_first_slow_call_of_a_kernel_says_how_long_it_compiled(monkeypatch):
    clock = iter([0, 0.1, 1, 3.5, 4, 7])
    monkeypatch.setattr(binary_build.time, "monotonic", lambda: next(clock))
    monkeypatch.setattr(binary_build, "_called", set())
    monkeypatch.setattr("logging.Logger.warning", lambda self, text, *values: said.append(text % values))
    said = []
    for kernel in "quick", "slow", "slow":
        with binary_build.timed(kernel, "GPU"):
            pass
    assert said == ["compiled a 1-bit kernel for this GPU in 2.5 s; later runs find it on the disk"]
