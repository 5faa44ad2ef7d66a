"""lmms-eval: its tasks asked of an M3 checkpoint, and its runs as oracle data.

Running: `manifest` is what lmms-eval finds by its entry point, `model` the class that it then
loads; `wishes` are a run's, `conversation` takes a task's question apart, `encoding` reads the
pictures, `deciding` says how finely, `answering` asks the engine, `told` is what is kept with each
answer. Importing: `runs` reads and compares sample files, `dataset` has the pictures, `importing`
makes records of both.
Only `manifest` and `model` know lmms-eval, which is no dependency: whoever runs it has it.
"""
