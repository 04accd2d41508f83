"""The commands behind the scripts: one module per command, each with a frozen dataclass of its arguments.

`Command.from_flags` makes that dataclass from the flags of a command line. No module here imports torch or another
heavy library when it is imported, so that flags and files are refused at once.
"""
