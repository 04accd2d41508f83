"""The commands behind the scripts: one module a command, each with a frozen dataclass of what it is asked to do.

`Command.from_flags` makes that dataclass from the flags of a command line. No module here imports torch or another
heavy library when it is imported, so that flags and files are refused at once.
"""
