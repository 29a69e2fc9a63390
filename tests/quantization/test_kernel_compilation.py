from fukami.quantization import kernel_compilation


def test_compile_time_is_logged_on_the_first_slow_call(monkeypatch):
    clock = iter([0, 0.1, 1, 3.5, 4, 7])
    monkeypatch.setattr(kernel_compilation.time, "monotonic", lambda: next(clock))
    monkeypatch.setattr(kernel_compilation, "_called_kernels", set())
    monkeypatch.setattr("logging.Logger.warning", lambda self, text, *values: messages.append(text % values))
    messages = []
    for kernel in "quick", "slow", "slow":
        with kernel_compilation.log_compile_time(kernel, "GPU"):
            pass
    assert messages == ["compiled a 1-bit kernel for this GPU in 2.5 s; later runs load it from disk"]
