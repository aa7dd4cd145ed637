"""The tests: unit, conformance (the interpreter's own) and integration (libraries that people use)."""
