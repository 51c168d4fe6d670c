"""What only a GPU can show: `python -m benchmarks.gpu --out DIR`. A part is a file of this package; `PARTS` names them."""

#: Names of the parts, in the order in which they run. Each is a module with a `TITLE` and a generator `rows(setting)`.
PARTS = ("exactness", "ratio", "long_text", "biggest", "quantized", "profiled")
