"""The formats that cross a process or a host: frames, results, names, error codes.

Pure: nothing here does I/O, reads a clock or imports anything else of ours. Both ends, runner and controller,
import these modules, so a format exists once.
"""
