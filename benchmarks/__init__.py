"""Measurements, one command each: `python -m benchmarks.NAME [--json FILE] [--quick]`.

Times of different runs on one machine cannot be compared, so every figure is a ratio measured in one run, its variants
in turns, with the limit beside it. `--quick` measures too little to be believed; it shows that the command works.
"""
